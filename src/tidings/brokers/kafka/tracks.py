"""The partitions that a process has, and what opens a delivery of them."""

from __future__ import annotations

from typing import TypeAlias

from tidings.brokers.kafka.progress import Progress
from tidings.delivery import Delivery, Route


class Track:
    """One partition of a topic, while this process has it."""

    __slots__ = ("gone", "number", "owner", "progress", "route", "text", "topic", "trimmed")

    def __init__(self, owner: object, topic: str, number: int, route: Route, progress: Progress) -> None:
        self.owner = owner
        self.topic = topic
        self.number = number
        self.route = route
        self.progress = progress
        self.text = (-1, "")
        """What was committed last."""
        self.trimmed = 0
        """Up to here its topic was told to remove what is done."""
        self.gone = False
        """It belongs to another process, or is about to."""


class Token:
    """Opens a delivery: where it stands, and whether it is still ours to settle."""

    __slots__ = ("due", "given", "is_open", "offset", "size", "track")

    def __init__(self, track: Track, offset: int, size: int, due: float) -> None:
        self.track = track
        self.offset = offset
        self.size = size
        self.due = due
        self.given = False
        """With a handler; else it waits here."""
        self.is_open = True


Batch: TypeAlias = list[tuple[Token, Delivery]]
