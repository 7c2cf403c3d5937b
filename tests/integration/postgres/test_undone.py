"""An event that fails without having touched the transaction of its batch takes nobody back with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from io import BytesIO
from typing import Any, Literal

import asyncpg
import pytest

from tests.integration.postgres.conftest import Opens
from tests.integration.postgres.ledger import applied, notes, query
from tests.integration.shop import Placed, Reserved
from tidings import Retry, Service
from tidings.stores.postgres import PostgresStore, Statements
from tidings.testing import MemoryBroker

INSERT = "INSERT INTO ledger (note) VALUES ($1)"
BAD = frozenset({5, 6, 13})
Handler = Callable[..., Any]
Make = Callable[[Counter[int], Service], Handler]


@pytest.fixture(autouse=True)
def _whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, no batch ends before all that wait are in it."""
    monkeypatch.setattr("tidings.calls.BATCH_SECONDS", 60.0)


def at_once(calls: Counter[int], stock: Service) -> Handler:
    async def reserve(event: Placed, db: asyncpg.Connection) -> None:
        calls[event.number] += 1
        if event.number in BAD:
            raise ValueError("no")
        await db.execute(INSERT, str(event.number))

    return reserve


def queued(calls: Counter[int], stock: Service) -> Handler:
    async def reserve(event: Placed, db: Statements) -> None:
        calls[event.number] += 1
        db.execute(INSERT, str(event.number))
        if event.number in BAD:
            raise ValueError("no")

    return reserve


def with_an_event(calls: Counter[int], stock: Service) -> Handler:
    async def reserve(event: Placed, db: asyncpg.Connection) -> None:
        calls[event.number] += 1
        await stock.publish(Reserved(order_id=event.order_id, number=event.number), tx=db)
        if event.number in BAD:
            raise ValueError("no")
        await db.execute(INSERT, str(event.number))

    return reserve


def after_a_statement(calls: Counter[int], stock: Service) -> Handler:
    async def reserve(event: Placed, db: asyncpg.Connection) -> None:
        calls[event.number] += 1
        await db.execute(INSERT, str(event.number))
        if event.number in BAD:
            raise ValueError("no")

    return reserve


def after_an_error_passed_over(calls: Counter[int], stock: Service) -> Handler:
    async def reserve(event: Placed, db: asyncpg.Connection) -> None:
        calls[event.number] += 1
        if event.number in BAD:
            try:
                await db.execute("SELECT 1 / 0")
            except asyncpg.DivisionByZeroError:
                raise ValueError("no") from None
        await db.execute(INSERT, str(event.number))

    return reserve


def after_a_question(calls: Counter[int], stock: Service) -> Handler:
    async def reserve(event: Placed, db: Statements) -> None:
        calls[event.number] += 1
        db.execute(INSERT, str(event.number))
        if event.number in BAD:
            await db.fetchval("SELECT 1")
            raise ValueError("no")

    return reserve


def after_a_copy(calls: Counter[int], stock: Service) -> Handler:
    async def reserve(event: Placed, db: asyncpg.Connection) -> None:
        calls[event.number] += 1
        await db.copy_to_table("ledger", source=BytesIO(b"%d\n" % event.number), columns=["note"])
        if event.number in BAD:
            raise ValueError("no")

    return reserve


async def handled(store: PostgresStore, make: Make, *, order: Literal["key"] | None) -> tuple[Counter[int], list[int]]:
    """How often each event was handled until all is quiet, and what was published."""
    calls: Counter[int] = Counter()
    stock = Service("stock", store=store, publishes=[Placed, Reserved])
    stock.on(Placed, name="reserve", order=order, kill_switch=None, retry=Retry(attempts=1))(make(calls, stock))
    return calls, await said_by(stock)


async def said_by(stock: Service) -> list[int]:
    """What it publishes of twenty events, of which the bad ones die."""
    said: list[int] = []
    broker = MemoryBroker()

    @stock.on(Reserved, idempotent=True)
    async def hear(event: Reserved) -> None:
        said.append(event.number)

    async with stock.running(broker=broker):
        assert not any(await stock.publish_many([Placed(order_id=f"k{n % 7}", number=n) for n in range(20)]))
        await broker.idle(20.0)
    assert len(broker.dead_letters) == len(BAD)
    return sorted(said)


