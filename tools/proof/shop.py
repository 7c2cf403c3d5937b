"""The workload: orders cause reservations of stock, reservations cause payments, and every effect leaves a row."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

from asyncpg import Connection
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tidings import Delivery, Event, Retry, Service, points


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


def _made(reserve: Callable[..., Any], charge: Callable[..., Any]) -> Services:
    """The stock keeps the order of each cart, the payments keep none."""
    stock, payments = Service("stock"), Service("payments")
    stock.on(OrderPlaced, name="reserve", order="key", batch=BATCH, retry=RETRY)(reserve)
    payments.on(StockReserved, name="charge", order=None, batch=BATCH, retry=RETRY)(charge)
    return stock, payments


def _row(handler: str, order_id: str, delivery: Delivery) -> tuple[object, ...]:
    return handler, delivery.event_id, order_id, delivery.attempt, os.getpid(), time.time()


def _fail_at_first(order: OrderPlaced, delivery: Delivery) -> None:
    if order.flaky and delivery.attempt == 1:
        raise ConnectionError("the shelf does not answer")


def sqlalchemy_shop(url: str) -> Services:
    """Through the connection of SQLAlchemy that the store lends."""
    insert, take = text(f"INSERT INTO proof_ledger ({COLUMNS}) VALUES (:h, :e, :o, :a, :w, :t)"), text(f"{TAKE} :sku")

    async def reserve(order: OrderPlaced, db: AsyncConnection, delivery: Delivery) -> StockReserved:
        await db.execute(insert, dict(zip("heoawt", _row(RESERVE, order.order_id, delivery), strict=True)))
        await db.execute(take, {"sku": order.sku})
        _fail_at_first(order, delivery)
        return StockReserved(cart=order.cart, order_id=order.order_id)

    async def charge(event: StockReserved, db: AsyncConnection, delivery: Delivery) -> None:
        await db.execute(insert, dict(zip("heoawt", _row(CHARGE, event.order_id, delivery), strict=True)))

    return _made(reserve, charge)


def asyncpg_shop(url: str) -> Services:
    """Through the driver's own connection that the store lends."""
    insert = f"INSERT INTO proof_ledger ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6)"

    async def reserve(order: OrderPlaced, db: Connection, delivery: Delivery) -> StockReserved:
        await db.execute(insert, *_row(RESERVE, order.order_id, delivery))
        await db.execute(f"{TAKE} $1", order.sku)
        _fail_at_first(order, delivery)
        return StockReserved(cart=order.cart, order_id=order.order_id)

    async def charge(event: StockReserved, db: Connection, delivery: Delivery) -> None:
        await db.execute(insert, *_row(CHARGE, event.order_id, delivery))

    return _made(reserve, charge)


def file_shop(path: str) -> Services:
    """An effect elsewhere than in the store: durable at once, and nothing takes it back."""
    insert = f"INSERT INTO proof_ledger ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"

    def write(handler: str, order_id: str, delivery: Delivery, sku: str = "") -> None:
        points.at(points.BEFORE_STATEMENT)  # which no store sees
        with closing(sqlite3.connect(path, timeout=20, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute(insert, _row(handler, order_id, delivery))
            db.execute(f"{TAKE} ?", (sku,))
            db.execute("COMMIT")
        points.at(points.AFTER_STATEMENT)

    async def reserve(order: OrderPlaced, delivery: Delivery) -> StockReserved:
        _fail_at_first(order, delivery)
        write(RESERVE, order.order_id, delivery, order.sku)
        return StockReserved(cart=order.cart, order_id=order.order_id)

    async def charge(event: StockReserved, delivery: Delivery) -> None:
        write(CHARGE, event.order_id, delivery)

    return _made(reserve, charge)
