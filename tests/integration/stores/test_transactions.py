"""`transaction` and `emit`: the outbox for code outside handlers, and for transactions of the user's own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.integration.stores.ledger import (
    INSERT,
    Entry,
    Where,
    eventually,
    key,
    live_url_of,
    message,
    notes,
    sync_url_of,
    temporary,
    url_of,
    waiting,
)
from tidings.delivery import Message, Route
from tidings.errors import MisuseError
from tidings.stores.sqlalchemy import SqlAlchemyStore

ASYNC = [AsyncConnection, AsyncSession]
SYNC = [sa.Connection, Session]


async def write(db: Any, note: str) -> None:
    result = db.execute(INSERT, {"note": note})
    if asyncio.iscoroutine(result):
        await result


@pytest.mark.parametrize("kind", [None, *ASYNC, *SYNC])
async def test_a_transaction_commits_what_was_written_and_emitted(
    store: SqlAlchemyStore, where: Where, kind: type | None
) -> None:
    async with store.transaction(kind) as db:
        assert type(db) is (kind or AsyncConnection)
        await write(db, "a")
        await store.emit(db, [message("1"), message("2")])
        await store.emit(db, [message("3")])
        assert notes(where) == waiting(where) == []
    assert notes(where) == ["a"]
    assert waiting(where) == ["1", "2", "3"]


@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError])
@pytest.mark.parametrize("kind", [*ASYNC, *SYNC])
async def test_a_rollback_leaves_no_event(
    store: SqlAlchemyStore, where: Where, kind: type, error: type[BaseException]
) -> None:
    """Trap 137."""
    with pytest.raises(error):
        async with store.transaction(kind) as db:
            await write(db, "a")
            await store.emit(db, [message("1")])
            raise error
    assert notes(where) == waiting(where) == []


async def test_objects_of_a_session_are_flushed_before_the_commit(store: SqlAlchemyStore, where: Where) -> None:
    async with store.transaction(AsyncSession) as session:
        session.add(Entry(note="a"))
    with pytest.raises(DBAPIError):
        async with store.transaction(AsyncSession) as session:
            session.add(Entry(note="bad"))
            await store.emit(session, [message("1")])
    assert notes(where) == ["a"]
    assert waiting(where) == []


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("kind", ASYNC)
async def test_a_block_that_ends_its_transaction_itself_is_refused(
    store: SqlAlchemyStore, where: Where, kind: type, end: str
) -> None:
    with pytest.raises(MisuseError):
        async with store.transaction(kind) as db:
            await write(db, "a")
            await store.emit(db, [message("1")])
            await getattr(db, end)()
    assert notes(where) == waiting(where) == []


async def test_other_kinds_are_refused_by_name(store: SqlAlchemyStore) -> None:
    with pytest.raises(MisuseError, match="AsyncConnection, AsyncSession, Connection, Session, not int"):
        async with store.transaction(int):
            pass


async def test_an_event_emitted_with_a_claims_connection_leaves_with_the_claim(
    store: SqlAlchemyStore, where: Where
) -> None:
    async with store.claim([key("a")], resource=AsyncSession, sync=False) as claim:
        await store.emit(claim.resource(AsyncSession), [message("1")])
        await claim.emit([message("2")])
    assert waiting(where) == ["1", "2"]
    with pytest.raises(LookupError):
        async with store.claim([key("b")], resource=AsyncSession, sync=False) as claim:
            await store.emit(claim.resource(AsyncSession), [message("3")])
            raise LookupError
    assert waiting(where) == ["1", "2"]


# ---- the user's own transactions ----------------------------------------------------------------------------------


async def test_an_event_joins_the_users_own_async_transaction(store: SqlAlchemyStore, where: Where) -> None:
    engine = create_async_engine(live_url_of(where))
    async with engine.begin() as connection:
        await store.emit(connection, [message("1")])
        assert waiting(where) == []
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
    assert waiting(where) == ["1", "2"]
    assert notes(where) == ["a"]


async def test_an_event_joins_the_users_own_sync_transaction(store: SqlAlchemyStore, where: Where) -> None:
    engine = sa.create_engine(sync_url_of(where))
    with engine.begin() as connection:
        await store.emit(connection, [message("1")])
    with Session(engine) as session, session.begin():
        session.add(Entry(note="a"))
        await store.emit(session, [message("2")])
    with Session(engine) as session, session.begin():
        await store.emit(session, [message("3")])
        session.rollback()
    engine.dispose()
    assert waiting(where) == ["1", "2"]


async def test_a_savepoint_that_is_rolled_back_takes_its_event_along(store: SqlAlchemyStore, where: Where) -> None:
    """Trap 147."""
    async with store.transaction(AsyncSession) as outside:
        await outside.execute(INSERT, {"note": "a"})
    engine = create_async_engine(live_url_of(where))
    async with AsyncSession(engine) as session, session.begin():
        await store.emit(session, [message("kept")])
        nested = await session.begin_nested()
        await store.emit(session, [message("undone")])
        await nested.rollback()
    await engine.dispose()
    assert waiting(where) == ["kept"]


async def test_a_connection_outside_a_transaction_is_refused(store: SqlAlchemyStore, where: Where) -> None:
    """Traps 137 and 147: nobody would ever commit it, or it would leave before the effect."""
    engine = create_async_engine(live_url_of(where))
    async with engine.connect() as connection:
        with pytest.raises(MisuseError, match="not in a transaction"):
            await store.emit(connection, [message("1")])
    async with AsyncSession(engine) as session:
        with pytest.raises(MisuseError, match="not in a transaction"):
            await store.emit(session, [message("1")])
    sync_engine = sa.create_engine(sync_url_of(where))
    with sync_engine.connect() as sync_connection, Session(sync_engine) as sync_session:
        for tx in (sync_connection, sync_session):
            with pytest.raises(MisuseError, match="not in a transaction"):
                await store.emit(tx, [message("1")])
    sync_engine.dispose()
    await engine.dispose()
    assert waiting(where) == []


async def test_a_connection_that_commits_each_statement_by_itself_is_refused(
    store: SqlAlchemyStore, where: Where
) -> None:
    engine = create_async_engine(live_url_of(where), isolation_level="AUTOCOMMIT")
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
    assert waiting(where) == []


async def test_a_transaction_of_another_database_is_refused(store: SqlAlchemyStore, where: Where) -> None:
    """Another service's relay would publish it, or nobody."""
    with temporary(where) if isinstance(where, str) else nullcontext(where.with_name("other.db")) as place:
        for url in (live_url_of(place), "sqlite+aiosqlite://"):
            engine = create_async_engine(url)
            async with engine.begin() as connection:
                with pytest.raises(MisuseError, match="is not a connection to"):
                    await store.emit(connection, [message("1")])
            await engine.dispose()


