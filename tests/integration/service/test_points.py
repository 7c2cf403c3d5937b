"""Where a proof can stop the world: each point is passed at its place, on the real pipeline, store and relay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from tests.integration.stores.ledger import eventually
from tidings import Event, Service, points
from tidings.testing import MemoryBroker


class OrderPlaced(Event, type="order.placed", version=1, key="order_id"):
    order_id: str


class StockReserved(Event, type="stock.reserved", version=1, key="order_id"):
    order_id: str


WRITE = text("INSERT INTO ledger (note) VALUES ('x')")


async def on_a_connection(order: OrderPlaced, db: AsyncConnection) -> StockReserved:
    await db.execute(WRITE)
    await db.execute(WRITE)
    return StockReserved(order_id=order.order_id)


async def in_a_session(order: OrderPlaced, db: AsyncSession) -> StockReserved:
    await db.execute(WRITE)
    await db.execute(WRITE)
    return StockReserved(order_id=order.order_id)


def in_a_thread(order: OrderPlaced, db: Connection) -> StockReserved:
    db.execute(WRITE)
    db.execute(WRITE)
    return StockReserved(order_id=order.order_id)


@pytest.mark.parametrize("handler", [on_a_connection, in_a_session, in_a_thread])
async def test_an_event_passes_each_point_of_a_sql_store_in_order(
    handler: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay's own transactions are no commits of a handler; the claim's own statements are none of its either."""
    stock = Service("stock", store=f"sqlite:///{tmp_path}/shop.db")
    stock.on(OrderPlaced)(handler)
    broker = MemoryBroker()
    passed: list[str] = []
    async with stock.running(broker=broker), Service("orders", publishes=[OrderPlaced]).running(broker=broker) as shop:
        async with stock.transaction() as db:
            await db.execute(text("CREATE TABLE ledger (note TEXT)"))
        monkeypatch.setattr(points, "reached", passed.append)
        await shop.publish(OrderPlaced(order_id="1"))
        await eventually(lambda: "outbox-mark" in passed and "after-ack" in passed)
        await broker.idle()
    statements = ["before-statement", "after-statement"] * 2
    handled = ["before-claim", "after-claim", *statements, "before-commit", "after-commit", "before-ack", "after-ack"]
    relayed = ["outbox-publish", "outbox-mark"]
    assert [point for point in passed if point not in relayed] == handled
    assert [point for point in passed if point in relayed] == relayed
    assert passed.index("outbox-publish") > passed.index("after-commit")


async def test_without_sql_there_are_the_claim_its_end_and_the_ack(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = Service("stock", store="memory:")
    broker = MemoryBroker()
    passed: list[str] = []

    @stock.on(OrderPlaced)
    async def reserve(order: OrderPlaced) -> None: ...

    async with stock.running(broker=broker), Service("orders", publishes=[OrderPlaced]).running(broker=broker) as shop:
        monkeypatch.setattr(points, "reached", passed.append)
        await shop.publish(OrderPlaced(order_id="1"))
        await eventually(lambda: "after-ack" in passed)
    assert passed == ["before-claim", "after-claim", "before-commit", "after-commit", "before-ack", "after-ack"]
