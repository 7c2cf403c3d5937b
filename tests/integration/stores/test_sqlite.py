"""What is SQLite's own: one writer, a write-ahead log, hooks of live engines, triggers that roll back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.integration.stores.handling import KINDS, NEW, apply, done, is_sync, write
from tests.integration.stores.ledger import INSERT, Where, applied, create, in_thread, key, notes, query
from tidings.errors import MisuseError
from tidings.stores.sqlalchemy import SqlAlchemyStore


@pytest.fixture
def where(path: Path) -> Where:
    return path


async def test_the_database_ending_the_transaction_by_itself_is_seen(store: SqlAlchemyStore, path: Path) -> None:
    async with store.transaction() as db:
        await db.exec_driver_sql(
            "CREATE TRIGGER no BEFORE INSERT ON ledger WHEN NEW.note = 'all' BEGIN SELECT RAISE(ROLLBACK, 'no'); END"
        )
    with pytest.raises(MisuseError, match="has ended"):
        async with store.claim([key("a")], resource=AsyncConnection, sync=False) as claim:
            with pytest.raises(IntegrityError):
                await write(claim, AsyncConnection, "all")
            with pytest.raises(MisuseError):
                await write(claim, AsyncConnection, "would commit by itself")
    assert notes(path) == applied(path) == []


async def test_an_effect_survives_the_loss_of_power(store: SqlAlchemyStore) -> None:
    """As far as this can be seen from outside: the log is synced at each commit."""
    for kind in (AsyncConnection, sa.Connection):
        async with store.claim([key(str(kind))], resource=kind, sync=is_sync(kind)) as claim:
            db: Any = claim.resource(kind)
            for pragma, wanted in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
                ask = partial(db.scalar, sa.text(f"PRAGMA {pragma}"))
                assert await (in_thread(claim, ask) if is_sync(kind) else ask()) == wanted


async def test_a_live_engine_that_would_not_sync_syncs_for_claims(path: Path) -> None:
    """What is acknowledged after the commit must be there after the loss of power, too."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")

    @sa.event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    store = SqlAlchemyStore(engine)
    await store.open()
    async with store.claim([key("a")], resource=AsyncConnection, sync=False) as claim:
        db: Any = claim.resource(AsyncConnection)
        assert await db.scalar(sa.text("PRAGMA synchronous")) == 2
    await store.close()
    await engine.dispose()


async def test_reading_first_and_writing_later_works_beside_another_writer(path: Path) -> None:
    """Trap 132: with a plain BEGIN this is "database is locked", at once."""
    store = SqlAlchemyStore(f"sqlite:///{path}", lock_timeout=30)  # the others' time, on a busy machine
    await store.open()
    create(path)

    async def count(number: int) -> None:
        async with store.claim([key(str(number))], resource=AsyncConnection, sync=False) as claim:
            db: Any = claim.resource(AsyncConnection)
            seen = await db.scalar(sa.text("SELECT count(*) FROM ledger"))
            await asyncio.sleep(0.01)
            await db.execute(INSERT, {"note": str(seen)})

    other = SqlAlchemyStore(f"sqlite:///{path}", lock_timeout=30)
    await other.open()

    async def count_there(number: int) -> None:
        async with other.transaction() as db:
            seen = await db.scalar(sa.text("SELECT count(*) FROM ledger"))
            await db.execute(INSERT, {"note": str(seen)})

    await asyncio.gather(*(count(number) for number in range(8)), *(count_there(number) for number in range(8)))
    for one in (store, other):
        await one.close()
    assert notes(path) == [str(number) for number in range(16)]


def plain(engine: AsyncEngine) -> None:
    """As SQLAlchemy leaves it."""


def recipe(engine: AsyncEngine) -> None:
    """The hooks that SQLAlchemy's documentation gives for SQLite."""

    @sa.event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine.sync_engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")


@pytest.mark.parametrize("hooks", [plain, recipe])
async def test_a_live_engine_is_used_and_stays_as_it_was(path: Path, hooks: Callable[[AsyncEngine], None]) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    hooks(engine)
    store = SqlAlchemyStore(engine, lock_timeout=0.3)
    await store.open()
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE ledger (id INTEGER PRIMARY KEY, note TEXT)")
    assert await apply(store, "a", "claimed") == NEW
    assert await apply(store, "a", "twice") == done()
    assert await apply(store, "s", "sync", Session) == NEW
    with pytest.raises(LookupError):
        async with store.claim([key("b")], resource=AsyncConnection, sync=False) as claim:
            await write(claim, AsyncConnection, "not")
            raise LookupError
    async with engine.connect() as connection:
        await connection.execute(INSERT, {"note": "rolled back"})
    async with AsyncSession(engine) as session:
        await session.execute(INSERT, {"note": "their own"})
        await session.commit()
    await store.close()
    async with engine.connect() as connection:
        assert await connection.scalar(sa.text("SELECT count(*) FROM ledger")) == 3
    await engine.dispose()
    assert notes(path) == ["claimed", "sync", "their own"]
    assert query(path, "SELECT count(*) FROM tidings_inbox") == [(2,)]


def test_it_gives_async_kinds_to_async_handlers_and_sync_ones_to_sync_handlers(tmp_path: Path) -> None:
    store = SqlAlchemyStore(f"sqlite:///{tmp_path}/x.db")
    assert [store.gives(kind, sync=False) for kind in KINDS] == [True, True, False, False]
    assert [store.gives(kind, sync=True) for kind in KINDS] == [False, False, True, True]
    assert not store.gives(int, sync=False)
