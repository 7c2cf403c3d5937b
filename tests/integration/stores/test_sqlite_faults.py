"""SQLite on a bad day: locks, full disks, lost files, cancelled and hanging handlers. Real ones, each healed again."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from tests.integration.stores.ledger import CREATE, INSERT, applied, in_thread, key, message, notes, query, waiting
from tidings.errors import ConfigurationError, Contention, MisuseError, StoreUnavailable, TidingsError
from tidings.ports import Claim, State
from tidings.stores.sqlalchemy import SqlAlchemyStore

LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
"""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process writes, until the block ends."""
    command = [sys.executable, "-c", LOCKER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield
        process.communicate("go\n", timeout=20)


async def apply(store: SqlAlchemyStore, name: str, *, sync: bool = False) -> State:
    """What an ordinary handler does; the proof that the store works."""
    kind = sa.Connection if sync else AsyncConnection
    async with asyncio.timeout(10), store.claim([key(name)], resource=kind, sync=sync) as claim:
        if claim.states[0].state is State.NEW:
            db: Any = claim.resource(kind)
            if sync:
                await in_thread(claim, lambda: db.execute(INSERT, {"note": name}))
            else:
                await db.execute(INSERT, {"note": name})
            await claim.emit([message(name)])
    return claim.states[0].state


@pytest.mark.parametrize("sync", [False, True])
async def test_a_lock_of_another_process_is_contention_and_heals(
    store: SqlAlchemyStore, path: Path, sync: bool
) -> None:
    with locked(path):
        with pytest.raises(Contention, match="locked"):
            await apply(store, "a", sync=sync)
        with pytest.raises(Contention):
            async with store.transaction():
                pass
        assert (await store.outbox_backlog()).waiting == 0  # reading is not held up
    assert await apply(store, "a", sync=sync) is State.NEW
    assert notes(path) == ["a"]


async def test_a_slow_claim_is_contention_for_others_of_its_process(store: SqlAlchemyStore, path: Path) -> None:
    async with store.claim([key("slow")], resource=None, sync=False):

        async def other() -> None:
            await apply(store, "other")

        task = asyncio.create_task(other())
        await asyncio.wait({task})
        assert isinstance(task.exception(), (Contention, MisuseError))
    assert await apply(store, "other") is State.NEW


async def test_waiting_for_a_lock_does_not_stop_the_loop(store: SqlAlchemyStore, path: Path) -> None:
    ticks = 0
    with locked(path):
        for sync in (False, True):
            task = asyncio.create_task(apply(store, "a", sync=sync))
            while not task.done():
                await asyncio.sleep(0.01)
                ticks += 1
            assert isinstance(task.exception(), Contention)
    assert ticks > 10


async def test_a_second_transaction_inside_a_claim_is_refused_at_once(store: SqlAlchemyStore, path: Path) -> None:
    """It would wait for the first one, which waits for it."""
    async with store.claim([key("a")], resource=None, sync=False):
        with pytest.raises(MisuseError, match="open here already"):
            async with store.transaction():
                pass
    async with store.transaction(), asyncio.timeout(5):
        with pytest.raises(MisuseError, match="open here already"):
            await apply(store, "b")
    assert await apply(store, "c") is State.NEW


async def test_a_lock_error_of_a_second_connection_is_the_handlers_own(store: SqlAlchemyStore, path: Path) -> None:
    """It waits for the handler's own claim, each time anew: an endless retry if it were no failure."""
    other = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 0.05})
    with pytest.raises(OperationalError) as caught:
        async with store.claim([key("a")], resource=None, sync=False):
            with other.begin() as connection:
                connection.execute(INSERT, {"note": "a"})
    other.dispose()
    assert store.translate(caught.value) is None


async def test_a_pool_that_is_used_up_is_unavailable_not_a_failure(store: SqlAlchemyStore) -> None:
    error = store.translate(sa.exc.TimeoutError("QueuePool limit"))
    assert isinstance(error, StoreUnavailable)
    assert "pool" in str(error)


# ---- room ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root; the page limit below shows the same error")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("sync", [False, True])
async def test_a_full_disk_is_unavailable_and_heals(small_disk: Path, sync: bool) -> None:
    path = small_disk / "shop.db"
    store = SqlAlchemyStore(f"sqlite:///{path}")
    await store.open()
    async with store.transaction() as db:
        await db.exec_driver_sql(CREATE)
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(b"x" * (free - 8192))
    before = 0
    with pytest.raises(StoreUnavailable, match="room"):
        for before in range(1000):
            await apply(store, f"{before:04}" + "x" * 2000, sync=sync)
    assert len(notes(path)) == len(applied(path)) == len(waiting(path)) == before
    filler.unlink()
    assert await apply(store, f"{before:04}" + "x" * 2000, sync=sync) is State.NEW
    assert len(notes(path)) == len(applied(path)) == before + 1
    await store.close()


