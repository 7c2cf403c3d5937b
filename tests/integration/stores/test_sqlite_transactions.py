"""`transaction` and `emit`: the outbox for code outside handlers, and for transactions of the user's own."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.integration.stores.ledger import INSERT, Entry, eventually, key, message, notes, query, waiting
from tidings.delivery import Message, Route
from tidings.errors import MisuseError
from tidings.outbox.tables import key_hash
from tidings.ports import State
from tidings.stores.sqlalchemy import SqlAlchemyStore

ASYNC = [AsyncConnection, AsyncSession]
SYNC = [sa.Connection, Session]


async def write(db: Any, note: str) -> None:
    result = db.execute(INSERT, {"note": note})
    if asyncio.iscoroutine(result):
        await result


@pytest.mark.parametrize("kind", [None, *ASYNC, *SYNC])
async def test_a_transaction_commits_what_was_written_and_emitted(
    store: SqlAlchemyStore, path: Path, kind: type | None
) -> None:
    async with store.transaction(kind) as db:
        assert type(db) is (kind or AsyncConnection)
        await write(db, "a")
        await store.emit(db, [message("1"), message("2")])
        await store.emit(db, [message("3")])
        assert notes(path) == waiting(path) == []
    assert notes(path) == ["a"]
    assert waiting(path) == ["1", "2", "3"]


@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError])
@pytest.mark.parametrize("kind", [*ASYNC, *SYNC])
async def test_a_rollback_leaves_no_event(
    store: SqlAlchemyStore, path: Path, kind: type, error: type[BaseException]
) -> None:
    """Trap 137."""
    with pytest.raises(error):
        async with store.transaction(kind) as db:
            await write(db, "a")
            await store.emit(db, [message("1")])
            raise error
    assert notes(path) == waiting(path) == []


async def test_objects_of_a_session_are_flushed_before_the_commit(store: SqlAlchemyStore, path: Path) -> None:
    async with store.transaction(AsyncSession) as session:
        session.add(Entry(note="a"))
    with pytest.raises(IntegrityError):
        async with store.transaction(AsyncSession) as session:
            session.add(Entry(note="bad"))
            await store.emit(session, [message("1")])
    assert notes(path) == ["a"]
    assert waiting(path) == []


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("kind", ASYNC)
async def test_a_block_that_ends_its_transaction_itself_is_refused(
    store: SqlAlchemyStore, path: Path, kind: type, end: str
) -> None:
    with pytest.raises(MisuseError):
        async with store.transaction(kind) as db:
            await write(db, "a")
            await store.emit(db, [message("1")])
            await getattr(db, end)()
    assert notes(path) == waiting(path) == []


async def test_other_kinds_are_refused_by_name(store: SqlAlchemyStore) -> None:
    with pytest.raises(MisuseError, match="AsyncConnection, AsyncSession, Connection, Session, not int"):
        async with store.transaction(int):
            pass


async def test_an_event_emitted_with_a_claims_connection_leaves_with_the_claim(
    store: SqlAlchemyStore, path: Path
) -> None:
    async with store.claim([key("a")], resource=AsyncSession, sync=False) as claim:
        await store.emit(claim.resource(AsyncSession), [message("1")])
        await claim.emit([message("2")])
    assert waiting(path) == ["1", "2"]
    with pytest.raises(LookupError):
        async with store.claim([key("b")], resource=AsyncSession, sync=False) as claim:
            await store.emit(claim.resource(AsyncSession), [message("3")])
            raise LookupError
    assert waiting(path) == ["1", "2"]


# ---- the user's own transactions ----------------------------------------------------------------------------------


async def test_an_event_joins_the_users_own_async_transaction(store: SqlAlchemyStore, path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with engine.begin() as connection:
        await store.emit(connection, [message("1")])
        assert waiting(path) == []
    async with AsyncSession(engine) as session, session.begin():
        session.add(Entry(note="a"))
        await store.emit(session, [message("2")])
    with pytest.raises(LookupError):
        async with engine.begin() as connection:
            await store.emit(connection, [message("3")])
            raise LookupError
    async with AsyncSession(engine) as session, session.begin():
        await store.emit(session, [message("4")])
        await session.rollback()
    await engine.dispose()
    assert waiting(path) == ["1", "2"]
    assert notes(path) == ["a"]


async def test_an_event_joins_the_users_own_sync_transaction(store: SqlAlchemyStore, path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        await store.emit(connection, [message("1")])
    with Session(engine) as session, session.begin():
        session.add(Entry(note="a"))
        await store.emit(session, [message("2")])
    with Session(engine) as session, session.begin():
        await store.emit(session, [message("3")])
        session.rollback()
    engine.dispose()
    assert waiting(path) == ["1", "2"]


async def test_a_savepoint_that_is_rolled_back_takes_its_event_along(store: SqlAlchemyStore, path: Path) -> None:
    """Trap 147."""
    async with store.transaction(AsyncSession) as outside:
        await outside.execute(INSERT, {"note": "a"})
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with AsyncSession(engine) as session, session.begin():
        await store.emit(session, [message("kept")])
        nested = await session.begin_nested()
        await store.emit(session, [message("undone")])
        await nested.rollback()
    await engine.dispose()
    assert waiting(path) == ["kept"]


async def test_a_connection_outside_a_transaction_is_refused(store: SqlAlchemyStore, path: Path) -> None:
    """Traps 137 and 147: nobody would ever commit it, or it would leave before the effect."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with engine.connect() as connection:
        with pytest.raises(MisuseError, match="not in a transaction"):
            await store.emit(connection, [message("1")])
    async with AsyncSession(engine) as session:
        with pytest.raises(MisuseError, match="not in a transaction"):
            await store.emit(session, [message("1")])
    sync_engine = sa.create_engine(f"sqlite:///{path}")
    with sync_engine.connect() as sync_connection, Session(sync_engine) as sync_session:
        for tx in (sync_connection, sync_session):
            with pytest.raises(MisuseError, match="not in a transaction"):
                await store.emit(tx, [message("1")])
    sync_engine.dispose()
    await engine.dispose()
    assert waiting(path) == []


