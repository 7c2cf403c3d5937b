"""The events that the services of many tests take and say."""

from __future__ import annotations

from tidings import Event


class Placed(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    number: int


class Reserved(Event, type="stock.reserved", version=1, key="order_id"):
    order_id: str
    number: int
