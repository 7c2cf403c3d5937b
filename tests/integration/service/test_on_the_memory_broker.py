"""Whole services on the memory broker with a real SQLite file, on a bad day: what the ledger says at the end."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.integration.shop import Placed, Reserved
from tests.unit.parts import until
from tidings import Delivery, Retry, Service
from tidings.errors import BrokerUnavailable, Dead
from tidings.testing import MemoryBroker

pytestmark = pytest.mark.proves(broker="memory", store="sqlite")

SOON = Retry(attempts=4, first=0.01, most=0.05)
KEYS, EACH = 8, 25


class BadDay:
    """Failures of a handler, from a seed: some events fail once or twice, one of each key never works."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._left: dict[tuple[str, int], int] = {}

    def strike(self, event: Placed) -> None:
        if event.number == 13:
            raise Dead("thirteen")
        left = self._left.setdefault((event.order_id, event.number), self._random.choice([0, 0, 0, 1, 2]))
        if left:
            self._left[event.order_id, event.number] = left - 1
            raise ValueError("a bad day")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE ledger (handler TEXT, key TEXT, number INTEGER)")  # and no unique key
        connection.commit()
    return path


def _ledger(database: Path, handler: str) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(
            "SELECT key, number FROM ledger WHERE handler = ? ORDER BY rowid", (handler,)
        ).fetchall()


INSERT = sa.text("INSERT INTO ledger VALUES (:handler, :key, :number)")


def _service(database: Path, bad: BadDay) -> Service:
    stock = Service("stock", store=f"sqlite:///{database}", publishes=[Placed])

    @stock.on(Placed, retry=SOON, kill_switch=None)
    async def reserve(event: Placed, db: AsyncConnection) -> Reserved:
        row = {"handler": "reserve", "key": event.order_id, "number": event.number}
        await db.execute(INSERT, row)  # first the effect, so that a failure has something to take back
        bad.strike(event)
        return Reserved(order_id=event.order_id, number=event.number)

    @stock.on(Reserved, retry=SOON, kill_switch=None)
    def count(event: Reserved, db: sa.Connection) -> None:
        db.execute(INSERT, {"handler": "count", "key": event.order_id, "number": event.number})

    return stock


class Panic(BaseException):
    """What an extension raises that broke."""


@pytest.mark.parametrize("error", [Panic("broken"), SystemExit(3)], ids=repr)
async def test_P3_P4_a_base_exception_takes_back_what_its_handler_wrote_and_ends_as_a_letter(
    database: Path, error: BaseException
) -> None:
    broker = MemoryBroker()
    stock = Service("stock", broker=broker, store=f"sqlite:///{database}", publishes=[Placed])

    def row(event: Placed, handler: str) -> dict[str, object]:
        return {"handler": handler, "key": event.order_id, "number": event.number}

    @stock.on(Placed, retry=SOON, kill_switch=None)
    async def reserve(event: Placed, db: AsyncConnection) -> None:
        await db.execute(INSERT, row(event, "reserve"))
        if event.number == 1:
            raise error

    @stock.on(Placed, retry=SOON, kill_switch=None)
    def count(event: Placed, db: sa.Connection) -> None:
        db.execute(INSERT, row(event, "count"))
        if event.number == 1:
            raise error

    @stock.on_batch(Placed, retry=SOON, kill_switch=None)
    async def total(events: list[Placed], db: AsyncConnection) -> None:
        for event in events:
            await db.execute(INSERT, row(event, "total"))
        if any(event.number == 1 for event in events):
            raise error

    async with stock.running():
        await stock.publish_many([Placed(order_id="k", number=number) for number in range(4)])
        await broker.idle()
        assert len(broker.dead_letters) == 3
        for handler in ("reserve", "count", "total"):
            assert sorted(_ledger(database, handler)) == [("k", 0), ("k", 2), ("k", 3)]
        assert not any(worker.failures or worker.trouble for worker in stock.active.workers)


