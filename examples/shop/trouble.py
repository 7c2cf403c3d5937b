"""What goes wrong during the demo, and when: duplicates, garbage, an unknown version, kills."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import msgspec

from examples.shop.events import OrderPlaced
from tidings.delivery import Message
from tidings.envelope import envelope_of, to_structured

GARBAGE = 10
UNKNOWN_VERSIONS = 5
BROKEN = 10
FLAKY_SHARE = 0.01
DUPLICATE_SHARE = 0.05


def make_orders(count: int, rng: random.Random) -> tuple[list[OrderPlaced], set[str]]:
    """So many orders that are meant to be applied, with the ids of those meant to die mixed in besides."""
    orders = [
        OrderPlaced(
            order_id=f"order-{number:06}",
            sku="flaky" if rng.random() < FLAKY_SHARE else rng.choice(("tea", "coffee", "cocoa")),
            quantity=rng.randint(1, 5),
            placed_at=datetime.now(UTC),
        )
        for number in range(count)
    ]
    broken = [
        OrderPlaced(order_id=f"broken-{number:03}", sku="broken", quantity=1, placed_at=datetime.now(UTC))
        for number in range(BROKEN)
    ]
    for order in broken:
        orders.insert(rng.randrange(len(orders)), order)
    return orders, {order.order_id for order in broken}


def duplicate(order: OrderPlaced, number: int) -> Message:
    """The same event under a message id of its own, so that the broker cannot know it for a repeat."""
    envelope = envelope_of(order, "orders")
    return Message(
        id=f"{envelope.id}-again-{number}",
        stream="order",
        type="order.placed",
        key=order.order_id,
        body=to_structured(envelope),
    )


def garbage(rng: random.Random) -> list[Message]:
    """Bytes that are no event."""
    return [
        Message(
            id=f"garbage-{number}-{rng.random()}", stream="order", type="order.placed", body=b"\xff" + rng.randbytes(40)
        )
        for number in range(GARBAGE)
    ]


def unknown_versions() -> list[Message]:
    """Events of a version that no class here knows."""
    messages = []
    for number in range(UNKNOWN_VERSIONS):
        key = f"from-the-future-{number}"
        order = OrderPlaced(order_id=key, sku="tea", quantity=1, placed_at=datetime.now(UTC))
        envelope = msgspec.structs.replace(envelope_of(order, "orders"), version="v9")
        messages.append(
            Message(id=envelope.id, stream="order", type="order.placed", key=key, body=to_structured(envelope))
        )
    return messages


def schedule(
    kills: Sequence[Callable[[], Awaitable[str] | str]], total: int
) -> list[tuple[int, Callable[[], Awaitable[str] | str]]]:
    """Spread the kills over the load: after how many orders each one comes."""
    return [(total * (place + 1) // (len(kills) + 1), kill) for place, kill in enumerate(kills)]
