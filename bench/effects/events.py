"""The events that are applied, and what the table has to say once each of them was applied exactly once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence

from tidings import Event

STREAM = "stock"
ROWS = 1000
KEYS = 1000
BAD = 0.01
"""The share of events that handlers refuse where they are asked to."""

UPDATE = "UPDATE stock SET taken = taken + $1 WHERE sku = $2"
"""The effect of one event."""


class Taken(Event, type="stock.taken", version=1, key="order_id"):
    """The quantity is another one for each event: sums that are right had each event once."""

    order_id: str
    sku: int
    quantity: int
    bad: bool = False


class Refused(Exception):
    """What a handler says to a bad event, each time."""


def make_events(count: int, rows: int = ROWS) -> Iterator[Taken]:
    """The same ones in each run. Rows come in random order."""
    chance = random.Random(20)
    for number in range(count):
        yield Taken(
            order_id=f"{number % KEYS:04}",
            sku=chance.randrange(rows),
            quantity=number + 1,
            bad=chance.random() < BAD,
        )


def sums(events: Sequence[Taken]) -> dict[int, int]:
    """What each row says when these events were applied once each."""
    found: Counter[int] = Counter()
    for event in events:
        found[event.sku] += event.quantity
    return dict(found)
