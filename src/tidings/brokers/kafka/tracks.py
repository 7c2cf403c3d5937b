"""The partitions that a process has, and what comes of them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tidings.brokers.kafka.progress import Progress
from tidings.delivery import Delivery, Route


class Track:
    """One partition of a topic, while this process has it. It opens its deliveries: it is the token of each."""

    __slots__ = ("came", "gone", "number", "owner", "progress", "route", "text", "topic", "trimmed")

    def __init__(self, owner: object, topic: str, number: int, route: Route, progress: Progress) -> None:
        self.owner = owner
        self.topic = topic
        self.number = number
        self.route = route
        self.progress = progress
        self.came = progress.seen
        """The first that has not come to the event loop yet."""
        self.text = (-1, "")
        """What was committed last."""
        self.trimmed = 0
        """Up to here its topic was told to remove what is done."""
        self.gone = False
        """It belongs to another process, or is about to."""


class Place(msgspec.Struct, eq=False, frozen=True):
    """Where a message stands whose bytes may not be here, and how many they are."""

    track: Track
    offset: int
    size: int


class Batch(msgspec.Struct, eq=False):
    """Deliveries of one position that came together, in their order."""

    deliveries: list[Delivery]
    size: int
    """Bytes of their bodies."""
    ends: dict[Track, int]
    """By partition, the first that comes after them."""
    due: dict[Delivery, float]
    """Of copies, before which moment they must not be handed over, Unix seconds; left out where there is none."""


def track_of(delivery: Delivery) -> Track:
    """What opens a delivery of this broker."""
    track: Track = delivery.token  # type: ignore[assignment]  # nobody else's comes here
    return track


def offset_of(delivery: Delivery) -> int:
    """Where a delivery of this broker stands in its partition."""
    offset: int = delivery.origin[2]  # type: ignore[assignment]  # as `arrivals` writes it
    return offset


def place_of(delivery: Delivery) -> Place:
    """Where a delivery of this broker stands."""
    return Place(track_of(delivery), offset_of(delivery), len(delivery.body))


def again(delivery: Delivery) -> Delivery:
    """A delivery of this broker as it comes once more; nothing of what was found out about it is kept."""
    return Delivery(
        body=delivery.body,
        stream=delivery.stream,
        origin=delivery.origin,
        token=delivery.token,
        headers=delivery.headers,
        slot=delivery.slot,
        delivered=delivery.delivered + 1,
        route=delivery.route,
        stored=delivery.stored,
    )


def mark(handed: Sequence[Delivery]) -> None:
    """Remember how far each partition was handed over."""
    last = handed[0]
    for delivery in handed:
        if delivery.token is not last.token:
            _mark_one(last)
        last = delivery
    _mark_one(last)


def _mark_one(delivery: Delivery) -> None:
    progress, end = track_of(delivery).progress, offset_of(delivery) + 1
    if end > progress.handed:
        progress.handed = end
