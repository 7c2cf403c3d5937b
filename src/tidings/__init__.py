"""Events between microservices: none lost, none applied twice, each one traceable.

::

    class OrderPlaced(Event, type="order.placed", version=1, key="order_id"):
        order_id: str

    stock = Service("stock", store="sqlite:///shop.db")

    @stock.on(OrderPlaced)
    async def reserve(order: OrderPlaced, db: AsyncConnection) -> StockReserved: ...
"""

from __future__ import annotations

from tidings.delivery import Delivery
from tidings.errors import (
    BrokerUnavailable,
    ConfigurationError,
    Contention,
    Dead,
    DeclarationError,
    EventError,
    EventTooLarge,
    InvalidEvent,
    MisuseError,
    NotStored,
    ProgramError,
    StoreUnavailable,
    TidingsError,
    UndecodableEvent,
    WorldError,
)
from tidings.event import Event, event_id
from tidings.policy import Retry
from tidings.service import Service

__version__ = "0.1.0"

__all__ = [
    "BrokerUnavailable",
    "ConfigurationError",
    "Contention",
    "Dead",
    "DeclarationError",
    "Delivery",
    "Event",
    "EventError",
    "EventTooLarge",
    "InvalidEvent",
    "MisuseError",
    "NotStored",
    "ProgramError",
    "Retry",
    "Service",
    "StoreUnavailable",
    "TidingsError",
    "UndecodableEvent",
    "WorldError",
    "event_id",
]
