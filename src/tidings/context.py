"""Which delivery runs in this task, for those who are called by a handler: publishing, logs."""

from __future__ import annotations

import asyncio
import uuid
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any

import msgspec

from tidings.delivery import Delivery
from tidings.errors import MisuseError


class Scope(msgspec.Struct, eq=False):
    """The delivery that a handler works on (of a batch the first), and how many events it has caused so far."""

    delivery: Delivery
    position: str
    caused: int = 0
    together: bool = False
    """One of a batch that a function handles at once: what it does meanwhile has no single cause."""
    running: asyncio.Future[Any] | None = None
    """Of a sync handler, what runs in its thread."""
    thread: int | None = None
    """That thread's identifier."""
    span: object = None
    """The span of the call, where its service is traced."""
    abandoned: bool = False
    """Nobody waits for the handler any more."""

    def next_id(self) -> str:
        """The id of the next caused event: the same whenever this delivery is handled again.

        Raises:
            MisuseError: a batch handler publishes, and nothing says for which of its events.
        """
        if self.together:
            raise MisuseError(
                f"{self.position} handles batches and called publish: nothing says which of its events is the cause."
                " Return a list with what each event caused, in their order"
            )
        place, self.caused = self.caused, self.caused + 1
        return derived_id(self.delivery.event_id, self.position, place, self.delivery.scope)


current: ContextVar[Scope | None] = ContextVar("tidings.scope", default=None)


def derived_id(cause: str, position: str, place: int, scope: str = "") -> str:
    """A UUID (version 8 of RFC 9562) made of what caused an event, so that a repeat causes the same id."""
    digest = blake2b("\x00".join((cause, position, str(place), scope)).encode(), digest_size=16).digest()
    number = int.from_bytes(digest, "big")
    number = number & ~(0xF << 76) | 0x8 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=number))