async def test_a_connection_that_commits_each_statement_by_itself_is_refused(
    store: SqlAlchemyStore, path: Path
) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(sa.text("SELECT 1"))
        assert connection.in_transaction()  # or so it says
        with pytest.raises(MisuseError, match="AUTOCOMMIT"):
            await store.emit(connection, [message("1")])
    async with AsyncSession(engine) as session:
        await session.execute(sa.text("SELECT 1"))
        with pytest.raises(MisuseError, match="AUTOCOMMIT"):
            await store.emit(session, [message("1")])
    await engine.dispose()
    assert waiting(path) == []


async def test_a_transaction_of_another_database_is_refused(store: SqlAlchemyStore, tmp_path: Path) -> None:
    """Another service's relay would publish it, or nobody."""
    for url in (f"sqlite+aiosqlite:///{tmp_path}/other.db", "sqlite+aiosqlite://"):
        engine = create_async_engine(url)
        async with engine.begin() as connection:
            with pytest.raises(MisuseError, match=r"shop\.db"):
                await store.emit(connection, [message("1")])
        await engine.dispose()


@pytest.mark.parametrize("tx", [None, "tx", 42, object()])
async def test_what_is_no_transaction_is_refused(store: SqlAlchemyStore, tx: object) -> None:
    with pytest.raises(MisuseError, match="AsyncConnection, AsyncSession, Connection or Session"):
        await store.emit(tx, [message("1")])


async def test_all_of_a_message_comes_back(store: SqlAlchemyStore, path: Path) -> None:
    sent = [
        message("plain"),
        message("no key", None),
        Message(
            id="all",
            stream="stock",
            type="stock.réservé",
            key="clé\x00",
            body=bytes(range(256)),
            headers={"tidings-key": "a%20b", "other": "é"},
            route=Route.RETRY,
            position="stock.reserve",
            due=1234.5,
        ),
        Message(id="large", stream="stock", type="stock.reserved", body=b"x" * 3_000_000),
    ]
    async with store.transaction() as db:
        await store.emit(db, sent)
    got: list[Message] = []

    async def publish(messages: Sequence[Message]) -> list[None]:
        got.extend(messages)
        return [None] * len(messages)

    relay = asyncio.create_task(store.relay(publish))
    await eventually(lambda: len(got) == len(sent))
    relay.cancel()
    await asyncio.wait({relay})
    assert got == sent


