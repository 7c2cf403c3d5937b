"""The orders: says what was ordered, and closes what was paid."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from examples.shop import ledger
from examples.shop.events import OrderPlaced, PaymentTaken
from tidings import Delivery, Service

orders = Service("orders", publishes=[OrderPlaced])


@orders.on(PaymentTaken)
async def close(payment: PaymentTaken, db: AsyncConnection, delivery: Delivery) -> None:
    await ledger.write(db, "orders.close", delivery)
