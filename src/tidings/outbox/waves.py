"""What may be handed to a broker in one call, so that no event of a key is stored behind one that was not.

A broker keeps the order of a call, but it may refuse one message and store a later one. So in one call each key stands
once. Where a broker can store many messages all or nothing, in their order, a key may stand there many times: without
that, the rows of few keys would leave a few at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tidings import points
from tidings.delivery import Message
from tidings.ports import BatchPublish, Publish

Line = tuple[str, str | None]
"""Stream and key: what has an order, unless the key is None."""


def line_of(message: Message) -> Line:
    return message.stream, message.key


def first_of_each(messages: Iterable[Message]) -> tuple[list[int], list[int]]:
    """The places of the first message of each key and of all without one; and of the rest."""
    wave: list[int] = []
    rest: list[int] = []
    seen: set[Line] = set()
    for place, message in enumerate(messages):
        if message.key is not None:
            if line_of(message) in seen:
                rest.append(place)
                continue
            seen.add(line_of(message))
        wave.append(place)
    return wave, rest


def by_stream(messages: Iterable[Message]) -> dict[str, list[int]]:
    """The places of the messages of each stream, in their order."""
    found: dict[str, list[int]] = {}
    for place, message in enumerate(messages):
        found.setdefault(message.stream, []).append(place)
    return found


async def store_together(publish: Publish, messages: Sequence[Message]) -> bool:
    """Store all of these, in their order, or none: false when the broker cannot, or did not, or nobody knows.

    Worth a try only where a key stands more than once; else one call does as well, and says more.
    """
    batches = batches_of(publish)
    if batches is None or not first_of_each(messages)[1]:
        return False
    points.at(points.OUTBOX_PUBLISH)
    return await batches.batch(messages)


def batches_of(publish: object) -> BatchPublish | None:
    """The way in which a `Publish` stores several messages as one, if it has one."""
    return publish if isinstance(publish, BatchPublish) else None
