"""Batch handlers of whole services on a real SQLite file: what the ledger says when some rows are refused."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.integration.nats.server import NatsServer
from tests.integration.shop import Placed, Reserved
from tests.unit.parts import until
from tidings import FailedEvents, Retry, Service
from tidings.brokers import broker_from
from tidings.errors import BrokerUnavailable
from tidings.ports import Broker
from tidings.testing import MemoryBroker

KEYS, EACH = 8, 30
BAD = {("k1", 3), ("k5", 17)}
INSERT = text("INSERT INTO ledger (key, number) VALUES (:key, :number)")


@pytest.fixture(
    params=[
        pytest.param("memory", marks=pytest.mark.proves(broker="memory", store="sqlite")),
        pytest.param("nats", marks=pytest.mark.proves(broker="nats", store="sqlite")),
    ]
)
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    if request.param == "memory":
        broker = MemoryBroker()
        # What is applied comes again, because the broker does not hear of it.
        broker.fail_settle(BrokerUnavailable("lost"), times=40)
        yield broker
        return
    server = NatsServer(tmp_path / "server").start()
    try:
        yield broker_from(server.url)
    finally:
        server.stop()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE ledger (key TEXT, number INTEGER CHECK (number < 1000))")  # no unique key
        connection.commit()
    return path


def ledger(database: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT key, number FROM ledger ORDER BY rowid").fetchall()


def row(order: Placed) -> dict[str, object]:
    bad = (order.order_id, order.number) in BAD
    return {"key": order.order_id, "number": order.number + 1000 * bad}


SIZES: list[int] = []


async def reserve(orders: list[Placed], db: AsyncConnection) -> list[Reserved]:
    SIZES.append(len(orders))
    await db.execute(INSERT, [row(order) for order in orders])
    return [Reserved(order_id=order.order_id, number=order.number) for order in orders]


def reserve_in_a_thread(orders: list[Placed], db: Connection) -> list[Reserved]:
    SIZES.append(len(orders))
    db.execute(INSERT, [row(order) for order in orders])
    return [Reserved(order_id=order.order_id, number=order.number) for order in orders]


def refused(orders: list[Placed]) -> FailedEvents | None:
    """Says which rows are bad; a fault of the handler's own, which it writes all others before."""
    bad = [(order, ValueError("no stock")) for order in orders if (order.order_id, order.number) in BAD]
    return FailedEvents(bad) if bad else None


async def reserve_and_name(orders: list[Placed], db: AsyncConnection) -> list[Reserved]:
    SIZES.append(len(orders))
    if rows := [row(order) for order in orders if (order.order_id, order.number) not in BAD]:
        await db.execute(INSERT, rows)
    if (error := refused(orders)) is not None:
        raise error
    return [Reserved(order_id=order.order_id, number=order.number) for order in orders]


def declare(store: str, broker: Broker, handler: Callable[..., Any]) -> tuple[Service, list[tuple[str, int]]]:
    """A service with the batch handler, and one that keeps what it caused."""
    stock = Service("stock", broker=broker, store=store, publishes=[Placed, Reserved])
    retry = Retry(attempts=3, first=0.01, most=0.02)
    stock.on_batch(Placed, name="reserve", retry=retry, batch=64)(handler)
    heard: list[tuple[str, int]] = []

    @stock.on(Reserved, idempotent=True)
    async def hear(reserved: Reserved) -> None:
        heard.append((reserved.order_id, reserved.number))

    SIZES.clear()
    return stock, heard


EVENTS = [(f"k{key}", number) for number in range(EACH) for key in range(KEYS)]
EXPECTED = set(EVENTS) - BAD


async def publish(broker: Broker) -> None:
    """Before there is anybody who takes them, so that there are enough of them for a batch."""
    events = [Placed(order_id=key, number=number) for key, number in EVENTS]
    front = Service("front", broker=broker, publishes=[Placed])
    async with front.running():
        assert await front.publish_many(events) == [None] * len(events)


async def nothing_waits(stock: Service) -> None:
    await until(lambda: stock.active.workers[0].waiting == 0 and stock.active.workers[0].busy == 0, 60)


def judge(rows: list[tuple[str, int]], heard: list[tuple[str, int]]) -> None:
    assert sorted(rows) == sorted(EXPECTED)
    for key in range(KEYS):
        numbers = [number for name, number in rows if name == f"k{key}"]
        assert numbers == sorted(numbers)
    assert set(heard) == EXPECTED
    assert max(SIZES) > 8


@pytest.mark.parametrize("handler", [reserve, reserve_in_a_thread, reserve_and_name])
async def test_P3_P4_P8_of_batches_with_refused_rows_each_other_event_is_applied_once_and_in_order(
    broker: Broker, database: Path, handler: Callable[..., Any]
) -> None:
    stock, heard = declare(f"sqlite:///{database}", broker, handler)
    await publish(broker)
    async with stock.running():
        await until(lambda: len(ledger(database)) >= len(EXPECTED) and len(set(heard)) >= len(EXPECTED), 60)
        await nothing_waits(stock)
    async with stock.running():  # what was applied and not heard of comes again
        await asyncio.sleep(0.1)
        await nothing_waits(stock)
    judge(ledger(database), heard)


async def reserve_in_postgres(orders: list[Placed], db: asyncpg.Connection) -> list[Reserved]:
    SIZES.append(len(orders))
    rows = [tuple(row(order).values()) for order in orders]
    await db.executemany("INSERT INTO ledger (key, number) VALUES ($1, $2)", rows)
    return [Reserved(order_id=order.order_id, number=order.number) for order in orders]


async def name_in_postgres(orders: list[Placed], db: asyncpg.Connection) -> list[Reserved]:
    SIZES.append(len(orders))
    rows = [(order.order_id, order.number) for order in orders if (order.order_id, order.number) not in BAD]
    await db.executemany("INSERT INTO ledger (key, number) VALUES ($1, $2)", rows)
    if (error := refused(orders)) is not None:
        raise error
    return [Reserved(order_id=order.order_id, number=order.number) for order in orders]


@pytest.mark.proves(broker="memory", store="postgres")
@pytest.mark.parametrize("handler", [reserve_in_postgres, name_in_postgres])
async def test_P3_P4_P8_of_batches_with_refused_rows_the_rest_is_applied_once_and_in_order_in_postgresql(
    postgres_url: str, handler: Callable[..., Any]
) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute(
            "CREATE TABLE ledger (id SERIAL, key TEXT, number INTEGER CHECK (number < 1000))"  # no unique key
        )
        broker = MemoryBroker()
        stock, heard = declare(postgres_url, broker, handler)
        await publish(broker)
        async with stock.running():
            await until(lambda: len(set(heard)) >= len(EXPECTED), 60)
            await nothing_waits(stock)
        rows = await connection.fetch("SELECT key, number FROM ledger ORDER BY id")
        judge([(one["key"], one["number"]) for one in rows], heard)
    finally:
        await connection.close()
