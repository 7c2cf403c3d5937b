"""The stock: reserves what was ordered. Its order per key is kept: each key has one process."""

from __future__ import annotations

import os

from sqlalchemy.ext.asyncio import AsyncConnection

from examples.shop import ledger
from examples.shop.events import OrderPlaced, StockReserved
from tidings import Delivery, KillSwitch, Retry, Service

stock = Service("stock")

# The demo can turn the rule off, to show that its comparison sees what happens then.
FORGETFUL = os.environ.get("SHOP_FORGETFUL") == "1"


# So many of a few orders are made to fail that a worker which has just come in place of a killed one may see little
# else, and would pause itself until somebody looks.
PATIENT = KillSwitch(least=100)


@stock.on(OrderPlaced, once=not FORGETFUL, retry=Retry(attempts=3, first=0.2, most=1.0), kill_switch=PATIENT)
async def reserve(order: OrderPlaced, db: AsyncConnection, delivery: Delivery) -> StockReserved:
    if order.sku == "flaky" and delivery.attempt <= 2:
        raise ConnectionError("the warehouse did not answer")
    if order.sku == "broken":
        raise ValueError("no such shelf")
    await ledger.write(db, "stock.reserve", delivery)
    return StockReserved(order_id=order.order_id, sku=order.sku, quantity=order.quantity)
