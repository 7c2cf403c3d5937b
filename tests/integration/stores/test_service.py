"""Whole services on SQLAlchemy's databases, over memory and over a real NATS: what the ledger says after a bad day."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from tests.integration.nats.server import NatsServer
from tests.integration.shop import Placed, Reserved
from tests.integration.stores.ledger import INSERT, Entry, Where, applied, create, eventually, notes, query, waiting
from tidings import Retry, Service
from tidings.brokers import broker_from
from tidings.dead_letters import find, list_letters, redrive
from tidings.errors import Dead
from tidings.ports import Broker
from tidings.stores.sqlalchemy import SqlAlchemyStore
from tidings.testing import MemoryBroker

SOON = Retry(attempts=3, first=0.01, most=0.05)
CASES = [
    pytest.param(place, broker, id=f"{place}-{broker}", marks=pytest.mark.proves(broker=broker, store=store))
    for place, store, broker in [
        ("postgresql", "postgres", "memory"),
        ("mariadb", "mariadb", "memory"),
        ("mariadb", "mariadb", "nats"),
    ]
]


@pytest.fixture
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


async def cut_off(where: str, db: AsyncConnection) -> None:
    """End the session in the middle of its transaction, from outside."""
    if "mariadb" in where:
        number = await db.scalar(sa.text("SELECT connection_id()"))
        await asyncio.to_thread(query, where, f"KILL {number}")
    else:
        number = await db.scalar(sa.text("SELECT pg_backend_pid()"))
        await asyncio.to_thread(query, where, f"SELECT pg_terminate_backend({number}, 5000)")


@pytest.mark.parametrize(("where", "broker"), CASES, indirect=True)
async def test_P2_P3_P4_P7_on_a_bad_day_each_event_is_applied_once_or_a_letter(where: str, broker: Broker) -> None:
    """Failing handlers, sessions cut in the middle, doubled events: in one batch with those that are well."""
    create(where)
    stock = Service("stock", store=SqlAlchemyStore(where, poll=0.05, lease=1.0), publishes=[Placed])
    failed: Counter[int] = Counter()
    mended = False

    @stock.on(Placed, once="number", retry=SOON)
    async def reserve(event: Placed, db: AsyncConnection) -> Reserved:
        await db.execute(INSERT, {"note": f"reserve {event.number}"})
        failed[event.number] += 1
        if event.number == 13 and not mended:
            raise Dead("thirteen")
        if event.number % 7 == 3 and failed[event.number] == 1:
            raise ValueError("a bad moment")
        if event.number % 40 == 20 and failed[event.number] == 1:
            await cut_off(where, db)
            await db.execute(sa.text("SELECT 1"))
        return Reserved(order_id=event.order_id, number=event.number)

    @stock.on(Reserved, order=None, retry=SOON)
    async def count(event: Reserved, session: AsyncSession) -> None:
        session.add(Entry(note=f"count {event.number}"))

    numbers = set(range(100))
    async with stock.running(broker=broker):
        for start in range(0, 100, 25):
            for _ in range(2):  # the second time under other ids: the same business key
                events = [Placed(order_id=f"k{number % 5}", number=number) for number in range(start, start + 25)]
                assert not any(await stock.publish_many(events))
        wanted = {f"{what} {number}" for what in ("reserve", "count") for number in numbers - {13}}
        await eventually(lambda: wanted <= set(notes(where)), 60)
        # Of thirteen both copies are letters, and the effect is applied once however many of them come back.
        async with asyncio.timeout(30):
            while len(letters := await list_letters(broker)) < 2:  # noqa: ASYNC110  # it takes no listener
                await asyncio.sleep(0.1)
        assert {letter.position for letter in letters} == {"stock.reserve"}
        assert once(notes(where)) == wanted
        mended = True
        for letter in await find(broker, [letter.id for letter in letters]):
            await redrive(broker, letter)
        wanted |= {"reserve 13", "count 13"}
        await eventually(lambda: wanted <= set(notes(where)), 30)
        await eventually(lambda: not waiting(where))
        await asyncio.sleep(0.3)  # whatever else would be done twice
    assert once(notes(where)) == wanted
    assert len(applied(where)) == 200


@pytest.mark.parametrize(("where", "broker"), CASES[:2], indirect=True)
async def test_two_services_on_the_same_rows_take_all_of_them_and_end(where: Where, broker: MemoryBroker) -> None:
    """Group commits in any order of rows deadlock: that is no failure of an event, and each is seen to be retried."""
    create(where)
    for number in range(10):
        query(where, f"INSERT INTO ledger (note) VALUES ('{number}:')")
    services = []
    for name in ("one", "two"):
        stock = Service(name, store=SqlAlchemyStore(str(where), lock_timeout=1), publishes=[Placed])

        @stock.on(Placed, order=None, batch=16, retry=Retry(attempts=1))
        async def take(event: Placed, db: AsyncConnection) -> None:
            row = f"{event.number * 7919 % 10}:%"
            add = sa.text("UPDATE ledger SET note = concat(note, 'x') WHERE note LIKE :row")
            await db.execute(add, {"row": row})

        services.append(stock)
    async with services[0].running(broker=broker), services[1].running(broker=broker.client()):
        assert not any(await services[0].publish_many([Placed(order_id="a", number=n) for n in range(100)]))
        await broker.idle(60.0)
        await eventually(lambda: sum(len(note) - 2 for note in notes(where)) == 200, 30)
    assert broker.dead_letters == []


IDLE = {
    "postgresql": ("ALTER ROLE CURRENT_USER SET {} = '1s'", "ALTER ROLE CURRENT_USER RESET {}"),
    "mariadb": ("SET GLOBAL {} = 1", "SET GLOBAL {} = DEFAULT"),
}


@pytest.mark.parametrize("asks", [True, False], ids=["asks", "returns"])
@pytest.mark.parametrize(
    ("where", "driver", "setting"),
    [
        pytest.param(store, driver, setting, id=driver, marks=pytest.mark.proves(broker="memory", store=proves))
        for store, driver, setting, proves in [
            ("postgresql", "asyncpg", "idle_in_transaction_session_timeout", "postgres"),
            ("postgresql", "psycopg", "idle_in_transaction_session_timeout", "postgres"),
            ("mariadb", "aiomysql", "idle_transaction_timeout", "mariadb"),
        ]
    ],
    indirect=["where"],
)
async def test_P7_P12_an_event_for_which_the_server_ends_each_transaction_becomes_a_letter_and_others_go_on(
    where: str, driver: str, setting: str, asks: bool
) -> None:
    """It looks like a server that is away, for which an event would be tried without end, and its lane stand still."""
    create(where)
    begin, end = IDLE[where.partition("+")[0]]
    query(where, begin.format(setting))
    try:
        broker = MemoryBroker()
        url = where.replace("+asyncpg:", f"+{driver}:")
        stock = Service("stock", store=SqlAlchemyStore(url), publishes=[Placed])

        @stock.on(Placed, order=None, retry=Retry(attempts=2, first=0.01))
        async def reserve(event: Placed, db: AsyncConnection) -> None:
            await db.execute(INSERT, {"note": str(event.number)})
            if event.number == 1:
                await asyncio.sleep(1.5)
                if asks:
                    await db.execute(sa.text("SELECT 1"))

        async with stock.running(broker=broker):
            assert not any(await stock.publish_many([Placed(order_id="a", number=number) for number in range(3)]))
            await eventually(lambda: len(broker.dead_letters) == 1 and len(notes(where)) == 2, 30)
        assert sorted(notes(where)) == ["0", "2"]
        (letter,) = broker.dead_letters
        assert f"its {setting} is 1 s" in letter.headers["tidings-reason"]
    finally:
        query(where, end.format(setting))
