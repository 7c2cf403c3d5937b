"""The shop, in every kind of handler that a store has; each is what a user would write, and all do the same."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Final

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Session

from tidings import Delivery, Service, points
from tidings.stores.postgres import Statements
from tools.proof.ledger import effects
from tools.proof.shop import (
    CHARGE,
    COLUMNS,
    RESERVE,
    TAKE,
    OrderPlaced,
    Services,
    StockReserved,
    Variant,
    caused,
    fail_at_first,
    made,
    row,
)

# ── SQLAlchemy ──────────────────────────────────────────────────────────────────────────────────────────────────────

NAMED: Final = text(
    f"INSERT INTO proof_ledger ({COLUMNS}) VALUES (:handler, :event_id, :order_id, :attempt, :worker, :at)"
)
TAKE_NAMED: Final = text(f"{TAKE} :sku")


class Base(DeclarativeBase):
    pass


class Effect(Base):
    """The ledger as a user's own model."""

    __table__ = effects


def connection_shop(_: str) -> Services:
    """Through the `AsyncConnection` that the store lends."""

    async def reserve(order: OrderPlaced, db: AsyncConnection, delivery: Delivery) -> StockReserved:
        await db.execute(NAMED, row(RESERVE, order.order_id, delivery))
        await db.execute(TAKE_NAMED, {"sku": order.sku})
        fail_at_first(order, delivery)
        return caused(order)

    async def charge(event: StockReserved, db: AsyncConnection, delivery: Delivery) -> None:
        await db.execute(NAMED, row(CHARGE, event.order_id, delivery))

    return made(reserve, charge)


def session_shop(_: str) -> Services:
    """Through an `AsyncSession` with models, where the payments' are flushed by the store; it publishes by hand."""
    stock = Service("stock", publishes=[StockReserved])

    async def reserve(order: OrderPlaced, db: AsyncSession, delivery: Delivery) -> None:
        db.add(Effect(**row(RESERVE, order.order_id, delivery)))
        await db.execute(TAKE_NAMED, {"sku": order.sku})
        await stock.publish(caused(order), tx=db)
        fail_at_first(order, delivery)

    async def charge(event: StockReserved, db: AsyncSession, delivery: Delivery) -> None:
        db.add(Effect(**row(CHARGE, event.order_id, delivery)))

    return made(reserve, charge, stock=stock)


def sync_shop(_: str) -> Services:
    """In threads, through the `Session` of a sync engine."""

    def reserve(order: OrderPlaced, db: Session, delivery: Delivery) -> StockReserved:
        db.add(Effect(**row(RESERVE, order.order_id, delivery)))
        db.execute(TAKE_NAMED, {"sku": order.sku})
        fail_at_first(order, delivery)
        return caused(order)

    def charge(event: StockReserved, db: Session, delivery: Delivery) -> None:
        db.add(Effect(**row(CHARGE, event.order_id, delivery)))

    return made(reserve, charge)


def batch_shop(_: str) -> Services:
    """Lists of events, and an ``executemany`` for each."""

    async def reserve(
        orders: list[OrderPlaced], db: AsyncConnection, deliveries: list[Delivery]
    ) -> list[StockReserved]:
        pairs = list(zip(orders, deliveries, strict=True))
        await db.execute(NAMED, [row(RESERVE, order.order_id, delivery) for order, delivery in pairs])
        await db.execute(TAKE_NAMED, [{"sku": order.sku} for order in orders])
        for order, delivery in pairs:
            fail_at_first(order, delivery)
        return [caused(order) for order in orders]

    async def charge(events: list[StockReserved], db: AsyncConnection, deliveries: list[Delivery]) -> None:
        pairs = zip(events, deliveries, strict=True)
        await db.execute(NAMED, [row(CHARGE, event.order_id, delivery) for event, delivery in pairs])

    return made(reserve, charge, batches=True)


# ── asyncpg ─────────────────────────────────────────────────────────────────────────────────────────────────────────

NUMBERED: Final = f"INSERT INTO proof_ledger ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6)"
TAKE_NUMBERED: Final = f"{TAKE} $1"


def asyncpg_shop(_: str) -> Services:
    """Through the driver's own connection that the store lends."""

    async def reserve(order: OrderPlaced, db: asyncpg.Connection, delivery: Delivery) -> StockReserved:
        await db.execute(NUMBERED, *row(RESERVE, order.order_id, delivery).values())
        await db.execute(TAKE_NUMBERED, order.sku)
        fail_at_first(order, delivery)
        return caused(order)

    async def charge(event: StockReserved, db: asyncpg.Connection, delivery: Delivery) -> None:
        await db.execute(NUMBERED, *row(CHARGE, event.order_id, delivery).values())

    return made(reserve, charge)