async def test_a_full_database_is_unavailable_where_the_statement_is_the_handlers(
    store: SqlAlchemyStore, path: Path
) -> None:
    with pytest.raises(OperationalError) as caught:
        async with store.claim([key("a")], resource=AsyncConnection, sync=False) as claim:
            db: Any = claim.resource(AsyncConnection)
            await db.exec_driver_sql("PRAGMA max_page_count=1")
            for _ in range(100):
                await db.execute(INSERT, {"note": "x" * 10_000})
    error = store.translate(caught.value)
    assert isinstance(error, StoreUnavailable)
    assert "room" in str(error)
    assert notes(path) == applied(path) == []


# ---- files --------------------------------------------------------------------------------------------------------


async def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    store = SqlAlchemyStore(f"sqlite:///{tmp_path}")
    with pytest.raises(StoreUnavailable, match="it is a folder"):
        await store.open()


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    store = SqlAlchemyStore(f"sqlite:///{tmp_path}/missing/shop.db")
    with pytest.raises(StoreUnavailable, match=f"no folder {tmp_path}/missing"):
        await store.open()


async def test_a_file_that_is_no_database_is_named(path: Path) -> None:
    path.write_text("This is a letter. " * 1000)
    store = SqlAlchemyStore(f"sqlite:///{path}")
    with pytest.raises(StoreUnavailable, match="no SQLite database"):
        await store.open()
    assert path.read_text().startswith("This is a letter")


async def test_a_file_that_may_only_be_read_is_named(store: SqlAlchemyStore, path: Path) -> None:
    await store.close()
    reading = SqlAlchemyStore(f"sqlite:///file:{path}?mode=ro&uri=true")
    await reading.open()  # its tables are there
    with pytest.raises(StoreUnavailable, match="only be read"):
        await apply(reading, "a")
    assert (await reading.outbox_backlog()).waiting == 0
    await reading.close()


async def test_a_new_file_that_may_only_be_read_is_named(path: Path) -> None:
    sqlite3.connect(path).close()
    reading = SqlAlchemyStore(f"sqlite:///file:{path}?mode=ro&uri=true")
    with pytest.raises((StoreUnavailable, ConfigurationError), match=r"only be read|WAL"):
        await reading.open()


async def test_a_database_of_a_newer_version_is_refused(store: SqlAlchemyStore, path: Path) -> None:
    async with store.transaction() as db:
        await db.exec_driver_sql("INSERT INTO tidings_schema VALUES (99, 0)")
    other = SqlAlchemyStore(f"sqlite:///{path}")
    with pytest.raises(ConfigurationError, match="version 99"):
        await other.open()


async def test_a_table_that_is_gone_is_unavailable_and_says_which(store: SqlAlchemyStore) -> None:
    async with store.transaction() as db:
        await db.exec_driver_sql("DROP TABLE tidings_inbox")
    with pytest.raises(StoreUnavailable, match="tidings_inbox"):
        await apply(store, "a")


async def test_a_file_that_was_removed_while_in_use_gets_nothing_more(store: SqlAlchemyStore, path: Path) -> None:
    """SQLite itself would go on, into a file that nobody can open any more."""
    assert await apply(store, "before") is State.NEW
    hidden = path.with_suffix(".hidden")
    path.rename(hidden)
    with pytest.raises(StoreUnavailable, match="removed"):
        await apply(store, "a")
    with pytest.raises(StoreUnavailable, match="removed"):
        await store.outbox_backlog()
    assert not path.exists()
    hidden.rename(path)
    assert await apply(store, "a") is State.NEW
    assert notes(path) == ["before", "a"]


async def test_a_file_that_is_removed_during_a_claim_does_not_count_as_committed(
    store: SqlAlchemyStore, path: Path
) -> None:
    with pytest.raises(StoreUnavailable, match="removed"):
        async with store.claim([key("a")], resource=AsyncConnection, sync=False):
            path.unlink()


