"""The workload: orders cause reservations of stock, reservations cause payments, and every effect leaves a row."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from tidings import Delivery, Event, Retry, Service


class OrderPlaced(Event, type="order.placed", version=1, key="cart"):
    cart: str
    order_id: str
    sku: str
    flaky: bool = False
    """Its first attempt fails after it has written, where that is taken back."""


class StockReserved(Event, type="stock.reserved", version=1, key="cart"):
    cart: str
    order_id: str


BATCH: Final = 8
CARTS: Final = 12
SKUS: Final = 4
RESERVE: Final = "stock.reserve"
CHARGE: Final = "payments.charge"
RETRY: Final = Retry(attempts=8, first=0.1, most=0.2)

COLUMNS: Final = "handler, event_id, order_id, attempt, worker, at"
TAKE: Final = "UPDATE proof_stock SET taken = taken + 1 WHERE sku ="

Services = tuple[Service, Service]
Shop = Callable[[str], Services]
"""Makes both services. The URL is that of the store, or the file of the ledger where the effects are elsewhere."""


class Variant(NamedTuple):
    """One kind of handler, in which the shop is written."""

    shop: Shop
    statements: int = 60
    """In the statements of a round a worker dies at the first to the so-many-th."""


def made(
    reserve: Callable[..., Any], charge: Callable[..., Any], *, batches: bool = False, stock: Service | None = None
) -> Services:
    """The stock keeps the order of each cart, the payments keep none."""
    stock, payments = stock or Service("stock"), Service("payments")
    ordered, free = (stock.on_batch, payments.on_batch) if batches else (stock.on, payments.on)
    ordered(OrderPlaced, name="reserve", order="key", batch=BATCH, retry=RETRY)(reserve)
    free(StockReserved, name="charge", order=None, batch=BATCH, retry=RETRY)(charge)
    return stock, payments


def row(handler: str, order_id: str, delivery: Delivery) -> dict[str, object]:
    """What an effect writes into the ledger, in the order of `COLUMNS`."""
    return {
        "handler": handler,
        "event_id": delivery.event_id,
        "order_id": order_id,
        "attempt": delivery.attempt,
        "worker": os.getpid(),
        "at": time.time(),
    }


def caused(order: OrderPlaced) -> StockReserved:
    return StockReserved(cart=order.cart, order_id=order.order_id)


def fail_at_first(order: OrderPlaced, delivery: Delivery) -> None:
    if order.flaky and delivery.attempt == 1:
        raise ConnectionError("the shelf does not answer")