def asyncpg_publishing_shop(_: str) -> Services:
    """The same, and it publishes by hand, before it fails."""
    stock = Service("stock", publishes=[StockReserved])

    async def reserve(order: OrderPlaced, db: asyncpg.Connection, delivery: Delivery) -> None:
        await db.execute(NUMBERED, *row(RESERVE, order.order_id, delivery).values())
        await db.execute(TAKE_NUMBERED, order.sku)
        await stock.publish(caused(order), tx=db)
        fail_at_first(order, delivery)

    async def charge(event: StockReserved, db: asyncpg.Connection, delivery: Delivery) -> None:
        await db.execute(NUMBERED, *row(CHARGE, event.order_id, delivery).values())

    return made(reserve, charge, stock=stock)


def statements_shop(_: str) -> Services:
    """Statements that are queued, and sent together at the end of the batch."""

    async def reserve(order: OrderPlaced, db: Statements, delivery: Delivery) -> StockReserved:
        db.execute(NUMBERED, *row(RESERVE, order.order_id, delivery).values())
        db.execute(TAKE_NUMBERED, order.sku)
        fail_at_first(order, delivery)
        return caused(order)

    async def charge(event: StockReserved, db: Statements, delivery: Delivery) -> None:
        db.execute(NUMBERED, *row(CHARGE, event.order_id, delivery).values())

    return made(reserve, charge)


def asyncpg_batch_shop(_: str) -> Services:
    """Lists of events, and an ``executemany`` for each."""

    async def reserve(
        orders: list[OrderPlaced], db: asyncpg.Connection, deliveries: list[Delivery]
    ) -> list[StockReserved]:
        pairs = list(zip(orders, deliveries, strict=True))
        await db.executemany(NUMBERED, [[*row(RESERVE, one.order_id, delivery).values()] for one, delivery in pairs])
        await db.executemany(TAKE_NUMBERED, [[order.sku] for order in orders])
        for order, delivery in pairs:
            fail_at_first(order, delivery)
        return [caused(order) for order in orders]

    async def charge(events: list[StockReserved], db: asyncpg.Connection, deliveries: list[Delivery]) -> None:
        pairs = zip(events, deliveries, strict=True)
        await db.executemany(NUMBERED, [[*row(CHARGE, one.order_id, delivery).values()] for one, delivery in pairs])

    return made(reserve, charge, batches=True)


# ── elsewhere ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _write(path: str, handler: str, order_id: str, delivery: Delivery, sku: str = "") -> None:
    """An effect elsewhere than in the store: durable at once, and nothing takes it back."""
    points.at(points.BEFORE_STATEMENT)  # which no store sees
    with closing(sqlite3.connect(path, timeout=20, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute(
            f"INSERT INTO proof_ledger ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
            tuple(row(handler, order_id, delivery).values()),
        )
        db.execute(f"{TAKE} ?", (sku,))
        db.execute("COMMIT")
    points.at(points.AFTER_STATEMENT)


def file_shop(path: str) -> Services:
    """Into a file."""

    async def reserve(order: OrderPlaced, delivery: Delivery) -> StockReserved:
        fail_at_first(order, delivery)
        _write(path, RESERVE, order.order_id, delivery, order.sku)
        return caused(order)

    async def charge(event: StockReserved, delivery: Delivery) -> None:
        _write(path, CHARGE, event.order_id, delivery)

    return made(reserve, charge)


def sync_file_shop(path: str) -> Services:
    """The same in threads."""

    def reserve(order: OrderPlaced, delivery: Delivery) -> StockReserved:
        fail_at_first(order, delivery)
        _write(path, RESERVE, order.order_id, delivery, order.sku)
        return caused(order)

    def charge(event: StockReserved, delivery: Delivery) -> None:
        _write(path, CHARGE, event.order_id, delivery)

    return made(reserve, charge)


A_BATCH: Final = 8
"""Statements of a round that there are at least, where one carries up to a batch of orders."""

SQLALCHEMY: Final = {
    "connection": Variant(connection_shop),
    "session": Variant(session_shop),
    "sync session": Variant(sync_shop),
    "batch": Variant(batch_shop, A_BATCH),
}
ASYNCPG: Final = {
    "connection": Variant(asyncpg_shop),
    "publish(tx=)": Variant(asyncpg_publishing_shop),
    "statements": Variant(statements_shop),
    "batch": Variant(asyncpg_batch_shop, A_BATCH),
}
ELSEWHERE: Final = {"async": Variant(file_shop), "sync": Variant(sync_file_shop)}