async def test_a_file_that_was_replaced_is_opened_anew(store: SqlAlchemyStore, path: Path, tmp_path: Path) -> None:
    """A backup was put back, and the service goes on with it."""
    assert await apply(store, "old") is State.NEW
    backup = tmp_path / "backup.db"
    query(path, f"VACUUM INTO '{backup}'")
    assert await apply(store, "lost with the file") is State.NEW
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink()
    backup.rename(path)
    assert await apply(store, "old") is State.DONE
    assert await apply(store, "new") is State.NEW
    assert await apply(store, "new in a thread", sync=True) is State.NEW
    assert notes(path) == ["old", "new", "new in a thread"]


async def test_several_processes_open_a_new_database_at_once(path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from tidings.stores.sqlalchemy import SqlAlchemyStore\n"
        "async def main():\n"
        "    store = SqlAlchemyStore(f'sqlite:///{sys.argv[1]}')\n"
        "    sys.stdin.readline()\n"
        "    await store.open()\n"
        "    await store.close()\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, text=True) for _ in range(5)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0] * 5
    assert query(path, "SELECT version FROM tidings_schema") == [(2,)]
    assert query(path, "SELECT name FROM tidings_relay") == [("outbox",)]


async def test_opening_waits_for_a_lock_for_a_time_only(path: Path) -> None:
    sqlite3.connect(path).close()
    store = SqlAlchemyStore(f"sqlite:///{path}", lock_timeout=0.05)
    with locked(path):
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.open()
    await store.open()
    await store.close()


async def test_a_store_that_is_not_open_says_so(path: Path) -> None:
    store = SqlAlchemyStore(f"sqlite:///{path}")
    with pytest.raises(MisuseError, match="not open"):
        await apply(store, "a")
    await store.close()
    await store.open()
    await store.open()
    await store.close()
    await store.close()
    with pytest.raises(MisuseError, match="not open"):
        await apply(store, "a")
    await store.open()
    await store.close()


# ---- cancellation and leaks ---------------------------------------------------------------------------------------


@asynccontextmanager
async def claimed(store: SqlAlchemyStore, name: str, *, sync: bool) -> AsyncIterator[Claim]:
    async with store.claim([key(name)], resource=None, sync=sync) as claim:
        yield claim


@pytest.mark.parametrize("sync", [False, True])
async def test_cancelled_after_any_number_of_steps_it_leaves_all_or_nothing(
    store: SqlAlchemyStore, path: Path, sync: bool
) -> None:
    """Wherever the cancellation falls: key, effect and event stand together, and the next claim works."""
    complete = 0
    for steps in range(0, 60, 2 if sync else 1):
        task = asyncio.create_task(apply(store, f"{steps:03}", sync=sync))
        for _ in range(steps):
            await asyncio.sleep(0)
        await asyncio.sleep(steps % 7 / 5000)
        task.cancel()
        await asyncio.wait({task}, timeout=10)
        assert task.done()
        assert notes(path) == applied(path) == waiting(path)
        complete += not task.cancelled()
    assert await apply(store, "last", sync=sync) is State.NEW
    assert notes(path) == applied(path) == waiting(path)


@pytest.mark.parametrize("sync", [False, True])
async def test_cancelled_while_it_waits_for_a_lock_it_holds_none_afterwards(
    store: SqlAlchemyStore, path: Path, sync: bool
) -> None:
    """The thread is inside BEGIN and gets its lock after we are gone."""
    with locked(path):
        task = asyncio.create_task(apply(store, "a", sync=sync))
        await asyncio.sleep(0.05)
        task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()
    query(path, "INSERT INTO ledger (note) VALUES ('from outside') RETURNING note")
    assert await apply(store, "a", sync=sync) is State.NEW


async def test_cancelled_inside_a_statement_it_stops_it_and_holds_no_lock(store: SqlAlchemyStore, path: Path) -> None:
    """A statement that would take minutes: nobody waits for it."""
    slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000) SELECT max(i) FROM n"

    async def handle() -> None:
        async with store.claim([key("a")], resource=AsyncSession, sync=False) as claim:
            db: Any = claim.resource(AsyncSession)
            await db.execute(INSERT, {"note": "a"})
            await db.execute(sa.text(slow))

    task = asyncio.create_task(handle())
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait({task}, timeout=20)
    assert task.cancelled()
    assert await apply(store, "b") is State.NEW
    assert notes(path) == ["b"]


