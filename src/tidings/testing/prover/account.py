"""What a round came to, and what is said when two rounds differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from tidings import points
from tidings.delivery import Delivery, Envelope
from tidings.envelope import read_envelope
from tidings.errors import UndecodableEvent

MOST = 8
"""Lines that are shown of one difference."""

UNTIL_THE_COMMIT = points.ALL[: points.ALL.index(points.AFTER_COMMIT)]


class Result(NamedTuple):
    """What is there at the end of a round."""

    state: Any
    published: Counter[str]
    dead: Counter[str]


class Evidence(NamedTuple):
    """What happened on the way, by which a cause can be guessed."""

    before: Sequence[str] = ()
    """The points that the life passed that crashed."""
    after: Sequence[str] = ()
    """The points that the next one passed."""
    acknowledged: int = 0
    """Deliveries that the broker was told of before the crash."""


def published(deliveries: Iterable[Delivery], given: Collection[str], ignore: Collection[str]) -> Counter[str]:
    """Stored events as text, but for those whose ids are `given`, which the round began with.

    Without their own ids and times: those of the same fact may differ between rounds. Each stored message counts.
    """
    read = [read_envelope(delivery.body, delivery.headers) for delivery in deliveries]
    return Counter(_event(envelope, ignore) for envelope in read if envelope.id not in given)


def dead(letters: Iterable[Delivery]) -> Counter[str]:
    """What was written to the log of dead letters, as text."""
    return Counter(_letter(letter) for letter in letters)


def _letter(letter: Delivery) -> str:
    try:
        return _event(read_envelope(letter.body, letter.headers), ())
    except UndecodableEvent:
        return f"{len(letter.body)} bytes that are no event"


def _event(envelope: Envelope, ignore: Collection[str]) -> str:
    data = msgspec.json.decode(bytes(envelope.data))
    if isinstance(data, dict):
        data = {name: value for name, value in data.items() if name not in ignore}
    return f"{envelope.type} {msgspec.json.encode(data, order='sorted').decode()}"


def account(where: str, expected: Result, found: Result, point: str, evidence: Evidence) -> str:
    """The difference of two rounds for a person, or nothing when there is none."""
    lines: list[str] = []
    if expected.state != found.state:
        lines += [
            "",
            "the state differs:",
            f"  expected  {_short(expected.state)}",
            f"  found     {_short(found.state)}",
        ]
    for what, wanted, got in (
        ("published events", expected.published, found.published),
        ("dead letters", expected.dead, found.dead),
    ):
        if wanted != got:
            lines += ["", f"the {what} differ:"]
            lines += _listed("missing   ", wanted - got) + _listed("too many  ", got - wanted)
    if not lines:
        return ""
    return "\n".join([where, *lines, "", "likely: " + _cause(expected, found, point, evidence)])


def _cause(expected: Result, found: Result, point: str, evidence: Evidence) -> str:
    if point == "":
        return (
            "what the handlers do depends on more than the events: the time, chance, or what an earlier run left in the"
            " process. Leave such fields out of the query, or name those of published events in ignore="
        )
    if point in points.ALL:
        if found.state == expected.state and found.published - expected.published:
            return (
                "an event is published outside the transaction that causes it, so it is out although the effect was"
                " rolled back, and out again when it is repeated. Return it, or publish(…, tx=db)"
            )
        if point in UNTIL_THE_COMMIT and evidence.acknowledged and points.AFTER_COMMIT not in evidence.before:
            return (
                "the broker was told that the event is done before its effect was committed, so nothing brings it again"
            )
        if points.BEFORE_CLAIM in evidence.after and points.BEFORE_STATEMENT not in evidence.after:
            return (
                "the key of the event was durable before its effect was, so that it counts as a duplicate when it comes"
                " again: key and effect have to commit together"
            )
    return (
        "something is written outside the transaction, where no rollback reaches it: on a connection of its own, into a"
        " file, or into what the process keeps. Write it through the connection that the handler is given, or make a"
        " repeat harmless; an idempotent=True handler has to have an effect that may repeat"
    )


def _listed(what: str, events: Counter[str]) -> list[str]:
    lines = [f"  {what}{event}" + (f"   {count} times" if count > 1 else "") for event, count in sorted(events.items())]
    return lines if len(lines) <= MOST else [*lines[:MOST], f"  … and {len(lines) - MOST} more"]


def _short(state: object) -> str:
    text = repr(state)
    return text if len(text) <= 600 else f"{text[:600]}…"
