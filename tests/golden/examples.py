"""The events that the golden files hold, with fixed ids and times.

The files are the truth: they say what others may rely on. When a test differs from one, the code is wrong.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated
from uuid import UUID

import msgspec

from tidings import Event
from tidings.context import derived_id
from tidings.delivery import Envelope
from tidings.envelope import envelope_of
from tidings.event import Stamp, set_stamp

FOLDER = Path(__file__).parent


class OrderPlacedV1(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    sku: str
    quantity: int
    placed_at: datetime


def from_v1(old: OrderPlacedV1) -> OrderPlaced:
    return OrderPlaced(order_id=old.order_id, lines=[Line(sku=old.sku, quantity=old.quantity)], placed_at=old.placed_at)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    sku: str
    quantity: int


class OrderPlaced(Event, type="order.placed", version=2, key="order_id", upcast=from_v1):
    order_id: str
    lines: list[Line]
    placed_at: datetime
    note: str | None = None


class StockReserved(Event, type="stock.reserved", version=1, key="order_id"):
    order_id: str


class ShopOpened(Event, type="shop.opened", version=1):
    day: date


class InvoiceIssued(Event, type="invoice.issued", version=1, key="number"):
    number: int
    customer: UUID
    total: Decimal
    rate: float
    grains: int
    due: Annotated[datetime, msgspec.Meta(tz=True)]
    valid_for: timedelta
    seal: bytes


PLACED_ID = "01a0b1c2-d3e4-7f56-8789-9a0b1c2d3e4f"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
AT = datetime(2026, 11, 23, 12, 30, 0, 250000, tzinfo=UTC)


def stamped(event: Event, id: str, at: datetime = AT) -> Event:
    set_stamp(event, Stamp(id, at))
    return event


def examples() -> dict[str, tuple[type[Event], Envelope]]:
    """By name of their file: the class that reads them, and the envelope."""
    v1 = OrderPlacedV1(order_id="A-1001", sku="teapot", quantity=2, placed_at=AT)
    v2 = OrderPlaced(order_id="A-1001", lines=[Line(sku="teapot", quantity=2)], placed_at=AT)
    reserved = StockReserved(order_id="A-1001")
    zurich = OrderPlacedV1(order_id='Zürich 7/"50 %"·🛒', sku="☕\n\t\\", quantity=1, placed_at=AT)
    invoice = InvoiceIssued(
        number=20260042,
        customer=UUID("c2d3e4f5-0617-4829-8a3b-4c5d6e7f8091"),
        total=Decimal("1249.90"),
        rate=0.081,
        grains=10**30,
        due=datetime.fromisoformat("2026-12-23T00:00:00+01:00"),
        valid_for=timedelta(days=30, seconds=1.5),
        seal=b"\x00\x01\xfe\xff",
    )
    caused = derived_id(PLACED_ID, "stock.reserve", 0)
    opened_at = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
    return {
        "placed-v1": (OrderPlaced, envelope_of(stamped(v1, PLACED_ID), "shop")),
        "placed-v2": (OrderPlaced, envelope_of(stamped(v2, PLACED_ID), "shop")),
        "without-key": (
            ShopOpened,
            envelope_of(
                stamped(ShopOpened(day=date(2026, 11, 23)), "01a0b1c2-0000-7000-8000-000000000001", opened_at), "shop"
            ),
        ),
        "caused": (
            StockReserved,
            envelope_of(
                stamped(reserved, "01a0b1c2-0000-7000-8000-000000000002"),
                "stock",
                id=caused,
                correlation_id=PLACED_ID,
                causation_id=PLACED_ID,
                traceparent=TRACEPARENT,
                tracestate="congo=t61rcWkgMzE",
            ),
        ),
        "not-ascii": (
            OrderPlacedV1,
            envelope_of(stamped(zurich, "01a0b1c2-0000-7000-8000-000000000003"), "shop", correlation_id="Kauf № 7"),
        ),
        "values": (InvoiceIssued, envelope_of(stamped(invoice, "01a0b1c2-0000-7000-8000-000000000004"), "billing")),
    }


def binary_file(headers: dict[str, str], body: bytes) -> bytes:
    """How a message of the binary mode stands in a file: headers, an empty line, the body."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("ascii") + b"\r\n" + body


def read_binary(data: bytes) -> tuple[dict[str, str], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    return dict(line.split(": ", 1) for line in head.decode("ascii").split("\r\n")), body
