"""What the services of the conformance suite do, in whatever process they run: an event, and an effect in a table."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import sqlalchemy as sa

from tidings.delivery import Delivery
from tidings.event import Event

TABLE = "CREATE TABLE IF NOT EXISTS ledger (position TEXT, id TEXT, key TEXT, attempt INTEGER, worker TEXT, at REAL)"
"""Without a unique key, so that whatever is applied twice is seen twice."""
ROW = sa.text("INSERT INTO ledger VALUES (:position, :id, :key, :attempt, :worker, :at)")


class Effect(NamedTuple):
    """What a handler did."""

    position: str
    id: str
    key: str | None
    attempt: int
    worker: str
    at: float


def effect_of(position: str, event: Any, delivery: Delivery, worker: str) -> Effect:
    """The effect of an event, which is now."""
    return Effect(position, event.id, event.key, delivery.attempt, worker, time.time())


def event_class(stream: str, name: str = "happened", version: int = 1) -> type[Event]:
    """A class of events of a test's own stream."""

    class Happened(Event, type=f"{stream}.{name}", version=version, key="key"):
        id: str
        key: str
        note: str = ""

    return Happened
