"""Claims on PostgreSQL: keys, effects and caused events commit together or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from tests.integration.postgres.conftest import Opens
from tests.integration.postgres.ledger import (
    INSERT,
    applied,
    connected,
    eventually,
    in_transaction,
    key,
    message,
    notes,
    query,
    quietly,
    run,
    sessions,
    waiting,
)
from tidings.errors import Contention, InvalidEvent, MisuseError, TransactionEnded
from tidings.ports import Claimed, State
from tidings.stores.postgres import PostgresStore, Statements

NEW = Claimed(State.NEW)
PG = asyncpg.Connection


def done(event_id: str = "e") -> Claimed:
    return Claimed(State.DONE, event_id, event_id.encode(errors="surrogatepass"))


async def apply(store: PostgresStore, name: str, note: str) -> Claimed:
    async with store.claim([key(name)], resource=PG, sync=False) as claim:
        if claim.states[0] == NEW:
            db: Any = claim.resource(PG)
            await db.execute(INSERT, note)
    return claim.states[0]


@pytest.mark.proves("P3", "P4", store="postgres")
async def test_P4_key_effect_and_caused_event_commit_together(store: PostgresStore, url: str) -> None:
    async with store.claim([key("a", "1"), key("b", "2")], resource=PG, sync=False) as claim:
        assert list(claim.states) == [NEW, NEW]
        db: Any = claim.resource(PG)
        assert isinstance(db, asyncpg.Connection)
        await db.execute(INSERT, "a")
        assert await claim.emit([message("m1"), message("m2")])
        assert notes(url) == applied(url) == waiting(url) == []
    assert (notes(url), applied(url), waiting(url)) == (["a"], ["a", "b"], ["m1", "m2"])
    assert query(url, "SELECT count(*) FROM tidings_open") == [(0,)]


@pytest.mark.proves(store="postgres")
@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError])
async def test_P4_an_exception_takes_all_of_it_back(store: PostgresStore, url: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        async with store.claim([key("a")], resource=PG, sync=False) as claim:
            db: Any = claim.resource(PG)
            await db.execute(INSERT, "a")
            await claim.emit([message("m1")])
            raise error
    assert notes(url) == applied(url) == waiting(url) == []
    assert in_transaction(url) == 0
    assert await apply(store, "a", "again") == NEW
    assert notes(url) == ["again"]


async def test_a_key_is_applied_once_and_names_the_event_that_did(store: PostgresStore) -> None:
    async with store.claim([key("order-1", "first")], resource=None, sync=False):
        pass
    async with store.claim([key("order-1", "second"), key("order-2", "third")], resource=None, sync=False) as claim:
        assert list(claim.states) == [done("first"), NEW]


async def test_of_equal_keys_in_a_batch_the_first_is_new_and_the_others_are_done_by_it(store: PostgresStore) -> None:
    keys = [key("a", "1"), key("b", "2"), key("a", "3"), key("a", "4")]
    async with store.claim(keys, resource=None, sync=False) as claim:
        assert list(claim.states) == [NEW, NEW, done("1"), done("1")]
    async with store.claim(keys, resource=None, sync=False) as claim:
        assert list(claim.states) == [done("1"), done("2"), done("1"), done("1")]


async def test_two_handlers_have_the_same_key_each_for_itself(store: PostgresStore) -> None:
    """Trap 128."""
    async with store.claim([key("a", position="stock.reserve")], resource=None, sync=False):
        pass
    async with store.claim([key("a", position="stock.count")], resource=None, sync=False) as claim:
        assert list(claim.states) == [NEW]


async def test_a_key_that_was_failed_is_given_back_and_the_others_are_kept(store: PostgresStore, url: str) -> None:
    async with store.claim([key("a"), key("b"), key("c")], resource=None, sync=False) as claim:
        claim.fail(1)
    assert applied(url) == ["a", "c"]
    async with store.claim([key("a"), key("b")], resource=None, sync=False) as claim:
        assert list(claim.states) == [done(), NEW]
        claim.fail(0)  # it was not ours to give back
    assert applied(url) == ["a", "b", "c"]


async def test_a_large_batch_is_claimed_whole(store: PostgresStore, url: str) -> None:
    keys = [key(f"{number:05}", str(number)) for number in range(2500)]
    async with store.claim(keys[::2], resource=None, sync=False) as claim:
        assert set(claim.states) == {NEW}
    async with store.claim(keys, resource=None, sync=False) as claim:
        assert list(claim.states[:4]) == [done("0"), NEW, done("2"), NEW]
        assert sum(state == NEW for state in claim.states) == 1250
    assert len(applied(url)) == 2500


async def test_odd_keys_and_ids_are_like_others(store: PostgresStore) -> None:
    """Trap 130: PostgreSQL refuses a NUL in text, and an event that carries one would come back for ever."""
    names = ["k" * 10_000, "k" * 9_999 + "x", "a\x00b", "ab", "", "Ä", "ä", "Ä\x00", "a\x00", "a", "ae", "' OR 1=1 --"]
    keys = [key(name, name) for name in [*names, "\U0001f4a9", "\ud800", "\ud800\x00"]]
    async with store.claim(keys, resource=None, sync=False) as claim:
        assert list(claim.states) == [NEW] * len(keys)
    async with store.claim(keys, resource=None, sync=False) as claim:
        assert list(claim.states) == [done(one.event_id) for one in keys]


async def test_text_with_a_NUL_is_the_handlers_own_error(store: PostgresStore, url: str) -> None:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await apply(store, "a", "no\x00pe")
    assert store.translate(caught.value) is None
    assert applied(url) == []
    with pytest.raises(InvalidEvent, match="surrogate"):
        async with store.claim([key("a")], resource=PG, sync=False) as claim:
            await claim.emit([message("m", "k\ud800")])
    assert applied(url) == waiting(url) == []


async def test_an_error_of_a_statement_passes_unchanged(store: PostgresStore, url: str) -> None:
    """Trap 134."""
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        async with store.claim([key("a")], resource=PG, sync=False) as claim:
            db: Any = claim.resource(PG)
            await db.execute(INSERT, "good")
            await db.execute(INSERT, "bad")
    assert store.translate(caught.value) is None
    assert notes(url) == applied(url) == []
    assert in_transaction(url) == 0


async def test_a_part_can_be_undone_by_a_savepoint(store: PostgresStore, url: str) -> None:
    async with store.claim([key("a")], resource=PG, sync=False) as claim:
        db: Any = claim.resource(PG)
        await db.execute(INSERT, "kept")
        with pytest.raises(asyncpg.CheckViolationError):
            async with db.transaction():
                await db.execute(INSERT, "bad")
        async with db.transaction():
            await db.execute(INSERT, "too")
    assert notes(url) == ["kept", "too"]
    assert applied(url) == ["a"]


async def in_words(db: Any, words: str) -> None:
    await quietly(db.execute(words))


async def by_fetch(db: Any) -> None:
    await quietly(db.fetch("COMMIT"))


async def hidden(db: Any) -> None:
    await quietly(db.execute("SELECT 1; COMMIT; SELECT 2"))


async def by_another_transaction(db: Any) -> None:
    await quietly(db.fetch("ROLLBACK"))
    await quietly(db.fetch("BEGIN"))


MISUSES: dict[str, Callable[[Any], Any]] = {
    "commit": lambda db: in_words(db, "  commit"),
    "end": lambda db: in_words(db, "END"),
    "rollback": lambda db: in_words(db, "ROLLBACK;"),
    "abort": lambda db: in_words(db, "ABORT"),
    "commit by fetch": by_fetch,
    "a commit hidden in others": hidden,
    "rollback and begin": by_another_transaction,
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
async def test_a_handler_that_ends_the_transaction_is_refused_and_no_key_of_the_batch_stays(
    store: PostgresStore, url: str, misuse: Callable[[Any], Any]
) -> None:
    """Were it to commit, the keys of events that no handler has seen yet would be durable, and those events lost."""
    with pytest.raises(MisuseError, match="handler"):
        async with store.claim([key("a"), key("b")], resource=PG, sync=False) as claim:
            db: Any = claim.resource(PG)
            await db.execute(INSERT, "before")
            await misuse(db)
    assert notes(url) == applied(url) == []
    assert in_transaction(url) == 0
    assert await apply(store, "a", "after") == NEW
    assert notes(url) == ["after"]


async def test_after_a_handler_ended_the_transaction_the_next_one_does_not_begin(
    store: PostgresStore, url: str
) -> None:
    """Each of its statements would be committed by itself, and again when it is repeated."""
    with pytest.raises(MisuseError, match="ended the transaction"):
        async with store.claim([key("a"), key("b")], resource=PG, sync=False) as claim:
            db: Any = claim.resource(PG)
            await db.fetch("ROLLBACK")
            later: Any = claim.resource(PG)
            await later.execute(INSERT, "outside")
    assert notes(url) == applied(url) == []


async def test_statements_after_a_rollback_are_refused_on_connections_of_its_own(opens: Opens, url: str) -> None:
    store = await opens()
    with pytest.raises(MisuseError, match="ended the transaction"):
        async with store.claim([key("a")], resource=PG, sync=False) as claim:
            db = claim.resource(PG)
            await db.fetch("ROLLBACK")
            assert isinstance(await quietly(db.execute(INSERT, "outside")), MisuseError)
    assert notes(url) == applied(url) == []


async def test_an_error_that_was_passed_over_does_not_commit(store: PostgresStore, url: str) -> None:
    """COMMIT of a failed transaction rolls back and reports no error."""
    with pytest.raises(MisuseError, match="passed over"):
        async with store.claim([key("a")], resource=PG, sync=False) as claim:
            db: Any = claim.resource(PG)
            await quietly(db.execute(INSERT, "bad"))
    assert notes(url) == applied(url) == []


async def test_a_claim_gives_nothing_after_its_end(store: PostgresStore) -> None:
    async with store.claim([key("a")], resource=PG, sync=False) as claim:
        pass
    with pytest.raises(MisuseError, match="over"):
        claim.resource(PG)
    with pytest.raises(MisuseError, match="over"):
        await claim.emit([message("m")])


async def test_a_connection_that_was_kept_writes_nothing_later(store: PostgresStore, url: str) -> None:
    async with store.claim([key("a")], resource=PG, sync=False) as claim:
        kept: Any = claim.resource(PG)
    with pytest.raises((MisuseError, asyncpg.InterfaceError)):
        await kept.execute(INSERT, "idle")

    async def late() -> None:
        await asyncio.sleep(0.05)
        await kept.execute(INSERT, "in another's")

    task = asyncio.create_task(late())
    async with store.claim([key("b")], resource=PG, sync=False):
        await asyncio.wait({task})
    assert isinstance(task.exception(), (MisuseError, asyncpg.InterfaceError))
    assert notes(url) == []


async def test_a_statement_that_was_kept_of_a_connection_sends_nothing_later(opens: Opens, url: str) -> None:
    """It would be in a transaction of which nobody knows that it is: that of the next event, or of the next batch."""
    store = await opens()
    refused = pytest.raises(asyncpg.InterfaceError, match="released")
    async with store.claim([key("a"), key("b")], resource=PG, sync=False) as claim:
        first: Any = claim.resource(PG)
        insert = await first.prepare(INSERT)
        cursor = await first.cursor("SELECT 1")
        await insert.fetch("of the first")
        claim.resource(PG)
        with refused:
            await insert.fetch("in the next event's turn")
        with refused:
            await cursor.fetch(1)
    with refused:
        await insert.fetch("idle")
    async with store.claim([key("c")], resource=PG, sync=False):
        with refused:
            await insert.fetch("in another's")
    assert notes(url) == ["of the first"]


@pytest.mark.parametrize("pool", [0, 5])
async def test_a_handler_that_keeps_a_statement_is_told_to_prepare_it_anew(opens: Opens, pool: int) -> None:
    store = await opens(pool=pool) if pool else await opens()
    async with store.claim([key("a")], resource=PG, sync=False) as claim:
        first: Any = claim.resource(PG)
        insert = await first.prepare(INSERT)
    with pytest.raises(asyncpg.InterfaceError) as refused:
        await insert.fetch("late")
    told = store.translate(refused.value)
    assert isinstance(told, TransactionEnded)
    assert "Prepare it anew" in str(told)


def test_it_gives_connections_to_async_handlers_only() -> None:
    store = PostgresStore("postgresql://nowhere/x")
    assert [store.gives(kind, sync=False) for kind in (PG, Statements, int)] == [True, True, False]
    assert not store.gives(PG, sync=True)


async def test_a_claim_waits_for_another_one_and_takes_what_that_gives_up(store: PostgresStore, url: str) -> None:
    """Trap 130: neither new nor done is said while the other is open."""
    with connected(url, autocommit=False) as other:
        other.execute("INSERT INTO tidings_inbox VALUES ('stock.reserve', 'a', 'other', '', 0)")
        with pytest.raises(Contention, match="lock_timeout"):
            await apply(store, "a", "not now")
        assert in_transaction(url) == 1
        store._ready().lock_timeout = 30  # it waits for as long as this takes
        waits = asyncio.create_task(apply(store, "a", "taken over"))
        await eventually(lambda: in_transaction(url) == 2)
        other.rollback()
        assert await waits == NEW
    assert notes(url) == ["taken over"]


async def test_a_claim_that_waited_for_a_commit_is_a_duplicate(store: PostgresStore, url: str) -> None:
    with connected(url, autocommit=False) as other:
        other.execute("INSERT INTO tidings_inbox VALUES ('stock.reserve', 'a', 'other', 'other', 0)")
        store._ready().lock_timeout = 30
        waits = asyncio.create_task(apply(store, "a", "twice"))
        await eventually(lambda: in_transaction(url) == 2)
        other.commit()
        assert await waits == done("other")
    assert notes(url) == []


async def test_claims_of_the_same_keys_in_opposite_order_do_not_deadlock(opens: Opens, url: str) -> None:
    """Trap 130. Each insert takes a while here, so that the two claims meet in the middle."""
    stores = [await opens(lock_timeout=300) for _ in range(2)]  # a tenth of it for a batch
    run(
        url,
        "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END $$;"
        "CREATE TRIGGER slowly BEFORE INSERT ON tidings_inbox FOR EACH ROW EXECUTE FUNCTION slowly()",
    )
    keys = [key(str(number)) for number in range(20)]

    async def claims(store: PostgresStore, keys: list[Any]) -> int:
        async with store.claim(keys, resource=None, sync=False) as claim:
            return sum(state == NEW for state in claim.states)

    counts = await asyncio.gather(claims(stores[0], keys), claims(stores[1], keys[::-1]))
    assert sum(counts) == 20


async def test_a_deadlock_between_handlers_is_contention(opens: Opens, url: str) -> None:
    run(url, "CREATE TABLE stock (sku text PRIMARY KEY, left_over int); INSERT INTO stock VALUES ('a', 9), ('b', 9)")
    stores = [await opens(lock_timeout=20) for _ in range(2)]
    both = asyncio.Barrier(2)

    async def take(store: PostgresStore, name: str, first: str, second: str) -> None:
        async with store.claim([key(name)], resource=PG, sync=False) as claim:
            db: Any = claim.resource(PG)
            await db.execute("UPDATE stock SET left_over = left_over - 1 WHERE sku = $1", first)
            await both.wait()
            await db.execute("UPDATE stock SET left_over = left_over - 1 WHERE sku = $1", second)

    ended = await asyncio.gather(quietly(take(stores[0], "1", "a", "b")), quietly(take(stores[1], "2", "b", "a")))
    (error,) = [one for one in ended if one is not None]
    assert isinstance(error, asyncpg.DeadlockDetectedError)
    assert isinstance(stores[0].translate(error), Contention)
    assert query(url, "SELECT left_over FROM stock") == [(8,), (8,)]
    assert len(applied(url)) == 1


async def test_a_batch_waits_a_tenth_as_long_for_a_lock_as_a_single_event(opens: Opens) -> None:
    store = await opens(lock_timeout=2)
    for keys, told in (([key("a")], "2s"), ([key("b"), key("c")], "200ms"), ([], "2s")):
        async with store.claim(keys, resource=PG, sync=False) as claim:
            db: Any = claim.resource(PG)
            assert await db.fetchval("SHOW lock_timeout") == told


async def test_a_transaction_that_cannot_be_serialized_is_contention(store: PostgresStore, url: str) -> None:
    """Trap 130: such as a trigger, or a foreign table, brings about also in READ COMMITTED."""
    with pytest.raises(MisuseError, match="passed over"):
        async with store.claim([key("a")], resource=PG, sync=False) as claim:
            await inside(store, claim.resource(PG))


async def inside(store: PostgresStore, db: Any) -> None:
    assert await db.fetchval("SHOW transaction_isolation") == "read committed"
    assert await db.fetchval("SHOW lock_timeout") == "300ms"
    assert await db.fetchval("SHOW synchronous_commit") == "on"
    error = await quietly(db.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$"))
    assert isinstance(error, Exception)
    assert isinstance(store.translate(error), Contention)


@pytest.mark.parametrize("pool", [0, 2], ids=["url", "pool"])
async def test_cancelled_at_any_moment_it_leaves_no_transaction_and_no_connection_behind(
    opens: Opens, url: str, pool: int
) -> None:
    """Trap 150. The ledger tells: of each key all or nothing, and whoever was not cancelled has it."""
    store = await opens(pool=pool)
    kept: set[str] = set()
    for number in range(60):
        task = asyncio.create_task(apply(store, str(number), str(number)))
        for _ in range(number):
            await asyncio.sleep(0)
        await asyncio.sleep(0.0002 * (number % 20))
        task.cancel()
        if await quietly(task) is None:
            kept.add(str(number))
    await eventually(lambda: in_transaction(url) == 0)
    await eventually(lambda: sessions(url) <= 3)
    assert sorted(notes(url)) == sorted(applied(url))
    assert kept <= set(notes(url))
    for number in range(60):
        await apply(store, str(number), str(number))
    assert sorted(notes(url), key=int) == [str(number) for number in range(60)]


async def test_a_claim_whose_insert_fails_keeps_no_connection(opens: Opens, url: str) -> None:
    store = await opens(pool=1)
    with connected(url, autocommit=False) as other:
        other.execute("INSERT INTO tidings_inbox VALUES ('stock.reserve', 'a', 'other', '', 0)")
        for _ in range(3):
            with pytest.raises(Contention):
                await apply(store, "a", "a")
        other.rollback()
    assert await apply(store, "a", "a") == NEW


async def test_a_statement_that_is_cut_off_leaves_its_connection_fit(store: PostgresStore, url: str) -> None:
    """As when a handler's time is over."""
    with pytest.raises(TimeoutError):
        async with store.claim([key("a")], resource=PG, sync=False) as claim:
            db: Any = claim.resource(PG)
            await db.execute(INSERT, "a")
            async with asyncio.timeout(0.2):
                await db.execute("SELECT pg_sleep(60)")
    await eventually(lambda: in_transaction(url) == 0, 10)
    assert notes(url) == applied(url) == []
    assert await apply(store, "a", "a") == NEW


