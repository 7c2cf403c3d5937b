"""Bad days that every database has: misuse, missing tables, cancelled and hanging handlers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from tests.integration.stores.handling import handle
from tests.integration.stores.ledger import (
    INSERT,
    Where,
    applied,
    holding,
    in_thread,
    key,
    notes,
    query,
    url_of,
    waiting,
)
from tidings.errors import ConfigurationError, Contention, MisuseError, StoreUnavailable
from tidings.ports import State
from tidings.stores.sqlalchemy import SqlAlchemyStore


async def test_a_second_transaction_inside_a_claim_is_refused_at_once(store: SqlAlchemyStore, where: Where) -> None:
    """It would wait for the first one, which waits for it."""
    async with store.claim([key("a")], resource=None, sync=False):
        with pytest.raises(MisuseError, match="open here already"):
            async with store.transaction():
                pass
    async with store.transaction(), asyncio.timeout(5):
        with pytest.raises(MisuseError, match="open here already"):
            await handle(store, "b")
    assert await handle(store, "c") is State.NEW


async def test_a_pool_that_is_used_up_is_unavailable_not_a_failure(store: SqlAlchemyStore) -> None:
    error = store.translate(sa.exc.TimeoutError("QueuePool limit"))
    assert isinstance(error, StoreUnavailable)
    assert "pool" in str(error)


async def test_a_database_of_a_newer_version_is_refused(store: SqlAlchemyStore, where: Where) -> None:
    async with store.transaction() as db:
        await db.exec_driver_sql("INSERT INTO tidings_schema VALUES (99, 0)")
    other = SqlAlchemyStore(url_of(where))
    with pytest.raises(ConfigurationError, match="version 99"):
        await other.open()


async def test_a_table_that_is_gone_is_unavailable_and_says_which(store: SqlAlchemyStore, where: Where) -> None:
    query(where, "DROP TABLE tidings_inbox")
    with pytest.raises(StoreUnavailable, match="tidings_inbox"):
        await handle(store, "a")


async def test_several_processes_open_a_new_database_at_once(empty: Where) -> None:
    code = (
        "import asyncio, sys\n"
        "from tidings.stores.sqlalchemy import SqlAlchemyStore\n"
        "async def main():\n"
        "    store = SqlAlchemyStore(sys.argv[1], lock_timeout=30, answers_within=60)\n"  # each waits for all before it
        "    sys.stdin.readline()\n"
        "    await store.open()\n"
        "    await store.close()\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", code, url_of(empty)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, text=True) for _ in range(5)]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            process.communicate(timeout=120)
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * 5
    assert query(empty, "SELECT version FROM tidings_schema") == [(2,)]
    assert query(empty, "SELECT name FROM tidings_relay") == [("outbox",)]


async def test_a_store_that_is_not_open_says_so(empty: Where) -> None:
    store = SqlAlchemyStore(url_of(empty))
    with pytest.raises(MisuseError, match="not open"):
        await handle(store, "a")
    await store.close()
    await store.open()
    await store.open()
    await store.close()
    await store.close()
    with pytest.raises(MisuseError, match="not open"):
        await handle(store, "a")
    await store.open()
    await store.close()


@pytest.mark.parametrize("sync", [False, True])
async def test_cancelled_after_any_number_of_steps_it_leaves_all_or_nothing(
    store: SqlAlchemyStore, where: Where, sync: bool
) -> None:
    """Wherever the cancellation falls: key, effect and event stand together, and the next claim works."""
    complete = 0
    for steps in range(0, 60, 2 if sync else 1):
        task = asyncio.create_task(handle(store, f"{steps:03}", sync=sync))
        for _ in range(steps):
            await asyncio.sleep(0)
        await asyncio.sleep(steps % 7 / 5000)
        task.cancel()
        await asyncio.wait({task}, timeout=10)
        assert task.done()
        assert notes(where) == applied(where) == waiting(where)
        complete += not task.cancelled()
    assert await handle(store, "last", sync=sync) is State.NEW
    assert notes(where) == applied(where) == waiting(where)


async def test_a_hundred_failures_of_each_kind_leak_no_connection_and_no_thread(
    store: SqlAlchemyStore, where: Where
) -> None:
    """A leak of one connection in each would use the pool of fifteen up."""

    async def fail(number: int, *, sync: bool) -> None:
        kind = sa.Connection if sync else AsyncConnection
        async with store.claim([key(str(number))], resource=kind, sync=sync) as claim:
            db: Any = claim.resource(kind)
            statement = sa.text("INSERT INTO nowhere VALUES (1)")
            if number % 3 == 0:
                raise LookupError
            if number % 3 == 1:
                await in_thread(claim, lambda: db.execute(statement)) if sync else await db.execute(statement)
            await in_thread(claim, db.rollback) if sync else await db.rollback()

    threads = threading.active_count()
    for number in range(100):
        with pytest.raises((LookupError, DBAPIError, MisuseError)):
            await fail(number, sync=bool(number % 2))
    if isinstance(where, str):  # SQLite's file has one writer, and tests of its own
        with holding(where, "INSERT INTO tidings_inbox VALUES ('stock.reserve', 'x', 'e', '', 0)"):
            for number in range(4):
                with pytest.raises(Contention):
                    await handle(store, "x", sync=bool(number % 2))
    assert await handle(store, "good") is State.NEW
    assert threading.active_count() <= threads + 6
    assert notes(where) == ["good"]


async def test_a_hanging_sync_handler_does_not_hang_the_end_of_its_claim(
    store: SqlAlchemyStore, where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread cannot be stopped. Its work is rolled back when it ends; nobody writes until then."""
    monkeypatch.setattr("tidings.stores._transactions.ROLLBACK_LIMIT", 0.1)
    release = threading.Event()

    def hang(db: sa.Connection) -> None:
        db.execute(INSERT, {"note": "hanging"})
        release.wait(20)
        db.execute(INSERT, {"note": "after its time"})

    async with asyncio.timeout(15):  # it hangs for longer
        with pytest.raises(TimeoutError):
            async with store.claim([key("a")], resource=sa.Connection, sync=True) as claim:
                db: Any = claim.resource(sa.Connection)
                async with asyncio.timeout(0.1):
                    await in_thread(claim, lambda: hang(db))
        with pytest.raises(Contention) if isinstance(where, Path) else nullcontext():
            await handle(store, "b")  # on a server its connection is closed, and the handler goes on with nothing
        release.set()
        await asyncio.sleep(0.2)
        await handle(store, "b")
        assert await handle(store, "c", sync=True) is State.NEW
    assert notes(where) == ["b", "c"]
    assert applied(where) == ["b", "c"]


async def test_an_error_while_the_events_are_written_commits_nothing(store: SqlAlchemyStore, where: Where) -> None:
    query(where, "DROP TABLE tidings_outbox")
    with pytest.raises(StoreUnavailable, match="tidings_outbox"):
        await handle(store, "a")
    assert notes(where) == applied(where) == []
    async with store.claim([key("a")], resource=None, sync=False) as claim:
        assert claim.states[0].state is State.NEW


@pytest.mark.parametrize("wanted", [AsyncConnection, AsyncSession])
async def test_an_error_of_a_transactions_own_passes_unchanged(store: SqlAlchemyStore, wanted: type) -> None:
    with pytest.raises(DBAPIError):
        async with store.transaction(wanted) as db:
            await db.execute(INSERT, {"note": "bad"})
