"""What stands in the outbox, as values that know no database."""

from __future__ import annotations

from typing import NamedTuple

from tidings.delivery import Message
from tidings.errors import EventError


class Row(NamedTuple):
    """A message that waits, with its place in the order."""

    id: int
    attempts: int
    message: Message
    trouble: EventError | None = None
    """Why no message can be made of it; then `message` is what can be read, for people."""


class Refused(NamedTuple):
    """A row that could not be published; `retry_at` is in Unix seconds, None parks it."""

    id: int
    error: str
    retry_at: float | None


class Parked(NamedTuple):
    """A row that cannot be published as it stands, and holds its key until somebody decides."""

    id: int
    message: Message
    error: str
    created_at: float


class OutboxBacklog(NamedTuple):
    """What waits in the outbox."""

    waiting: int
    """Rows that are not published yet, the parked ones included."""
    oldest_seconds: float
    """How long the oldest of them has waited."""
    parked: int
    """Rows that wait for a person."""