async def _publish(service: Service) -> None:
    events = [Placed(order_id=f"k{key}", number=number) for number in range(EACH) for key in range(KEYS)]
    for start in range(0, len(events), 16):
        wave = events[start : start + 16]
        for _ in range(20):
            answers = await service.publish_many(wave)
            wave = [event for event, error in zip(wave, answers, strict=True) if error is not None]
            if not wave:
                break
        assert not wave


EXPECTED = sorted((f"k{key}", number) for key in range(KEYS) for number in range(EACH) if number != 13)


def _check(database: Path, broker: MemoryBroker) -> None:
    for handler in ("reserve", "count"):
        rows = _ledger(database, handler)
        assert not [row for row, times in Counter(rows).items() if times > 1], "applied twice"
        assert sorted(rows) == EXPECTED
        for key in range(KEYS):
            numbers = [number for name, number in rows if name == f"k{key}"]
            assert numbers == sorted(numbers), "out of order"
    caused = [(event.order_id, event.number) for event in broker.published(Reserved)]
    assert sorted(caused) == EXPECTED
    assert len(broker.dead_letters) == KEYS


@pytest.mark.parametrize("seed", [1, 2])
async def test_P4_P7_P8_on_a_day_of_failures_each_event_is_applied_once_and_in_order(database: Path, seed: int) -> None:
    broker = MemoryBroker()
    stock = _service(database, BadDay(seed))
    async with stock.running(broker=broker):
        broker.fail_settle(BrokerUnavailable("the answer was lost"), times=20, settled=True)
        broker.fail_publish(BrokerUnavailable("the answer was lost"), times=20, stored=True)
        await _publish(stock)
        await until(lambda: len(_ledger(database, "count")) >= len(EXPECTED), 30.0)
        await broker.idle(10.0)
    _check(database, broker)


async def test_P4_P10_a_broker_that_comes_and_goes_costs_nothing(database: Path) -> None:
    broker = MemoryBroker()
    stock = _service(database, BadDay(3))
    async with stock.running(broker=broker):
        await _publish(stock)
        for _ in range(4):
            await broker.restart(0.05)
            await until(lambda: _ledger(database, "reserve"), 10.0)
        await until(lambda: len(_ledger(database, "count")) >= len(EXPECTED), 30.0)
        await broker.idle(10.0)
    _check(database, broker)


async def test_P4_P9_a_service_that_is_stopped_and_started_again_and_again_loses_and_doubles_nothing(
    database: Path,
) -> None:
    server = MemoryBroker()
    bad = BadDay(4)
    async with _service(database, bad).running(broker=server) as stock:
        await _publish(stock)
    for part in range(1, 6):
        enough = len(EXPECTED) * part // 5
        async with _service(database, bad).running(broker=server):
            await until(lambda enough=enough: len(_ledger(database, "count")) >= enough, 30.0)  # type: ignore[misc]  # this part's
    async with _service(database, bad).running(broker=server):
        await server.idle(10.0)
    _check(database, server)


async def test_P2_a_settle_that_failed_is_made_good_by_another_delivery(database: Path) -> None:
    """What was applied and could not be acknowledged comes again, and is a duplicate then."""
    broker = MemoryBroker()
    stock = Service("stock", store=f"sqlite:///{database}", publishes=[Placed])
    seen: list[int] = []

    @stock.on(Placed, retry=SOON)
    async def reserve(event: Placed, about: Delivery, db: AsyncConnection) -> None:
        await db.execute(INSERT, {"handler": "reserve", "key": event.order_id, "number": event.number})
        seen.append(about.delivered)

    async with stock.running(broker=broker):
        broker.fail_settle(BrokerUnavailable("no answer"), times=1)
        await stock.publish(Placed(order_id="a", number=1))
        await until(lambda: seen)
        await broker.restart(0.02)
        await broker.idle(5.0)
    assert _ledger(database, "reserve") == [("a", 1)]
    assert seen == [1]
