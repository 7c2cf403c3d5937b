"""Whole services on PostgreSQL, over memory and over a real NATS: what the ledger says at the end of a bad day."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.integration.nats.server import NatsServer
from tests.integration.postgres.ledger import applied, eventually, in_transaction, notes, query, run, waiting
from tests.integration.shop import Placed, Reserved
from tests.unit.parts import until
from tidings import Retry, Service, points
from tidings.brokers import broker_from
from tidings.dead_letters import find, list_letters, redrive
from tidings.errors import Dead
from tidings.ports import Broker
from tidings.stores.postgres import PostgresStore, Statements
from tidings.testing import MemoryBroker

SOON = Retry(attempts=3, first=0.01, most=0.05)
INSERT = "INSERT INTO ledger (note) VALUES ($1)"


@pytest.fixture(
    params=[
        pytest.param("memory", marks=pytest.mark.proves(broker="memory", store="postgres")),
        pytest.param("nats", marks=pytest.mark.proves(broker="nats", store="postgres")),
    ]
)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    if request.param == "memory":
        yield MemoryBroker()
        return
    server = NatsServer(tmp_path / "nats").start()
    yield broker_from(f"{server.url}?ack_wait=2s")
    server.stop()


def once(rows: list[str]) -> set[str]:
    twice = [row for row, count in Counter(rows).items() if count > 1]
    assert not twice, f"applied twice: {twice}"
    return set(rows)


async def test_P2_P3_P4_P7_on_a_bad_day_each_event_is_applied_once_or_a_letter(broker: Broker, url: str) -> None:
    """Failing handlers, sessions cut in the middle, doubled events: in one batch with those that are well."""
    stock = Service("stock", store=PostgresStore(url, poll=0.05, lease=1.0), publishes=[Placed])
    failed: Counter[int] = Counter()
    mended = False

    @stock.on(Placed, once="number", retry=SOON)
    async def reserve(event: Placed, db: asyncpg.Connection) -> Reserved:
        await db.execute(INSERT, f"reserve {event.number}")
        failed[event.number] += 1
        if event.number == 13 and not mended:
            raise Dead("thirteen")
        if event.number % 7 == 3 and failed[event.number] == 1:
            raise ValueError("a bad moment")
        if event.number % 40 == 20 and failed[event.number] == 1:
            await asyncio.to_thread(run, url, f"SELECT pg_terminate_backend({db.get_server_pid()}, 5000)")
            await db.execute("SELECT 1")
        return Reserved(order_id=event.order_id, number=event.number)

    @stock.on(Reserved, order=None, retry=SOON)
    async def count(event: Reserved, statements: Statements) -> None:
        statements.execute(INSERT, f"count {event.number}")

    numbers = set(range(150))
    async with stock.running(broker=broker):
        for start in range(0, 150, 25):
            for _ in range(2):  # the second time under other ids: the same business key
                events = [Placed(order_id=f"k{number % 5}", number=number) for number in range(start, start + 25)]
                assert not any(await stock.publish_many(events))
        wanted = {f"{what} {number}" for what in ("reserve", "count") for number in numbers - {13}}
        await eventually(lambda: wanted <= set(notes(url)), 60)
        # Of thirteen both copies are letters, and the effect is applied once however many of them come back.
        async with asyncio.timeout(30):
            while len(letters := await list_letters(broker)) < 2:  # noqa: ASYNC110  # it takes no listener
                await asyncio.sleep(0.1)
        assert {letter.position for letter in letters} == {"stock.reserve"}
        assert once(notes(url)) == wanted
        mended = True
        for letter in await find(broker, [letter.id for letter in letters]):
            await redrive(broker, letter)
        wanted |= {"reserve 13", "count 13"}
        await eventually(lambda: wanted <= set(notes(url)), 30)
        await eventually(lambda: not waiting(url))
        await asyncio.sleep(0.3)  # whatever else would be done twice
    assert once(notes(url)) == wanted
    assert len(applied(url)) == 300
    assert in_transaction(url) == 0


async def test_P2_P3_a_settle_that_failed_is_made_good_by_a_duplicate(url: str) -> None:
    broker = MemoryBroker()
    stock = Service("stock", store=url, publishes=[Placed])

    @stock.on(Placed, retry=SOON)
    async def reserve(event: Placed, db: asyncpg.Connection) -> None:
        await db.execute(INSERT, event.order_id)

    async with stock.running(broker=broker):
        broker.fail_settle(ConnectionError("no answer"), times=1)
        await stock.publish(Placed(order_id="a", number=1))
        await until(lambda: notes(url), 30)
        await broker.restart(0.02)
        await broker.idle(20.0)
    assert notes(url) == ["a"]


@pytest.mark.parametrize("word", ["COMMIT", "ROLLBACK"])
async def test_P4_P12_a_handler_that_ends_its_transaction_is_stopped_alone_and_costs_no_event(
    url: str, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker = MemoryBroker()

    def make(mended: bool) -> Service:
        stock = Service("stock", store=url, publishes=[Placed])

        @stock.on(Placed, order=None, retry=Retry(attempts=2, first=0.01))
        async def reserve(event: Placed, db: asyncpg.Connection) -> None:
            await db.execute(INSERT, str(event.number))
            if event.number == 5 and not mended:
                await db.fetch(word)

        @stock.on(Placed, order=None, idempotent=True)
        async def look(event: Placed) -> None:
            seen.add(event.number)

        return stock

    seen: set[int] = set()
    events = [Placed(order_id="a", number=number) for number in range(20)]
    stock = make(mended=False)
    async with stock.running(broker=broker):
        assert not any(await stock.publish_many(events))
        broken = next(one for one in stock.active.workers if one.position == "stock.reserve")
        await until(lambda: "stopped" in broken.trouble and len(seen) == 20, 30)
        assert not any(await stock.publish_many([Placed(order_id="b", number=number) for number in range(20, 25)]))
        await until(lambda: len(seen) == 25, 30)  # the other handler goes on
        assert broken.busy == broken.waiting == 0
    assert once(notes(url)) <= {str(number) for number in range(20) if number != 5}
    assert not broker.dead_letters
    assert any("stock.reserve is stopped" in one.getMessage() for one in caplog.records)

    mended = make(mended=True)
    async with mended.running(broker=broker):
        await broker.idle(20.0)
    assert once(notes(url)) == {str(number) for number in range(25)}
    assert not broker.dead_letters


@pytest.mark.parametrize("asks", [True, False], ids=["asks", "returns"])
@pytest.mark.parametrize("pool", [False, True], ids=["url", "pool"])
@pytest.mark.proves(store="postgres")
async def test_P7_P12_an_event_for_which_the_server_ends_each_transaction_becomes_a_letter_and_others_go_on(
    url: str, asks: bool, pool: bool
) -> None:
    """It looks like a server that is away, for which an event would be tried without end, and its lane stand still."""
    name = url.rpartition("/")[2]
    run(url, f"ALTER DATABASE \"{name}\" SET idle_in_transaction_session_timeout = '300ms'")
    live = await asyncpg.create_pool(url, min_size=1, max_size=4) if pool else None
    try:
        broker = MemoryBroker()
        stock = Service("stock", store=PostgresStore(live or url), publishes=[Placed])

        @stock.on(Placed, order=None, retry=Retry(attempts=2, first=0.01))
        async def reserve(event: Placed, db: asyncpg.Connection) -> None:
            await db.execute(INSERT, str(event.number))
            if event.number == 1:
                await asyncio.sleep(0.6)
                if asks:
                    await db.execute("SELECT 1")

        async with stock.running(broker=broker):
            assert not any(await stock.publish_many([Placed(order_id="a", number=number) for number in range(3)]))
            await until(lambda: len(broker.dead_letters) == 1 and len(notes(url)) == 2)
        assert sorted(notes(url)) == ["0", "2"]
        (letter,) = broker.dead_letters
        reason = letter.headers["tidings-reason"]
        assert "failed 2 times" in reason or "failed twice" in reason
        assert "idle_in_transaction_session_timeout" in reason
    finally:
        if live is not None:
            await live.close()
        run(url, f'ALTER DATABASE "{name}" RESET idle_in_transaction_session_timeout')


async def test_a_queued_statement_that_fails_makes_a_letter_of_its_event_alone(url: str) -> None:
    broker = MemoryBroker()
    stock = Service("stock", store=url, publishes=[Placed])

    @stock.on(Placed, order=None, retry=Retry(attempts=2, first=0.01))
    async def reserve(event: Placed, statements: Statements) -> None:
        statements.execute(INSERT, "bad" if event.number == 5 else str(event.number))
        if event.number % 4 == 3:
            await statements.fetchval("SELECT count(*) FROM ledger")

    async with stock.running(broker=broker):
        assert not any(await stock.publish_many([Placed(order_id="a", number=number) for number in range(20)]))
        await broker.idle(20.0)
    assert once(notes(url)) == {str(number) for number in range(20) if number != 5}
    assert len(broker.dead_letters) == 1


@pytest.mark.parametrize("asks", [False, True], ids=["sent at the end", "sent before a question"])
async def test_queued_statements_are_points_of_their_handler_where_they_are_sent(
    url: str, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between them is worth a test, and the batch is at its end by then. Tidings' own are none."""
    broker = MemoryBroker()
    stock = Service("stock", store=url, publishes=[Placed])
    passed: list[str] = []

    @stock.on(Placed)
    async def reserve(event: Placed, statements: Statements) -> Reserved:
        statements.execute(INSERT, "first")
        statements.execute(INSERT, "second")  # leaves with the first
        statements.execute("UPDATE ledger SET note = $1 WHERE note = $1", "first")
        if asks:
            await statements.flush()
        return Reserved(order_id=event.order_id, number=event.number)

    async with stock.running(broker=broker):
        monkeypatch.setattr(points, "reached", passed.append)
        await stock.publish(Placed(order_id="a", number=1))
        await eventually(lambda: "after-ack" in passed)
    statements = ["before-statement", "after-statement"] * 2
    assert passed[: 2 + len(statements) + 1] == ["before-claim", "after-claim", *statements, "before-commit"]
    assert once(notes(url)) == {"first", "second"}


async def test_two_processes_on_the_same_rows_take_all_of_them_and_end(url: str) -> None:
    """Group commits in any order of rows deadlock: that is no failure of an event."""
    run(url, "CREATE TABLE stock (sku int PRIMARY KEY, taken int NOT NULL)")
    run(url, "INSERT INTO stock SELECT n, 0 FROM generate_series(0, 19) n")
    broker = MemoryBroker()
    services = []
    for name in ("one", "two"):
        stock = Service(name, store=PostgresStore(url, lock_timeout=0.2), publishes=[Placed])

        @stock.on(Placed, order=None, batch=16, retry=Retry(attempts=1))
        async def take(event: Placed, db: asyncpg.Connection) -> None:
            await db.execute("UPDATE stock SET taken = taken + 1 WHERE sku = $1", event.number * 7919 % 20)

        services.append(stock)
    async with services[0].running(broker=broker), services[1].running(broker=broker.client()):
        assert not any(await services[0].publish_many([Placed(order_id="a", number=n) for n in range(200)]))
        await broker.idle(30.0)
        await eventually(lambda: query(url, "SELECT sum(taken) FROM stock") == [(400,)], 30)
    assert broker.dead_letters == []
