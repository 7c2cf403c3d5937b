"""What the proof runs on: one entry for each store, as data. A new store is one more entry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg

from tidings import points
from tools.proof.handlers import ASYNCPG, ELSEWHERE, SQLALCHEMY
from tools.proof.shop import Variant
from tools.services.mariadb import MariaDB
from tools.services.postgres import Postgres
from tools.services.program import Program
from tools.services.redis import Redis

EFFECTS: Final = "effects.db"
"""The file with the ledger of effects that are not in the store."""
LEASE: Final = 1.0
"""Seconds for which a relay, or a claim of Redis, outlives its process; production waits longer."""
POLL: Final = 0.2


@dataclass(frozen=True)
class Point:
    """How a worker is killed at a named point."""

    most: int
    """It dies when it reaches the point for the first to the so-many-th time."""
    redelivers: bool = True
    """What it had open must come again; a round without is a round in which nothing was killed."""
    republishes: bool = False
    """What it had published must be published again."""
    repeats: bool = False
    """An effect may repeat here, as documented: it lies elsewhere than in the store, and is not marked yet."""


CLAIMS: Final = {
    points.BEFORE_CLAIM: Point(5),
    points.AFTER_CLAIM: Point(5),
}
STATEMENTS: Final = {
    points.BEFORE_STATEMENT: Point(60),
    points.AFTER_STATEMENT: Point(60),
}
ENDS: Final = {
    points.BEFORE_COMMIT: Point(5),
    points.AFTER_COMMIT: Point(5),
    points.BEFORE_ACK: Point(5),
    points.AFTER_ACK: Point(5, redelivers=False),
}
OUTBOX: Final = {
    points.OUTBOX_PUBLISH: Point(2, redelivers=False),
    points.OUTBOX_MARK: Point(2, redelivers=False, republishes=True),
}
REDIS_POINTS: Final = {
    points.BEFORE_CLAIM: Point(5),
    points.AFTER_CLAIM: Point(5),
    points.BEFORE_STATEMENT: Point(40, repeats=True),  # of those before it in its batch
    points.AFTER_STATEMENT: Point(40, repeats=True),
    points.BEFORE_COMMIT: Point(5, repeats=True),
    points.AFTER_COMMIT: Point(5),
    points.BEFORE_ACK: Point(5),
    points.AFTER_ACK: Point(5, redelivers=False, repeats=True),  # of the next batch, which runs by then
}
"""What becomes of a row of an outbox cannot be asked where there is none."""
SQL_POINTS: Final = {**CLAIMS, **STATEMENTS, **ENDS, **OUTBOX}


Late = Callable[[str], AbstractAsyncContextManager[Any]]
"""A transaction of the user's own on this URL: yields what `emit` takes, and commits at the end."""


@dataclass(frozen=True)
class Kind:
    """One store, on one database."""

    title: str
    server: Callable[[Path], Program] | None
    """The database server of its own, or none."""
    url: Callable[[Program | None, Path], str]
    ledger: Callable[[str, Path], str]
    """The URL under which the judge reads and prepares the ledger, with a driver of its own."""
    store: Callable[[str], Any]
    variants: Mapping[str, Variant]
    """The kinds of handlers it has; the rounds take turns with them."""
    points: Mapping[str, Point] = field(default_factory=lambda: SQL_POINTS)
    late: Late | None = None
    armed: str = ""
    """The one service that runs in the worker to be killed at a named point; the other has a process of its own."""
    effects_elsewhere: bool = False
    """Effects are written to a file beside it, and may repeat in the documented window."""
    forgets: bool = False
    """It can be made to forget what was applied; see `losses`."""
    fails_over: bool = False


def _sqlalchemy(url: str) -> Any:
    from tidings.stores.sqlalchemy import SqlAlchemyStore

    return SqlAlchemyStore(url, poll=POLL, lease=LEASE)


@asynccontextmanager
async def _sqlalchemy_late(url: str) -> AsyncIterator[Any]:
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


def _postgres(url: str) -> Any:
    from tidings.stores.postgres import PostgresStore

    return PostgresStore(url, poll=POLL, lease=LEASE)


@asynccontextmanager
async def _asyncpg_late(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close(timeout=5)


def _redis(url: str) -> Any:
    from tidings.stores.redis import RedisStore

    return RedisStore(url, lease=2 * LEASE)  # an outage of the round is shorter


def _with(url: str, driver: str) -> str:
    """The same database through another driver."""
    return f"{driver}:{url.partition(':')[2]}"


def url_of(server: Program | None, folder: Path) -> str:
    assert server is not None
    return server.url


PROMISING: Final[dict[str, Kind]] = {
    "sqlite": Kind(
        title="SQLite",
        server=None,
        url=lambda server, folder: f"sqlite:///{folder / 'shop.db'}",
        ledger=lambda url, folder: url,
        store=_sqlalchemy,
        variants=SQLALCHEMY,
    ),
    "postgres": Kind(
        title="PostgreSQL",
        server=Postgres,
        url=url_of,
        ledger=lambda url, folder: _with(url, "postgresql+psycopg"),
        store=_postgres,
        variants=ASYNCPG,
        late=_asyncpg_late,
    ),
    "postgres-sqlalchemy": Kind(
        title="PostgreSQL, SQLAlchemy",
        server=Postgres,
        url=lambda server, folder: _with(url_of(server, folder), "postgresql+asyncpg"),
        ledger=lambda url, folder: _with(url, "postgresql+psycopg"),
        store=_sqlalchemy,
        variants=SQLALCHEMY,
        late=_sqlalchemy_late,
    ),
    "mariadb": Kind(
        title="MariaDB, SQLAlchemy",
        server=MariaDB,
        url=url_of,
        ledger=lambda url, folder: _with(url, "mariadb+pymysql"),
        store=_sqlalchemy,
        variants=SQLALCHEMY,
        late=_sqlalchemy_late,
    ),
    "redis": Kind(
        title="Redis",
        server=Redis,
        url=url_of,
        ledger=lambda url, folder: f"sqlite:///{folder / EFFECTS}",
        store=_redis,
        variants=ELSEWHERE,
        points=REDIS_POINTS,
        armed="stock",
        effects_elsewhere=True,
    ),
}
