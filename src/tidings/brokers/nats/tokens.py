"""What the broker keeps of each delivery that it handed over."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol


class Source(Protocol):
    """What a delivery came through, and gives room back to."""

    held: int
    held_bytes: int
    settled: Callable[[Sequence[Token]], None]

    def made_room(self) -> None: ...
    def refill(self) -> None: ...


class Token:
    """What the broker needs to know of a delivery it handed over."""

    __slots__ = ("counter", "given", "is_open", "lost", "pull", "reply", "seq", "size", "stale", "touched")

    def __init__(self, reply: bytes, pull: Source, size: int, seq: int, counter: int) -> None:
        self.reply = reply
        self.pull = pull
        self.size = size
        self.seq = seq
        self.counter = counter
        """The server's number of this delivery: one consumer's deliveries have no gaps."""
        self.touched = time.monotonic()
        """When the server last heard that it is in good hands."""
        self.stale = False
        """It may have been delivered to somebody else meanwhile: it may be acknowledged, not given back (trap 22)."""
        self.lost = False
        """Its share went to another process while it was here: when it comes again, it is another delivery."""
        self.is_open = True
        self.given = False
        """It was handed over to the core."""
