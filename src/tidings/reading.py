"""The first step of a delivery: its bytes are decoded, brought to the newest version, and matched with its handler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tidings.copies import is_discarded, restore
from tidings.delivery import Delivery, Done, Route
from tidings.envelope import read_envelope
from tidings.errors import UndecodableEvent
from tidings.grouping import Grouping, Work
from tidings.handler import Handler
from tidings.policy import decide, spent
from tidings.traces import without_any_of_ours

_RETRY: Final = Route.RETRY
"""Members of an enum take ten times as long to be found as names of a module, up to Python 3.11."""


def read(delivery: Delivery, handler: Handler, grouping: Grouping) -> Work:
    """What cannot be read is decided here already, and so is what is none of this handler's business."""
    try:
        if delivery.route is _RETRY:
            if is_discarded(delivery):
                return Work(delivery, None, Done(skipped=True))
            if not delivery.failures:
                restore(delivery)
        delivery.envelope = envelope = read_envelope(delivery.body, delivery.headers)
        if (event := handler.reader.read(envelope)) is None:
            return Work(delivery, None, Done(skipped=True))
        work = Work(delivery, event)
        if delivery.failures:
            grouping.set_apart(work)
        return work
    except UndecodableEvent as error:
        return Work(delivery, None, decide(without_any_of_ours(error), delivery, handler.rules.retry))
    except Exception as error:
        return Work(delivery, None, decide(error, delivery, handler.rules.retry))


def look_again(works: Sequence[Work], handler: Handler, grouping: Grouping) -> None:
    """What is to be done otherwise, now that it is known how often each has failed in other processes."""
    for work in works:
        if work.decision is not None or not work.delivery.failures:
            continue
        grouping.set_apart(work)
        if (dead := spent(work.delivery, handler.rules.retry)) is not None:
            work.delivery.failures -= 1  # of which the last attempt is one
            work.decision = dead
