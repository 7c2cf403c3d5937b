"""Claims on SQLite: keys, effects and caused events commit together or not at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.integration.stores.ledger import (
    INSERT,
    Entry,
    applied,
    eventually,
    in_thread,
    key,
    message,
    notes,
    query,
    waiting,
)
from tidings.delivery import Message
from tidings.errors import MisuseError
from tidings.ports import Claim, Claimed, State
from tidings.stores.sqlalchemy import SqlAlchemyStore

NEW = Claimed(State.NEW)
KINDS = [AsyncConnection, AsyncSession, sa.Connection, Session]


def done(event_id: str = "e") -> Claimed:
    return Claimed(State.DONE, event_id, event_id.encode())


def is_sync(kind: type) -> bool:
    return kind in (sa.Connection, Session)


async def write(claim: Claim, kind: type, note: str) -> None:
    """What a handler does: one statement, or one object, through what it asked for."""
    if is_sync(kind):
        await in_thread(claim, lambda: write_sync(claim.resource(kind), note))
        return
    db = claim.resource(kind)
    if isinstance(db, AsyncSession):
        db.add(Entry(note=note))
    else:
        assert isinstance(db, AsyncConnection)
        await db.execute(INSERT, {"note": note})


def write_sync(db: object, note: str) -> None:
    if isinstance(db, Session):
        db.add(Entry(note=note))
    else:
        assert isinstance(db, sa.Connection)
        db.execute(INSERT, {"note": note})


async def apply(store: SqlAlchemyStore, name: str, note: str, kind: type = AsyncConnection) -> Claimed:
    async with store.claim([key(name)], resource=kind, sync=is_sync(kind)) as claim:
        if claim.states[0] == NEW:
            await write(claim, kind, note)
    return claim.states[0]


@pytest.mark.proves(store="sqlite")
@pytest.mark.parametrize("kind", KINDS)
async def test_P4_key_effect_and_caused_event_commit_together(store: SqlAlchemyStore, path: Path, kind: type) -> None:
    async with store.claim([key("a", "1"), key("b", "2")], resource=kind, sync=is_sync(kind)) as claim:
        assert list(claim.states) == [NEW, NEW]
        await write(claim, kind, "a")
        assert await claim.emit([message("m1"), message("m2")])
        assert notes(path) == applied(path) == waiting(path) == []
    assert (notes(path), applied(path), waiting(path)) == (["a"], ["a", "b"], ["m1", "m2"])


@pytest.mark.proves(store="sqlite")
@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError])
@pytest.mark.parametrize("kind", KINDS)
async def test_P4_an_exception_takes_all_of_it_back(
    store: SqlAlchemyStore, path: Path, kind: type, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        async with store.claim([key("a")], resource=kind, sync=is_sync(kind)) as claim:
            await write(claim, kind, "a")
            await claim.emit([message("m1")])
            raise error
    assert notes(path) == applied(path) == waiting(path) == []
    assert await apply(store, "a", "again", kind) == NEW
    assert notes(path) == ["again"]


async def test_a_key_is_applied_once_and_names_the_event_that_did(store: SqlAlchemyStore, path: Path) -> None:
    async with store.claim([key("order-1", "first")], resource=None, sync=False):
        pass
    async with store.claim([key("order-1", "second"), key("order-2", "third")], resource=None, sync=False) as claim:
        assert list(claim.states) == [done("first"), NEW]


async def test_of_equal_keys_in_a_batch_the_first_is_new_and_the_others_are_done_by_it(store: SqlAlchemyStore) -> None:
    keys = [key("a", "1"), key("b", "2"), key("a", "3"), key("a", "4")]
    async with store.claim(keys, resource=None, sync=False) as claim:
        assert list(claim.states) == [NEW, NEW, done("1"), done("1")]
    async with store.claim(keys, resource=None, sync=False) as claim:
        assert list(claim.states) == [done("1"), done("2"), done("1"), done("1")]


async def test_two_handlers_have_the_same_key_each_for_itself(store: SqlAlchemyStore) -> None:
    """Trap 128."""
    async with store.claim([key("a", position="stock.reserve")], resource=None, sync=False):
        pass
    async with store.claim([key("a", position="stock.count")], resource=None, sync=False) as claim:
        assert list(claim.states) == [NEW]


async def test_a_key_that_was_failed_is_given_back_and_the_others_are_kept(store: SqlAlchemyStore, path: Path) -> None:
    async with store.claim([key("a"), key("b"), key("c")], resource=None, sync=False) as claim:
        claim.fail(1)
    assert applied(path) == ["a", "c"]
    async with store.claim([key("a"), key("b")], resource=None, sync=False) as claim:
        assert list(claim.states) == [done(), NEW]
        claim.fail(0)  # it was not ours to give back
    assert applied(path) == ["a", "b", "c"]


async def test_a_batch_larger_than_one_statement_is_claimed_whole(store: SqlAlchemyStore, path: Path) -> None:
    keys = [key(f"{number:05}", str(number)) for number in range(2500)]
    async with store.claim(keys[::2], resource=None, sync=False) as claim:
        assert set(claim.states) == {NEW}
    async with store.claim(keys, resource=None, sync=False) as claim:
        assert list(claim.states[:4]) == [done("0"), NEW, done("2"), NEW]
        assert sum(state == NEW for state in claim.states) == 1250
    assert len(applied(path)) == 2500


@pytest.mark.parametrize(
    "name",
    ["k" * 10_000, "a\x00b", "", "Ä", "ä", "' OR 1=1 --", "\U0001f4a9", "a\x00"],
    ids=["10 kB", "NUL", "empty", "upper", "lower", "quote", "emoji", "NUL at the end"],
)
async def test_odd_keys_are_keys_like_others(store: SqlAlchemyStore, name: str) -> None:
    others = [key(one) for one in ("a", "k" * 9_999 + "x", "ae")]
    async with store.claim([key(name, "1"), *others], resource=None, sync=False) as claim:
        assert list(claim.states) == [NEW] * 4
    async with store.claim([key(name, "2"), *others], resource=None, sync=False) as claim:
        assert claim.states[0] == done("1")


async def test_what_a_session_holds_back_is_flushed_before_the_commit(store: SqlAlchemyStore, path: Path) -> None:
    entry = Entry(note="held back")
    async with store.claim([key("a")], resource=AsyncSession, sync=False) as claim:
        session = claim.resource(AsyncSession)
        assert isinstance(session, AsyncSession)
        session.add(entry)
        assert claim.resource(AsyncSession) is session
    assert notes(path) == ["held back"]
    assert entry.note == "held back"  # expire_on_commit is off: no load after the transaction


@pytest.mark.parametrize("kind", [AsyncSession, Session])
async def test_an_error_of_the_last_flush_commits_nothing(store: SqlAlchemyStore, path: Path, kind: type) -> None:
    with pytest.raises(IntegrityError):
        async with store.claim([key("a")], resource=kind, sync=is_sync(kind)) as claim:
            await claim.emit([message("m")])
            await write(claim, kind, "bad")
    assert notes(path) == applied(path) == waiting(path) == []
    assert await apply(store, "a", "good", kind) == NEW


@pytest.mark.parametrize("kind", [AsyncSession, Session])
async def test_flush_shows_an_error_while_its_handler_is_still_to_blame(
    store: SqlAlchemyStore, path: Path, kind: type
) -> None:
    with pytest.raises(IntegrityError):
        async with store.claim([key("a"), key("b")], resource=kind, sync=is_sync(kind)) as claim:
            await write(claim, kind, "good")
            await claim.flush()
            await write(claim, kind, "bad")
            await claim.flush()
    assert notes(path) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_of_a_statement_passes_unchanged(store: SqlAlchemyStore, path: Path, kind: type) -> None:
    """Trap 134: it is the handler's own, and the store neither hides it nor commits what came before."""
    with pytest.raises(IntegrityError) as caught:
        async with store.claim([key("a")], resource=kind, sync=is_sync(kind)) as claim:
            await write(claim, kind, "good")
            await write(claim, kind, "bad")
    assert store.translate(caught.value) is None
    assert notes(path) == applied(path) == []


