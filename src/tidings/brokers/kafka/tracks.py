"""The partitions that a process has, and what opens a delivery of them."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

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


class Token(msgspec.Struct, eq=False, gc=False):
    """Opens a delivery: where it stands, and whether it is still ours to settle.

    The garbage collector does not look at it: there is one for each event, and a feed that is closed holds none.
    """

    track: Track
    offset: int
    size: int
    due: float
    given: bool = False
    """With a handler; else it waits here."""
    is_open: bool = True


def token_of(delivery: Delivery) -> Token:
    """What opens a delivery of this broker."""
    token: Token = delivery.token  # type: ignore[assignment]  # nobody else's comes here
    return token


Batch: TypeAlias = list[Delivery]
"""Deliveries of one position, each with its token."""
