"""The first step of a delivery: its bytes are decoded, brought to the newest version, and matched with its handler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tidings.copies import is_discarded, restore
from tidings.delivery import SKIPPED, Delivery, Route
from tidings.envelope import are_plain, decode_plain, read_envelope
from tidings.errors import UndecodableEvent
from tidings.event import set_stamp
from tidings.grouping import Grouping, Work
from tidings.handler import Handler
from tidings.newer import UNASKED
from tidings.policy import decide, spent
from tidings.traces import without_any_of_ours

_RETRY: Final = Route.RETRY
"""Members of an enum take ten times as long to be found as names of a module, up to Python 3.11."""

_TOGETHER: Final = 64
"""So many are read at once: one that is special has no more of its neighbours read again."""


def read(batch: Sequence[Delivery], handler: Handler, grouping: Grouping) -> list[Work]:
    """What cannot be read is decided here already, and so is what it did not ask for, as far as is known.

    Mostly there is nothing to be said of any of them: a third of the time is saved where that is found out for all.
    """
    if any([delivery.failures or delivery.route is _RETRY for delivery in batch]):
        return _read_one_by_one(batch, handler, grouping)
    works: list[Work] = []
    for place in range(0, len(batch), _TOGETHER):
        some = batch[place : place + _TOGETHER]
        works += _read_at_once(some, handler) or _read_one_by_one(some, handler, grouping)
    return works


def _read_at_once(batch: Sequence[Delivery], handler: Handler) -> list[Work]:
    """Events that were asked for and can be read, of which nothing has to be looked at closer; else nothing."""
    bodies = [delivery.body for delivery in batch]
    if not are_plain(bodies, [delivery.headers for delivery in batch]):
        return []
    decoders = handler.reader.decoders
    try:
        envelopes = list(map(decode_plain, bodies))
        events = [decoders[one.type][one.version](one.data) for one in envelopes]
    except BaseException as error:  # also what the program's own classes raise; which, and why, is found out alone
        if isinstance(error, KeyboardInterrupt):
            raise
        return []
    for delivery, envelope, event in zip(batch, envelopes, events, strict=True):
        set_stamp(event, envelope)
        delivery.envelope = envelope
    return list(map(Work, batch, events))


def _read_one_by_one(batch: Sequence[Delivery], handler: Handler, grouping: Grouping) -> list[Work]:
    works: list[Work] = []
    event_in = handler.reader.read
    for delivery in batch:
        try:
            if delivery.route is _RETRY:
                if is_discarded(delivery):
                    works.append(Work(delivery, None, SKIPPED))
                    continue
                if not delivery.failures:
                    restore(delivery)
            delivery.envelope = envelope = read_envelope(delivery.body, delivery.headers)
            event = event_in(envelope)
            work = Work(delivery, event, UNASKED if event is None else None)
            if event is None:
                grouping.unasked = True
            if delivery.failures and event is not None:
                grouping.set_apart(work)
        except UndecodableEvent as error:
            work = Work(delivery, None, decide(without_any_of_ours(error), delivery, handler.rules.retry))
        except Exception as error:
            work = Work(delivery, None, decide(error, delivery, handler.rules.retry))
        works.append(work)
    return works


def look_again(works: Sequence[Work], handler: Handler, grouping: Grouping) -> None:
    """What is to be done otherwise, now that it is known how often each has failed in other processes."""
    for work in works:
        if work.decision is not None or not work.delivery.failures:
            continue
        grouping.set_apart(work)
        if (dead := spent(work.delivery, handler.rules.retry)) is not None:
            work.delivery.failures -= 1  # of which the last attempt is one
            work.decision = dead