async def test_an_event_of_the_users_own_transaction_leaves_soon_after_its_commit(path: Path) -> None:
    """Nobody tells the relay about that commit; it looks often for a while."""
    store = SqlAlchemyStore(f"sqlite:///{path}", poll=3600)
    await store.open()
    got: list[Message] = []

    async def publish(messages: Sequence[Message]) -> list[None]:
        got.extend(messages)
        return [None] * len(messages)

    relay = asyncio.create_task(store.relay(publish))
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    await asyncio.sleep(0.1)
    async with asyncio.timeout(10):
        async with engine.begin() as connection:
            await store.emit(connection, [message("1")])
            await asyncio.sleep(0.2)
            assert got == []
        await eventually(lambda: got)
    await engine.dispose()
    relay.cancel()
    await asyncio.wait({relay})
    await store.close()


async def test_the_tables_are_what_the_reference_says(store: SqlAlchemyStore, path: Path) -> None:
    tables = query(path, "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'tidings%' ORDER BY name")
    assert [name for (name,) in tables] == ["tidings_inbox", "tidings_outbox", "tidings_relay", "tidings_schema"]
    assert query(path, "SELECT version FROM tidings_schema") == [(2,)]
    ((inbox,),) = query(path, "SELECT sql FROM sqlite_master WHERE name = 'tidings_inbox'")
    assert "WITHOUT ROWID" in inbox
    assert [(name, place) for _, name, _, _, _, place in query(path, "PRAGMA table_info(tidings_inbox)")] == [
        ("handler", 1),
        ("key", 2),
        ("event_id", 0),
        ("digest", 0),
        ("applied_at", 0),
    ]


async def test_tables_of_version_1_are_upgraded_and_know_what_was_applied(path: Path) -> None:
    """An event that was applied before the upgrade and comes again after it is a duplicate."""
    with closing(sqlite3.connect(path)) as old:
        old.executescript(VERSION_1)
    store = SqlAlchemyStore(f"sqlite:///{path}")
    await store.open()
    try:
        async with store.claim(
            [key("@e1", "e1"), key("order_id:7", "e2"), key("@e3", "e3")], resource=None, sync=False
        ) as claim:
            assert [one.state for one in claim.states] == [State.DONE, State.DONE, State.NEW]
        assert query(path, "SELECT key_hash FROM tidings_outbox") == [(key_hash("stock", "k"),)]
        assert query(path, "SELECT version FROM tidings_schema ORDER BY version") == [(1,), (2,)]
        indexes = query(path, "SELECT name FROM sqlite_master WHERE type = 'index' AND name LIKE 'tidings%' ORDER BY 1")
        assert indexes == [("tidings_outbox_key",), ("tidings_outbox_parked",)]
    finally:
        await store.close()


VERSION_1 = """
CREATE TABLE tidings_inbox (handler TEXT NOT NULL, key TEXT NOT NULL, event_id TEXT NOT NULL, digest BLOB NOT NULL,
    applied_at DOUBLE NOT NULL, PRIMARY KEY (handler, key)) WITHOUT ROWID;
CREATE TABLE tidings_outbox (id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, message_id TEXT NOT NULL,
    stream TEXT NOT NULL, type TEXT NOT NULL, key TEXT, route TEXT NOT NULL, position TEXT NOT NULL, due DOUBLE,
    headers TEXT NOT NULL, body BLOB NOT NULL, created_at DOUBLE NOT NULL, attempts INTEGER DEFAULT '0' NOT NULL,
    error TEXT, retry_at DOUBLE DEFAULT '0' NOT NULL, parked BOOLEAN DEFAULT 0 NOT NULL);
CREATE INDEX tidings_outbox_held ON tidings_outbox (stream, "key") WHERE retry_at > 0;
CREATE TABLE tidings_relay (name VARCHAR(64) NOT NULL PRIMARY KEY, owner TEXT NOT NULL, expires_at DOUBLE NOT NULL);
CREATE TABLE tidings_schema (version INTEGER NOT NULL PRIMARY KEY, made_at DOUBLE NOT NULL);
INSERT INTO tidings_outbox (message_id, stream, type, key, route, position, headers, body, created_at)
    VALUES ('m', 'stock', 'stock.reserved', 'k', 'event', '', '{}', x'00', 0);
INSERT INTO tidings_relay VALUES ('outbox', '', 0);
INSERT INTO tidings_schema VALUES (1, 0);
INSERT INTO tidings_inbox VALUES ('stock.reserve', 'e1', 'e1', x'00', 1);
INSERT INTO tidings_inbox VALUES ('stock.reserve', 'order_id:7', 'e2', x'00', 1);
"""
