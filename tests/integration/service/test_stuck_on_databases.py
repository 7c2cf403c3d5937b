"""A handler that does not end has its transaction closed under its hands: what it does later is part of nothing."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from tests.integration.shop import Placed, Reserved
from tests.unit.parts import until
from tidings import Retry, Service
from tidings.ports import Store
from tidings.stores.postgres import PostgresStore
from tidings.stores.sqlalchemy import SqlAlchemyStore
from tidings.testing import MemoryBroker

TAKE = sa.text("INSERT INTO ledger (number, note) VALUES (:number, :note)")


class Kind(NamedTuple):
    """A database, and how its handlers reach it."""

    name: str
    database: str
    wants: type
    sleep: str = ""
    """A statement that takes longer than any test."""
    raw: bool = False
    """What it does at last, it does past SQLAlchemy."""
    in_statement: bool = False
    """It is in the middle of that one that the handler does not end."""


KINDS = [
    pytest.param(kind, id=kind.name, marks=pytest.mark.proves(broker="memory", store=store))
    for store, between in [
        ("sqlite", Kind("sqlite-async", "sqlite", AsyncConnection)),
        ("sqlite", Kind("sqlite-session", "sqlite", AsyncSession)),
        ("sqlite", Kind("sqlite-thread", "sqlite", sa.Connection)),
        ("sqlite", Kind("sqlite-thread-session", "sqlite", Session)),
        ("sqlite", Kind("sqlite-thread-raw", "sqlite", sa.Connection, raw=True)),
        ("postgres", Kind("asyncpg", "postgres", asyncpg.Connection, "SELECT pg_sleep(60)")),
        ("postgres", Kind("asyncpg-pool", "postgres-pool", asyncpg.Connection, "SELECT pg_sleep(60)")),
        ("postgres", Kind("postgres-async", "postgres", AsyncConnection, "SELECT pg_sleep(60)")),
        ("postgres", Kind("postgres-thread", "postgres", sa.Connection, "SELECT pg_sleep(60)")),
        ("mariadb", Kind("mariadb-async", "mariadb", AsyncConnection, "SELECT SLEEP(60)")),
        ("mariadb", Kind("mariadb-thread", "mariadb", sa.Connection, "SELECT SLEEP(60)")),
    ]
    for kind in [between, between._replace(name=f"{between.name}-in-a-statement", in_statement=True)]
    if kind.sleep or not kind.in_statement
]


class Place:
    """A database with a ledger, without a unique key that would hide a double, and a store on it."""

    def __init__(self, kind: Kind, engine: sa.Engine, store: Callable[[], Store | str]) -> None:
        self.kind, self._engine, self.store = kind, engine, store
        with engine.begin() as connection:
            connection.execute(sa.text("DROP TABLE IF EXISTS ledger"))
            connection.execute(sa.text("CREATE TABLE ledger (number INTEGER, note VARCHAR(20))"))

    def applied(self) -> Counter[str]:
        with self._engine.connect() as connection:
            rows = connection.execute(sa.text("SELECT number, note FROM ledger"))
            return Counter(f"{note} {number}" for number, note in rows)


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    kind: Kind = request.param
    if kind.database == "sqlite":
        url = f"sqlite:///{tmp_path}/shop.db"
        engine = sa.create_engine(url)
        yield Place(kind, engine, lambda: url)
        engine.dispose()
        return
    server = str(request.getfixturevalue("mariadb_url" if kind.database == "mariadb" else "postgres_url"))
    scheme = "mariadb+pymysql" if kind.database == "mariadb" else "postgresql+psycopg"
    engine = sa.create_engine(sa.make_url(server).set(drivername=scheme))
    pool: asyncpg.Pool[asyncpg.Record] | None = None
    if kind.database == "postgres-pool":
        pool = await asyncpg.create_pool(server, min_size=1, max_size=4)
        found: Store | str = PostgresStore(pool)
    elif kind.wants is asyncpg.Connection:
        found = PostgresStore(server)
    else:
        found = SqlAlchemyStore(server.replace("postgresql:", "postgresql+psycopg:"), lock_timeout=1.0)
    yield Place(kind, engine, lambda: found)
    if pool is not None:
        pool.terminate()
    engine.dispose()


class Hands:
    """What a handler does not let go of until the end of the test."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.late: list[BaseException | str] = []
        """What became of what a handler did afterwards."""

    async def hold(self) -> None:
        while not self.free.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                pass