async def test_a_part_can_be_undone_by_a_savepoint(store: SqlAlchemyStore, path: Path) -> None:
    async with store.claim([key("a")], resource=AsyncSession, sync=False) as claim:
        session: Any = claim.resource(AsyncSession)
        session.add(Entry(note="kept"))
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                session.add(Entry(note="bad"))
        session.add(Entry(note="too"))
    assert notes(path) == ["kept", "too"]
    assert applied(path) == ["a"]


async def commit_connection(db: AsyncConnection) -> None:
    await db.commit()


async def commit_swallowed(db: AsyncConnection) -> None:
    with pytest.raises(MisuseError):
        await db.commit()


async def rollback_connection(db: AsyncConnection) -> None:
    await db.rollback()


async def rollback_and_go_on(db: AsyncConnection) -> None:
    await db.rollback()
    with pytest.raises(MisuseError):
        await db.execute(INSERT, {"note": "outside"})


async def commit_in_words(db: AsyncConnection) -> None:
    await db.execute(sa.text("  commit"))


async def roll_back_in_words(db: AsyncConnection) -> None:
    await db.exec_driver_sql("ROLLBACK;")


@pytest.mark.parametrize(
    "misuse",
    [
        commit_connection,
        commit_swallowed,
        rollback_connection,
        rollback_and_go_on,
        commit_in_words,
        roll_back_in_words,
    ],
)
async def test_a_handler_that_ends_the_transaction_itself_is_refused_and_nothing_of_it_stays(
    store: SqlAlchemyStore, path: Path, misuse: Callable[[AsyncConnection], Any]
) -> None:
    with pytest.raises(MisuseError, match="begin_nested"):
        async with store.claim([key("a"), key("b")], resource=AsyncConnection, sync=False) as claim:
            db = claim.resource(AsyncConnection)
            assert isinstance(db, AsyncConnection)
            await db.execute(INSERT, {"note": "before"})
            await misuse(db)
    assert notes(path) == applied(path) == []
    assert await apply(store, "a", "after") == NEW
    assert notes(path) == ["after"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("kind", [AsyncSession, Session, sa.Connection])
async def test_a_session_cannot_end_it_either(store: SqlAlchemyStore, path: Path, kind: type, end: str) -> None:
    with pytest.raises(MisuseError, match="begin_nested"):
        async with store.claim([key("a")], resource=kind, sync=is_sync(kind)) as claim:
            await write(claim, kind, "before")
            ended: Any = claim.resource(kind)
            if is_sync(kind):
                await in_thread(claim, getattr(ended, end))
            else:
                await getattr(ended, end)()
    assert notes(path) == applied(path) == []
    assert await apply(store, "a", "after", kind) == NEW


async def test_an_error_of_a_flush_that_was_passed_over_does_not_commit(store: SqlAlchemyStore, path: Path) -> None:
    """The session has rolled everything back on its own, the keys included."""
    with pytest.raises(MisuseError, match="passed over"):
        async with store.claim([key("a")], resource=AsyncSession, sync=False) as claim:
            session: Any = claim.resource(AsyncSession)
            session.add(Entry(note="bad"))
            try:
                await session.flush()
            except IntegrityError:
                pass
    assert notes(path) == applied(path) == []


async def test_a_commit_on_the_drivers_own_connection_is_seen_afterwards(store: SqlAlchemyStore, path: Path) -> None:
    """It cannot be kept from it; what can be promised is that nobody takes it for a success."""
    with pytest.raises(MisuseError, match="driver's own"):
        async with store.claim([key("a")], resource=AsyncConnection, sync=False) as claim:
            db: Any = claim.resource(AsyncConnection)
            raw = await db.get_raw_connection()
            await raw.driver_connection.commit()
            with pytest.raises(MisuseError):
                await db.execute(INSERT, {"note": "would commit by itself"})
    assert notes(path) == []


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


@pytest.mark.parametrize("kind", KINDS)
async def test_a_claim_gives_nothing_after_its_end(store: SqlAlchemyStore, kind: type) -> None:
    async with store.claim([key("a")], resource=kind, sync=is_sync(kind)) as claim:
        kept: Any = claim.resource(kind)
    with pytest.raises(MisuseError, match="over"):
        claim.resource(kind)
    with pytest.raises(MisuseError, match="over"):
        await claim.emit([message("m")])
    if not isinstance(kept, (Session, AsyncSession)):
        assert kept.closed


async def test_a_connection_that_was_kept_writes_nothing_later(store: SqlAlchemyStore, path: Path) -> None:
    async with store.claim([key("a")], resource=AsyncSession, sync=False) as claim:
        kept: Any = claim.resource(AsyncSession)
        await kept.execute(INSERT, {"note": "inside"})
    with pytest.raises(Exception, match="closed"):
        await kept.execute(INSERT, {"note": "outside"})
    assert notes(path) == ["inside"]


async def test_sync_work_runs_in_one_thread_that_is_not_the_loops(store: SqlAlchemyStore) -> None:
    seen = set()
    for number in range(3):
        async with store.claim([key(str(number))], resource=Session, sync=True) as claim:
            for _ in range(2):
                seen.add(await in_thread(claim, threading.get_ident))
    assert len(seen) == 1
    assert threading.get_ident() not in seen


def test_it_gives_async_kinds_to_async_handlers_and_sync_ones_to_sync_handlers(tmp_path: Path) -> None:
    store = SqlAlchemyStore(f"sqlite:///{tmp_path}/x.db")
    assert [store.gives(kind, sync=False) for kind in KINDS] == [True, True, False, False]
    assert [store.gives(kind, sync=True) for kind in KINDS] == [False, False, True, True]
    assert not store.gives(int, sync=False)


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


async def test_a_hook_of_the_session_that_ends_the_transaction_during_the_last_flush_is_seen(
    store: SqlAlchemyStore, path: Path
) -> None:
    with pytest.raises(MisuseError, match="has ended"):
        async with store.claim([key("a")], resource=Session, sync=True) as claim:
            session = await in_thread(claim, lambda: claim.resource(Session))
            assert isinstance(session, Session)

            @sa.event.listens_for(session, "after_flush")
            def after_flush(session: Session, context: object) -> None:
                driver: Any = session.connection().connection.driver_connection
                driver.rollback()

            session.add(Entry(note="a"))
    assert notes(path) == applied(path) == []


async def test_claims_of_one_process_queue_and_all_get_their_turn(store: SqlAlchemyStore, path: Path) -> None:
    async def one(number: int) -> None:
        kind = KINDS[number % 4]
        await apply(store, str(number), str(number), kind)

    await asyncio.gather(*(one(number) for number in range(40)))
    assert sorted(notes(path), key=int) == [str(number) for number in range(40)]


async def test_reading_first_and_writing_later_works_beside_another_writer(store: SqlAlchemyStore, path: Path) -> None:
    """Trap 132: with a plain BEGIN this is "database is locked", at once."""

    async def count(number: int) -> None:
        async with store.claim([key(str(number))], resource=AsyncConnection, sync=False) as claim:
            db: Any = claim.resource(AsyncConnection)
            seen = await db.scalar(sa.text("SELECT count(*) FROM ledger"))
            await asyncio.sleep(0.01)
            await db.execute(INSERT, {"note": str(seen)})

    other = SqlAlchemyStore(f"sqlite:///{path}", lock_timeout=5)
    await other.open()

    async def count_there(number: int) -> None:
        async with other.transaction() as db:
            seen = await db.scalar(sa.text("SELECT count(*) FROM ledger"))
            await db.execute(INSERT, {"note": str(seen)})

    await asyncio.gather(*(count(number) for number in range(8)), *(count_there(number) for number in range(8)))
    await other.close()
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


async def test_a_pool_of_one_connection_is_enough(path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", pool_size=1, max_overflow=0, pool_timeout=5)
    store = SqlAlchemyStore(engine, poll=0.05)
    await store.open()
    published: list[Message] = []

    async def publish(messages: Any) -> list[None]:
        published.extend(messages)
        return [None] * len(messages)

    relay = asyncio.create_task(store.relay(publish))
    async with asyncio.timeout(10):
        for number in range(10):
            async with store.claim([key(str(number))], resource=AsyncConnection, sync=False) as claim:
                await claim.emit([message(str(number))])
        await eventually(lambda: len(published) == 10)
    relay.cancel()
    await asyncio.wait({relay})
    await store.close()
    await engine.dispose()
