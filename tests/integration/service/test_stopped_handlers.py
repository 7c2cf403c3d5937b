"""A handler that ends its transaction is stopped, alone; its events wait for a mended one."""

from __future__ import annotations

import contextlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.unit.parts import until
from tidings import Event, Retry, Service
from tidings.testing import MemoryBroker

pytestmark = pytest.mark.proves(broker="memory", store="sqlite")

INSERT = text("INSERT INTO ledger (number) VALUES (:number)")


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "ledger"

    number: Mapped[int] = mapped_column(primary_key=True)


class Placed(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    number: int


def make(path: Path, *, order: bool, mended: bool, seen: list[int]) -> Service:
    stock = Service("stock", store=f"sqlite:///{path}", publishes=[Placed])
    kept: Literal["auto"] | None = "auto" if order else None

    @stock.on(Placed, order=kept, concurrency=2, retry=Retry(attempts=2, first=0.01))
    async def reserve(event: Placed, db: AsyncConnection) -> None:
        await db.execute(INSERT, {"number": event.number})
        if event.number == 5 and not mended:
            await db.commit()

    @stock.on(Placed, order=kept, idempotent=True)
    async def look(event: Placed) -> None:
        seen.append(event.number)

    return stock


def numbers(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM ledger ORDER BY number")]


@pytest.mark.parametrize("order", [True, False], ids=["in order", "in any order"])
async def test_P4_P12_a_handler_that_commits_is_stopped_and_nothing_of_its_events_is_lost(
    tmp_path: Path, order: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path, seen, broker = tmp_path / "shop.db", list[int](), MemoryBroker()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE ledger (number INTEGER NOT NULL)")
    events = [Placed(order_id=f"k{number % 3}", number=number) for number in range(20)]

    stock = make(path, order=order, mended=False, seen=seen)
    async with stock.running(broker=broker):
        assert not any(await stock.publish_many(events))
        (broken,) = [one for one in stock.active.workers if one.position == "stock.reserve"]
        await until(lambda: broken.trouble.startswith("stopped until a mended one starts"))
        await until(lambda: len(set(seen)) == 20)
        await until(lambda: broken.busy == broken.waiting == 0)
    assert 5 not in numbers(path)
    assert len(numbers(path)) == len(set(numbers(path)))
    assert not broker.dead_letters
    lines = [one.getMessage() for one in caplog.records if "stock.reserve is stopped" in one.getMessage()]
    assert len(lines) == 1
    assert "may not commit" in lines[0]

    async with make(path, order=order, mended=True, seen=seen).running(broker=broker):
        await until(lambda: len(numbers(path)) == 20)
        await broker.idle(10.0)
    assert numbers(path) == list(range(20))
    assert not broker.dead_letters


async def test_P7_an_error_of_a_flush_that_was_passed_over_is_one_events_end_and_stops_nobody(tmp_path: Path) -> None:
    path, broker = tmp_path / "shop.db", MemoryBroker()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE ledger (number INTEGER PRIMARY KEY)")
    stock = Service("stock", store=f"sqlite:///{path}", publishes=[Placed])

    @stock.on(Placed, order=None, retry=Retry(attempts=2, first=0.01))
    async def reserve(event: Placed, db: AsyncSession) -> None:
        db.add(Row(number=event.number))
        if event.number == 5:
            db.add(Row(number=1000))
            db.add(Row(number=1000))
            with contextlib.suppress(IntegrityError):
                await db.flush()

    async with stock.running(broker=broker):
        events = [Placed(order_id="a", number=number) for number in range(12)]
        assert not any(await stock.publish_many(events))
        await broker.idle(20.0)
        (worker,) = stock.active.workers
        assert not worker.trouble
    assert numbers(path) == [number for number in range(12) if number != 5]
    (letter,) = broker.dead_letters
    assert "passed over an error" in str(letter.headers)