@pytest.fixture
def hands() -> Iterator[Hands]:
    hands = Hands()
    yield hands
    hands.free.set()


async def say(db: Any, number: int, note: str) -> None:
    if isinstance(db, asyncpg.Connection) or hasattr(db, "fetchval"):
        await db.execute("INSERT INTO ledger (number, note) VALUES ($1, $2)", number, note)
    else:
        await db.execute(TAKE, {"number": number, "note": note})


def handlers(kind: Kind, hands: Hands) -> tuple[Callable[..., Any], list[int]]:
    """A handler that does not end at its first attempt for number 2, and writes once more when it is let go."""
    begun: list[int] = []

    async def wait(event: Placed, db: Any) -> Reserved:
        begun.append(event.number)
        await say(db, event.number, "took")
        if event.number == 2 and begun.count(2) == 1:
            if kind.in_statement:
                statement = kind.sleep if kind.wants is asyncpg.Connection else sa.text(kind.sleep)
                asked = asyncio.ensure_future(db.execute(statement))
                while not asked.done():
                    try:
                        await asyncio.wait({asked})
                    except asyncio.CancelledError:
                        pass
                hands.late.append(asked.exception() or "answered")
            else:
                await hands.hold()
            try:
                await say(db, event.number, "late")
                hands.late.append("written")
            except BaseException as error:
                hands.late.append(error)
                raise
        return Reserved(order_id=event.order_id, number=event.number)

    def block(event: Placed, db: Any) -> Reserved:
        begun.append(event.number)
        db.execute(TAKE, {"number": event.number, "note": "took"})
        if event.number == 2 and begun.count(2) == 1:
            try:
                if kind.in_statement:
                    db.execute(sa.text(kind.sleep))
                else:
                    hands.free.wait(60)
                if kind.raw:
                    db.connection.driver_connection.execute("INSERT INTO ledger VALUES (2, 'late')")
                else:
                    db.execute(TAKE, {"number": event.number, "note": "late"})
                hands.late.append("written")
            except BaseException as error:
                hands.late.append(error)
                raise
        return Reserved(order_id=event.order_id, number=event.number)

    chosen: Callable[..., Any] = block if kind.wants in (sa.Connection, Session) else wait
    chosen.__annotations__ |= {"event": Placed, "db": kind.wants, "return": Reserved}
    return chosen, begun


async def test_P4_P12_a_handler_that_does_not_end_is_applied_once_and_stops_nobody(place: Place, hands: Hands) -> None:
    broker = MemoryBroker()
    stock = Service("stock", store=place.store(), publishes=[Placed])
    handler, begun = handlers(place.kind, hands)
    rules: dict[str, Any] = {"timeout": 1.0, "abandon_after": 1.0, "retry": Retry(attempts=5, first=0.05, most=0.1)}
    stock.on(Placed, name="reserve", **rules)(handler)
    async with stock.running(broker=broker):
        (worker,) = stock.active.workers
        assert not any(
            await stock.publish_many([Placed(order_id=order, number=number) for number, order in enumerate("abc", 1)])
        )
        await stock.publish(Placed(order_id="b", number=4))
        await until(lambda: len(broker.published(Reserved)) == 4, 60.0)
        assert worker.left_behind[1] == 1
        once = {f"took {number}": 1 for number in (1, 2, 3, 4)}
        assert place.applied() == once
        assert begun.index(4) > len(begun) - 1 - begun[::-1].index(2), "what follows in its key came behind it"
        hands.free.set()
        await until(lambda: worker.left_behind == (0, 1), 30.0)
        assert hands.late
        assert "written" not in hands.late, "its connection was taken away"
        await broker.idle()
        assert not worker.trouble
    assert place.applied() == once
    assert Counter(event.number for event in broker.published(Reserved)) == {1: 1, 2: 1, 3: 1, 4: 1}
    assert not broker.dead_letters
