"""What the services of the shop tell one another."""

from __future__ import annotations

from datetime import datetime

from tidings import Event


class OrderPlaced(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    sku: str
    quantity: int
    placed_at: datetime


class StockReserved(Event, type="stock.reserved", version=1, key="order_id"):
    order_id: str
    sku: str
    quantity: int


class PaymentTaken(Event, type="payment.taken", version=1, key="order_id"):
    order_id: str
    cents: int