async def test_a_statement_that_still_runs_when_its_handler_returned_commits_nothing(
    store: PostgresStore, url: str
) -> None:
    tasks = []
    with pytest.raises(MisuseError, match="left a statement running"):
        async with store.claim([key("a")], resource=PG, sync=False) as claim:
            db: Any = claim.resource(PG)
            await db.execute(INSERT, "a")
            tasks.append(asyncio.create_task(db.execute("SELECT pg_sleep(10)")))
            await asyncio.sleep(0.05)
    await asyncio.wait(tasks)
    assert tasks[0].exception() is not None
    await eventually(lambda: in_transaction(url) == 0, 30)
    assert notes(url) == applied(url) == []
    assert await apply(store, "a", "a") == NEW


async def test_a_handler_cannot_close_the_connection_that_it_was_lent(opens: Opens, url: str) -> None:
    store = await opens()
    for ends in ("close", "terminate"):
        with pytest.raises(MisuseError, match="may not close"):
            async with store.claim([key("a")], resource=PG, sync=False) as claim:
                ended = getattr(claim.resource(PG), ends)()
                await ended
    assert await apply(store, "a", "a") == NEW


# ---- statements that need no answer --------------------------------------------------------------------------------


@pytest.mark.proves(store="postgres")
async def test_P4_queued_statements_are_applied_in_their_order_with_the_claim(store: PostgresStore, url: str) -> None:
    run(url, "CREATE TABLE stock (sku text PRIMARY KEY, left_over int)")
    async with store.claim([key("a"), key("b")], resource=Statements, sync=False) as claim:
        statements: Any = None
        for sku in ("x", "y"):
            statements = claim.resource(Statements)
            assert statements.execute("INSERT INTO stock VALUES ($1, 10)", sku) is None
            statements.execute("UPDATE stock SET left_over = left_over * $2 WHERE sku = $1", sku, 2)
            statements.execute("UPDATE stock SET left_over = left_over + $2 WHERE sku = $1", sku, 1)
            statements.execute("UPDATE stock SET left_over = left_over + $2 WHERE sku = $1", sku, 1)
            statements.execute("UPDATE stock SET left_over = left_over * $2 WHERE sku = $1", sku, 3)
            statements.execute("UPDATE stock SET left_over = left_over - 1")
        assert await statements.fetchval("SELECT left_over FROM stock WHERE sku = $1", "y") == 65
        assert [tuple(row) for row in await statements.fetch("SELECT left_over FROM stock ORDER BY sku")] == [
            (64,),
            (65,),
        ]
        assert (await statements.fetchrow("SELECT count(*) FROM stock"))[0] == 2
        statements.execute("UPDATE stock SET left_over = 0 WHERE sku = $1", "y")
    assert query(url, "SELECT sku, left_over FROM stock ORDER BY sku") == [("x", 64), ("y", 0)]
    with pytest.raises(MisuseError, match="over"):
        statements.execute("UPDATE stock SET left_over = 1")
    with pytest.raises(MisuseError, match="over"):
        await statements.flush()


