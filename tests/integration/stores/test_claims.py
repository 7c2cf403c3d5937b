"""Claims on every database: keys, effects and caused events commit together or not at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.integration.stores.handling import KINDS, NEW, apply, done, is_sync, write
from tests.integration.stores.ledger import (
    INSERT,
    Entry,
    Where,
    applied,
    eventually,
    in_thread,
    key,
    live_url_of,
    message,
    notes,
    waiting,
)
from tidings.delivery import Message
from tidings.errors import MisuseError
from tidings.stores.sqlalchemy import SqlAlchemyStore


@pytest.mark.parametrize("kind", KINDS)
async def test_P4_key_effect_and_caused_event_commit_together(store: SqlAlchemyStore, where: Where, kind: type) -> None:
    async with store.claim([key("a", "1"), key("b", "2")], resource=kind, sync=is_sync(kind)) as claim:
        assert list(claim.states) == [NEW, NEW]
        await write(claim, kind, "a")
        assert await claim.emit([message("m1"), message("m2")])
        assert notes(where) == applied(where) == waiting(where) == []
    assert (notes(where), applied(where), waiting(where)) == (["a"], ["a", "b"], ["m1", "m2"])


@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError])
@pytest.mark.parametrize("kind", KINDS)
async def test_P4_an_exception_takes_all_of_it_back(
    store: SqlAlchemyStore, where: Where, kind: type, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        async with store.claim([key("a")], resource=kind, sync=is_sync(kind)) as claim:
            await write(claim, kind, "a")
            await claim.emit([message("m1")])
            raise error
    assert notes(where) == applied(where) == waiting(where) == []
    assert await apply(store, "a", "again", kind) == NEW
    assert notes(where) == ["again"]


async def test_a_key_is_applied_once_and_names_the_event_that_did(store: SqlAlchemyStore, where: Where) -> None:
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


async def test_a_key_that_was_failed_is_given_back_and_the_others_are_kept(
    store: SqlAlchemyStore, where: Where
) -> None:
    async with store.claim([key("a"), key("b"), key("c")], resource=None, sync=False) as claim:
        claim.fail(1)
    assert applied(where) == ["a", "c"]
    async with store.claim([key("a"), key("b")], resource=None, sync=False) as claim:
        assert list(claim.states) == [done(), NEW]
        claim.fail(0)  # it was not ours to give back
    assert applied(where) == ["a", "b", "c"]


async def test_a_batch_larger_than_one_statement_is_claimed_whole(store: SqlAlchemyStore, where: Where) -> None:
    keys = [key(f"{number:05}", str(number)) for number in range(2500)]
    async with store.claim(keys[::2], resource=None, sync=False) as claim:
        assert set(claim.states) == {NEW}
    async with store.claim(keys, resource=None, sync=False) as claim:
        assert list(claim.states[:4]) == [done("0"), NEW, done("2"), NEW]
        assert sum(state == NEW for state in claim.states) == 1250
    assert len(applied(where)) == 2500


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


async def test_what_a_session_holds_back_is_flushed_before_the_commit(store: SqlAlchemyStore, where: Where) -> None:
    entry = Entry(note="held back")
    async with store.claim([key("a")], resource=AsyncSession, sync=False) as claim:
        session = claim.resource(AsyncSession)
        assert isinstance(session, AsyncSession)
        session.add(entry)
        assert claim.resource(AsyncSession) is session
    assert notes(where) == ["held back"]
    assert entry.note == "held back"  # expire_on_commit is off: no load after the transaction


@pytest.mark.parametrize("kind", [AsyncSession, Session])
async def test_an_error_of_the_last_flush_commits_nothing(store: SqlAlchemyStore, where: Where, kind: type) -> None:
    with pytest.raises(DBAPIError):
        async with store.claim([key("a")], resource=kind, sync=is_sync(kind)) as claim:
            await claim.emit([message("m")])
            await write(claim, kind, "bad")
    assert notes(where) == applied(where) == waiting(where) == []
    assert await apply(store, "a", "good", kind) == NEW


@pytest.mark.parametrize("kind", [AsyncSession, Session])
async def test_flush_shows_an_error_while_its_handler_is_still_to_blame(
    store: SqlAlchemyStore, where: Where, kind: type
) -> None:
    with pytest.raises(DBAPIError):
        async with store.claim([key("a"), key("b")], resource=kind, sync=is_sync(kind)) as claim:
            await write(claim, kind, "good")
            await claim.flush()
            await write(claim, kind, "bad")
            await claim.flush()
    assert notes(where) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_of_a_statement_passes_unchanged(store: SqlAlchemyStore, where: Where, kind: type) -> None:
    """Trap 134: it is the handler's own, and the store neither hides it nor commits what came before."""
    with pytest.raises(DBAPIError) as caught:
        async with store.claim([key("a")], resource=kind, sync=is_sync(kind)) as claim:
            await write(claim, kind, "good")
            await write(claim, kind, "bad")
    assert store.translate(caught.value) is None
    assert notes(where) == applied(where) == []


