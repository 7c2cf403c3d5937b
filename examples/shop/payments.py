"""The payments: takes the money for what was reserved. No order is needed, so several processes share the work."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from examples.shop import ledger
from examples.shop.events import PaymentTaken, StockReserved
from tidings import Delivery, Service

payments = Service("payments")


@payments.on(StockReserved, once="order_id", order=None)
async def take(reserved: StockReserved, db: AsyncConnection, delivery: Delivery) -> PaymentTaken:
    await ledger.write(db, "payments.take", delivery)
    return PaymentTaken(order_id=reserved.order_id, cents=995 * reserved.quantity)