@pytest.mark.parametrize("order", ["key", None])
@pytest.mark.parametrize("make", [at_once, queued, with_an_event])
async def test_P4_an_event_that_left_nothing_in_the_transaction_takes_nobody_back(
    opens: Opens, url: str, make: Make, order: Literal["key"] | None
) -> None:
    calls, said = await handled(await opens(), make, order=order)
    good = {number for number in range(20) if number not in BAD}
    assert sorted(map(int, notes(url))) == sorted(good)
    assert calls == dict.fromkeys(range(20), 1), "each was handled once, the good ones too"
    assert said == (sorted(good) if make is with_an_event else []), "what those published that failed does not leave"
    assert len(applied(url)) == len(good), "the keys of those that failed were given back"


@pytest.mark.parametrize(
    "make",
    [
        after_a_statement,
        after_an_error_passed_over,
        after_a_question,
        after_a_copy,
    ],
)
async def test_P4_what_an_event_sent_before_it_failed_is_rolled_back(opens: Opens, url: str, make: Make) -> None:
    calls, _ = await handled(await opens(), make, order=None)
    good = {number for number in range(20) if number not in BAD}
    assert sorted(map(int, notes(url))) == sorted(good)
    assert any(calls[number] > 1 for number in good), "those before it are handled again"


async def in_lists(store: PostgresStore, kind: str) -> tuple[list[int], list[int]]:
    """How long the lists were that a batch handler was given, and what it caused."""
    lengths: list[int] = []
    stock = Service("stock", store=store, publishes=[Placed, Reserved])

    def refuse(events: list[Placed]) -> None:
        if bad := [event.number for event in events if event.number in BAD]:
            raise ValueError(f"not {min(bad)}")

    def took(events: list[Placed]) -> list[Reserved]:
        lengths.append(len(events))
        return [Reserved(order_id=event.order_id, number=event.number) for event in events]

    async def early(events: list[Placed], db: asyncpg.Connection) -> list[Reserved]:
        caused = took(events)
        refuse(events)
        await db.executemany(INSERT, [(str(event.number),) for event in events])
        return caused

    async def late(events: list[Placed], db: asyncpg.Connection) -> list[Reserved]:
        caused = took(events)
        await db.executemany(INSERT, [(str(event.number),) for event in events])
        refuse(events)
        return caused

    async def statements(events: list[Placed], db: Statements) -> list[Reserved]:
        caused = took(events)
        for event in events:
            db.execute(INSERT, str(event.number))
        refuse(events)
        return caused

    kinds: dict[str, Any] = {"early": early, "late": late, "statements": statements}
    rules: dict[str, Any] = {"order": None, "concurrency": 1, "kill_switch": None, "retry": Retry(attempts=1)}
    stock.on_batch(Placed, name="reserve", **rules)(kinds[kind])
    return lengths, await said_by(stock)


@pytest.mark.parametrize(("kind", "transactions"), [("early", 1), ("statements", 1), ("late", 5)])
async def test_P4_a_batch_that_failed_before_it_sent_anything_keeps_its_other_parts_in_one_transaction(
    opens: Opens, url: str, kind: str, transactions: int
) -> None:
    lengths, said = await in_lists(await opens(), kind)
    good = [number for number in range(20) if number not in BAD]
    assert sorted(map(int, notes(url))) == said == good
    assert len(applied(url)) == len(good), "the keys of those that failed were given back"
    ((found,),) = query(url, "SELECT count(DISTINCT xmin::text) FROM tidings_inbox")
    assert (found >= transactions) if kind == "late" else (found == transactions), lengths


@pytest.mark.parametrize("make", [at_once, queued, after_a_statement])
async def test_P4_on_a_connection_of_a_users_pool_nothing_half_done_stays(opens: Opens, url: str, make: Make) -> None:
    await handled(await opens(pool=5), make, order=None)
    assert sorted(map(int, notes(url))) == sorted(number for number in range(20) if number not in BAD)
