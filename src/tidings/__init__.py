"""Events between microservices: none lost, none applied twice, each one traceable.

::

    class OrderPlaced(Event, type="order.placed", version=1, key="order_id"):
        order_id: str

    stock = Service("stock", store="sqlite:///shop.db")

    @stock.on(OrderPlaced)
    async def reserve(order: OrderPlaced, db: AsyncConnection) -> StockReserved: ...

The names are imported when they are first used, so that a module of events alone does not pay for a service.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidings.delivery import Delivery
    from tidings.errors import (
        BrokerUnavailable,
        ConfigurationError,
        Contention,
        Dead,
        DeclarationError,
        EventError,
        EventTooLarge,
        FailedEvents,
        InvalidEvent,
        MisuseError,
        NotStored,
        ProgramError,
        RetryAfter,
        StoreUnavailable,
        TidingsError,
        TransactionEnded,
        UndecodableEvent,
        WorldError,
    )
    from tidings.event import Event, event_id
    from tidings.policy import Retry
    from tidings.service import Service
    from tidings.switch import KillSwitch

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
    "FailedEvents",
    "InvalidEvent",
    "KillSwitch",
    "MisuseError",
    "NotStored",
    "ProgramError",
    "Retry",
    "RetryAfter",
    "Service",
    "StoreUnavailable",
    "TidingsError",
    "TransactionEnded",
    "UndecodableEvent",
    "WorldError",
    "event_id",
]

_ELSEWHERE = {
    "Delivery": "delivery",
    "Event": "event",
    "KillSwitch": "switch",
    "Retry": "policy",
    "Service": "service",
    "event_id": "event",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'tidings' has no name {name!r}")
    value: object = getattr(_import_module(f"tidings.{_ELSEWHERE.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
