"""The service of the drill: each of its events says what is to become of it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tidings import Dead, Delivery, Event, Service

RELEASE = "ALARM_RELEASE"
"""The variable with the file whose being there ends a call that is stuck."""


class OrderPlaced(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    wanted: str = "done"


class StockReserved(Event, type="stock.reserved", version=1, key="order_id"):
    order_id: str


stock = Service("stock", publishes=[StockReserved])


@stock.on(OrderPlaced, order=None, timeout=1.0, abandon_after=None)
async def reserve(order: OrderPlaced, db: AsyncConnection, delivery: Delivery) -> StockReserved:
    if order.wanted == "poison":
        raise Dead("no such shelf")
    if order.wanted == "stuck":
        await _until_released(Path(os.environ[RELEASE]))
    await db.execute(text("INSERT INTO applied (id) VALUES (:id)"), {"id": order.order_id})
    return StockReserved(order_id=order.order_id)


async def _until_released(file: Path) -> None:
    """A client that never gives up, and takes no cancellation."""
    while not file.exists():  # noqa: ASYNC240  # nobody waits for more
        try:
            await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            pass