async def test_a_hundred_failures_of_each_kind_leak_no_connection_and_no_thread(
    store: SqlAlchemyStore, path: Path
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
        with pytest.raises((LookupError, OperationalError, MisuseError)):
            await fail(number, sync=bool(number % 2))
    with locked(path):
        for number in range(4):
            with pytest.raises(Contention):
                await apply(store, "x", sync=bool(number % 2))
    assert await apply(store, "good") is State.NEW
    assert threading.active_count() <= threads + 6
    assert notes(path) == ["good"]


async def test_a_hanging_sync_handler_does_not_hang_the_end_of_its_claim(
    store: SqlAlchemyStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread cannot be stopped. Its work is rolled back when it ends; nobody writes until then."""
    monkeypatch.setattr("tidings.stores._transactions.ROLLBACK_LIMIT", 0.1)
    release = threading.Event()

    def hang(db: sa.Connection) -> None:
        db.execute(INSERT, {"note": "hanging"})
        release.wait(20)
        db.execute(INSERT, {"note": "after its time"})

    async with asyncio.timeout(5):
        with pytest.raises(TimeoutError):
            async with store.claim([key("a")], resource=sa.Connection, sync=True) as claim:
                db: Any = claim.resource(sa.Connection)
                async with asyncio.timeout(0.1):
                    await in_thread(claim, lambda: hang(db))
        with pytest.raises(Contention):
            await apply(store, "b")
        release.set()
        await asyncio.sleep(0.2)
        assert await apply(store, "b") is State.NEW
        assert await apply(store, "c", sync=True) is State.NEW
    assert notes(path) == ["b", "c"]
    assert applied(path) == ["b", "c"]


# ---- a commit that fails ------------------------------------------------------------------------------------------


def break_commits(store: SqlAlchemyStore, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
    """Cut the connection off in the moment of the commit: just before, or just after it took effect."""
    from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_connection as Connection

    whole = Connection.commit

    def commit(self: Connection) -> None:
        if after:
            whole(self)
        else:
            self.rollback()
        self.close()
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Connection, "commit", commit)


@pytest.mark.proves(store="sqlite")
async def test_P4_a_commit_whose_answer_was_lost_is_looked_up_and_counts(
    store: SqlAlchemyStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_commits(store, monkeypatch, after=True)
    assert await apply(store, "a") is State.NEW
    monkeypatch.undo()
    assert await apply(store, "a") is State.DONE
    assert notes(path) == applied(path) == waiting(path) == ["a"]


@pytest.mark.proves(store="sqlite")
async def test_P4_a_lost_answer_is_looked_up_for_what_was_new_in_the_batch(
    store: SqlAlchemyStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await apply(store, "a") is State.NEW
    break_commits(store, monkeypatch, after=True)
    keys = [key("a", "another event"), key("b"), key("c"), key("b", "third")]
    async with store.claim(keys, resource=None, sync=False) as claim:
        claim.fail(2)
    monkeypatch.undo()
    assert applied(path) == ["a", "b"]


@pytest.mark.proves(store="sqlite")
async def test_P4_a_commit_that_was_lost_itself_is_looked_up_and_does_not_count(
    store: SqlAlchemyStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_commits(store, monkeypatch, after=False)
    with pytest.raises(StoreUnavailable):
        await apply(store, "a")
    monkeypatch.undo()
    assert notes(path) == applied(path) == waiting(path) == []
    assert await apply(store, "a") is State.NEW
    assert notes(path) == ["a"]


@pytest.mark.proves(store="sqlite")
async def test_P4_a_commit_of_unknown_outcome_that_cannot_be_looked_up_counts_as_not_done(
    store: SqlAlchemyStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes again, and its key says then that it was."""
    break_commits(store, monkeypatch, after=True)

    async def read(work: object) -> None:
        raise StoreUnavailable("gone")

    assert store._desk is not None
    monkeypatch.setattr(store._desk, "read", read)
    with pytest.raises(TidingsError):
        await apply(store, "a")
    monkeypatch.undo()
    assert await apply(store, "a") is State.DONE
    assert notes(path) == ["a"]


async def test_an_error_while_the_events_are_written_commits_nothing(store: SqlAlchemyStore, path: Path) -> None:
    async with store.transaction() as db:
        await db.exec_driver_sql("DROP TABLE tidings_outbox")
    with pytest.raises(StoreUnavailable, match="tidings_outbox"):
        await apply(store, "a")
    assert notes(path) == applied(path) == []
    async with store.claim([key("a")], resource=None, sync=False) as claim:
        assert claim.states[0].state is State.NEW


@pytest.mark.parametrize("wanted", [AsyncConnection, AsyncSession])
async def test_an_error_of_a_transactions_own_passes_unchanged(store: SqlAlchemyStore, wanted: type) -> None:
    with pytest.raises(IntegrityError):
        async with store.transaction(wanted) as db:
            await db.execute(INSERT, {"note": "bad"})