async def test_an_error_of_a_queued_statement_takes_all_back(store: PostgresStore, url: str) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        async with store.claim([key("a")], resource=Statements, sync=False) as claim:
            statements: Any = claim.resource(Statements)
            statements.execute(INSERT, "good")
            statements.execute(INSERT, "bad")
    assert notes(url) == applied(url) == []
    assert in_transaction(url) == 0


async def test_an_error_of_an_earlier_handlers_statement_is_not_blamed_on_who_asks(
    store: PostgresStore, url: str
) -> None:
    """The pipeline blames whoever raises what leaves a claim wrapped; this leaves it bare, and each goes alone."""
    with pytest.raises(asyncpg.CheckViolationError):
        async with store.claim([key("a"), key("b")], resource=Statements, sync=False) as claim:
            earlier: Any = claim.resource(Statements)
            earlier.execute(INSERT, "bad")
            later: Any = claim.resource(Statements)
            try:
                await later.fetchval("SELECT 1")
            except asyncpg.CheckViolationError as error:
                raise RuntimeError("as the pipeline wraps it") from error
    with pytest.raises(RuntimeError, match="wraps"):
        async with store.claim([key("a"), key("b")], resource=Statements, sync=False) as claim:
            claim.resource(Statements)
            own: Any = claim.resource(Statements)
            own.execute(INSERT, "bad")
            try:
                await own.fetchval("SELECT 1")
            except asyncpg.CheckViolationError as error:
                raise RuntimeError("as the pipeline wraps it") from error


async def test_an_error_that_an_earlier_handler_passed_over_is_not_blamed_on_the_next(store: PostgresStore) -> None:
    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        async with store.claim([key("a"), key("b")], resource=PG, sync=False) as claim:
            db: Any = claim.resource(PG)
            await quietly(db.execute(INSERT, "bad"))
            try:
                await db.execute(INSERT, "good")
            except asyncpg.InFailedSQLTransactionError as error:
                raise RuntimeError("as the pipeline wraps it") from error