@pytest.mark.parametrize("tx", [None, "tx", 42, object()])
async def test_what_is_no_transaction_is_refused(store: SqlAlchemyStore, tx: object) -> None:
    with pytest.raises(MisuseError, match="AsyncConnection, AsyncSession, Connection or Session"):
        await store.emit(tx, [message("1")])


async def test_all_of_a_message_comes_back(store: SqlAlchemyStore, where: Where) -> None:
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


async def test_an_event_of_the_users_own_transaction_leaves_soon_after_its_commit(
    where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody tells the relay about that commit; it looks often for a while."""
    monkeypatch.setattr("tidings.outbox.relay.SOON", 60.0)  # the machine may have no time between here and the commit
    store = SqlAlchemyStore(url_of(where), poll=3600)
    await store.open()
    got: list[Message] = []

    async def publish(messages: Sequence[Message]) -> list[None]:
        got.extend(messages)
        return [None] * len(messages)

    relay = asyncio.create_task(store.relay(publish))
    engine = create_async_engine(live_url_of(where))
    await asyncio.sleep(0.1)
    async with asyncio.timeout(20):
        async with engine.begin() as connection:
            await store.emit(connection, [message("1")])
            await asyncio.sleep(0.2)
            assert got == []
        await eventually(lambda: got)
    await engine.dispose()
    relay.cancel()
    await asyncio.wait({relay})
    await store.close()