async def test_a_part_can_be_undone_by_a_savepoint(store: SqlAlchemyStore, where: Where) -> None:
    async with store.claim([key("a")], resource=AsyncSession, sync=False) as claim:
        session: Any = claim.resource(AsyncSession)
        session.add(Entry(note="kept"))
        with pytest.raises(DBAPIError):
            async with session.begin_nested():
                session.add(Entry(note="bad"))
        session.add(Entry(note="too"))
    assert notes(where) == ["kept", "too"]
    assert applied(where) == ["a"]


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
    store: SqlAlchemyStore, where: Where, misuse: Callable[[AsyncConnection], Any]
) -> None:
    with pytest.raises(MisuseError, match="begin_nested"):
        async with store.claim([key("a"), key("b")], resource=AsyncConnection, sync=False) as claim:
            db = claim.resource(AsyncConnection)
            assert isinstance(db, AsyncConnection)
            await db.execute(INSERT, {"note": "before"})
            await misuse(db)
    assert notes(where) == applied(where) == []
    assert await apply(store, "a", "after") == NEW
    assert notes(where) == ["after"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("kind", [AsyncSession, Session, sa.Connection])
async def test_a_session_cannot_end_it_either(store: SqlAlchemyStore, where: Where, kind: type, end: str) -> None:
    with pytest.raises(MisuseError, match="begin_nested"):
        async with store.claim([key("a")], resource=kind, sync=is_sync(kind)) as claim:
            await write(claim, kind, "before")
            ended: Any = claim.resource(kind)
            if is_sync(kind):
                await in_thread(claim, getattr(ended, end))
            else:
                await getattr(ended, end)()
    assert notes(where) == applied(where) == []
    assert await apply(store, "a", "after", kind) == NEW


async def test_an_error_of_a_flush_that_was_passed_over_does_not_commit(store: SqlAlchemyStore, where: Where) -> None:
    """The session has rolled everything back on its own, the keys included."""
    with pytest.raises(MisuseError, match="passed over"):
        async with store.claim([key("a")], resource=AsyncSession, sync=False) as claim:
            session: Any = claim.resource(AsyncSession)
            session.add(Entry(note="bad"))
            try:
                await session.flush()
            except DBAPIError:
                pass
    assert notes(where) == applied(where) == []


async def test_a_commit_on_the_drivers_own_connection_is_seen_afterwards(store: SqlAlchemyStore, where: Where) -> None:
    """It cannot be kept from it; what can be promised is that nobody takes it for a success."""
    with pytest.raises(MisuseError, match="driver's own"):
        async with store.claim([key("a")], resource=AsyncConnection, sync=False) as claim:
            db: Any = claim.resource(AsyncConnection)
            raw = await db.get_raw_connection()
            driver = raw.driver_connection
            await (driver.commit() if hasattr(driver, "commit") else driver.execute("COMMIT"))
            with pytest.raises(MisuseError):
                await db.execute(INSERT, {"note": "would commit by itself"})
    assert notes(where) == []


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


async def test_a_connection_that_was_kept_writes_nothing_later(store: SqlAlchemyStore, where: Where) -> None:
    async with store.claim([key("a")], resource=AsyncSession, sync=False) as claim:
        kept: Any = claim.resource(AsyncSession)
        await kept.execute(INSERT, {"note": "inside"})
    with pytest.raises(Exception, match="closed"):
        await kept.execute(INSERT, {"note": "outside"})
    assert notes(where) == ["inside"]


async def test_sync_work_runs_in_one_thread_that_is_not_the_loops(store: SqlAlchemyStore) -> None:
    seen = set()
    for number in range(3):
        async with store.claim([key(str(number))], resource=Session, sync=True) as claim:
            for _ in range(2):
                seen.add(await in_thread(claim, threading.get_ident))
    assert len(seen) == 1
    assert threading.get_ident() not in seen


async def test_a_hook_of_the_session_that_ends_the_transaction_during_the_last_flush_is_seen(
    store: SqlAlchemyStore, where: Where
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
    assert notes(where) == applied(where) == []


async def test_claims_of_one_process_queue_and_all_get_their_turn(store: SqlAlchemyStore, where: Where) -> None:
    async def one(number: int) -> None:
        kind = KINDS[number % 4]
        await apply(store, str(number), str(number), kind)

    store._desk.lock_timeout = 10  # type: ignore[union-attr]  # the others' time, on a busy machine
    await asyncio.gather(*(one(number) for number in range(40)))
    assert sorted(notes(where), key=int) == [str(number) for number in range(40)]


async def test_a_pool_of_one_connection_is_enough(where: Where) -> None:
    engine = create_async_engine(live_url_of(where), pool_size=1, max_overflow=0, pool_timeout=5)
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
