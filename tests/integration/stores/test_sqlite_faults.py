"""SQLite on a bad day: locks, full disks, lost files, cancelled and hanging handlers. Real ones, each healed again."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from tests.integration.stores.handling import handle
from tests.integration.stores.ledger import (
    CREATE,
    INSERT,
    Where,
    applied,
    create,
    key,
    notes,
    query,
    waiting,
)
from tidings.errors import ConfigurationError, Contention, MisuseError, StoreUnavailable, TidingsError
from tidings.ports import Claim, State
from tidings.stores.sqlalchemy import SqlAlchemyStore


@pytest.fixture
def where(path: Path) -> Where:
    return path


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


@pytest.mark.parametrize("sync", [False, True])
async def test_a_lock_of_another_process_is_contention_and_heals(
    store: SqlAlchemyStore, path: Path, sync: bool
) -> None:
    with locked(path):
        with pytest.raises(Contention, match="locked"):
            await handle(store, "a", sync=sync)
        with pytest.raises(Contention):
            async with store.transaction():
                pass
        assert (await store.outbox_backlog()).waiting == 0  # reading is not held up
    assert await handle(store, "a", sync=sync) is State.NEW
    assert notes(path) == ["a"]


async def test_a_slow_claim_is_contention_for_others_of_its_process(store: SqlAlchemyStore, path: Path) -> None:
    async with store.claim([key("slow")], resource=None, sync=False):

        async def other() -> None:
            await handle(store, "other")

        task = asyncio.create_task(other())
        await asyncio.wait({task})
        assert isinstance(task.exception(), (Contention, MisuseError))
    assert await handle(store, "other") is State.NEW


async def test_waiting_for_a_lock_does_not_stop_the_loop(path: Path) -> None:
    ticks = 0
    store = SqlAlchemyStore(f"sqlite:///{path}", lock_timeout=2)
    await store.open()
    with locked(path):
        for sync in (False, True):
            task = asyncio.create_task(handle(store, "a", sync=sync))
            while not task.done():
                await asyncio.sleep(0.01)
                ticks += 1
            assert isinstance(task.exception(), Contention)
    await store.close()
    assert ticks > 10


async def test_a_lock_error_of_a_second_connection_is_the_handlers_own(store: SqlAlchemyStore, path: Path) -> None:
    """It waits for the handler's own claim, each time anew: an endless retry if it were no failure."""
    other = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 0.05})
    with pytest.raises(OperationalError) as caught:
        async with store.claim([key("a")], resource=None, sync=False):
            with other.begin() as connection:
                connection.execute(INSERT, {"note": "a"})
    other.dispose()
    assert store.translate(caught.value) is None


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
            await handle(store, f"{before:04}" + "x" * 2000, sync=sync)
    assert len(notes(path)) == len(applied(path)) == len(waiting(path)) == before
    filler.unlink()
    assert await handle(store, f"{before:04}" + "x" * 2000, sync=sync) is State.NEW
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
        await handle(reading, "a")
    assert (await reading.outbox_backlog()).waiting == 0
    await reading.close()


async def test_a_new_file_that_may_only_be_read_is_named(path: Path) -> None:
    sqlite3.connect(path).close()
    reading = SqlAlchemyStore(f"sqlite:///file:{path}?mode=ro&uri=true")
    with pytest.raises((StoreUnavailable, ConfigurationError), match=r"only be read|WAL"):
        await reading.open()


async def test_a_file_that_was_removed_while_in_use_gets_nothing_more(store: SqlAlchemyStore, path: Path) -> None:
    """SQLite itself would go on, into a file that nobody can open any more."""
    assert await handle(store, "before") is State.NEW
    hidden = path.with_suffix(".hidden")
    path.rename(hidden)
    with pytest.raises(StoreUnavailable, match="removed"):
        await handle(store, "a")
    with pytest.raises(StoreUnavailable, match="removed"):
        await store.outbox_backlog()
    assert not path.exists()
    hidden.rename(path)
    assert await handle(store, "a") is State.NEW
    assert notes(path) == ["before", "a"]


async def test_a_file_that_is_removed_during_a_claim_does_not_count_as_committed(
    store: SqlAlchemyStore, path: Path
) -> None:
    with pytest.raises(StoreUnavailable, match="removed"):
        async with store.claim([key("a")], resource=AsyncConnection, sync=False):
            path.unlink()


async def test_a_file_that_was_replaced_is_opened_anew(store: SqlAlchemyStore, path: Path, tmp_path: Path) -> None:
    """A backup was put back, and the service goes on with it."""
    assert await handle(store, "old") is State.NEW
    backup = tmp_path / "backup.db"
    query(path, f"VACUUM INTO '{backup}'")
    assert await handle(store, "lost with the file") is State.NEW
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink()
    backup.rename(path)
    assert await handle(store, "old") is State.DONE
    assert await handle(store, "new") is State.NEW
    assert await handle(store, "new in a thread", sync=True) is State.NEW
    assert notes(path) == ["old", "new", "new in a thread"]


async def test_opening_waits_for_a_lock_for_a_time_only(path: Path) -> None:
    sqlite3.connect(path).close()
    store = SqlAlchemyStore(f"sqlite:///{path}", lock_timeout=0.05)
    with locked(path):
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.open()
    await store.open()
    await store.close()


# ---- cancellation and leaks ---------------------------------------------------------------------------------------


@asynccontextmanager
async def claimed(store: SqlAlchemyStore, name: str, *, sync: bool) -> AsyncIterator[Claim]:
    async with store.claim([key(name)], resource=None, sync=sync) as claim:
        yield claim


@pytest.mark.parametrize("sync", [False, True])
async def test_cancelled_while_it_waits_for_a_lock_it_holds_none_afterwards(path: Path, sync: bool) -> None:
    """The thread is inside BEGIN and gets its lock after we are gone."""
    store = SqlAlchemyStore(f"sqlite:///{path}", lock_timeout=30)
    await store.open()
    create(path)
    with locked(path):
        task = asyncio.create_task(handle(store, "a", sync=sync))
        await asyncio.sleep(0.05)
        task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()
    query(path, "INSERT INTO ledger (note) VALUES ('from outside') RETURNING note")
    assert await handle(store, "a", sync=sync) is State.NEW
    await store.close()


async def test_cancelled_inside_a_statement_it_stops_it_and_holds_no_lock(store: SqlAlchemyStore, path: Path) -> None:
    """A statement that would take minutes: nobody waits for it."""
    slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000) SELECT max(i) FROM n"

    async def work() -> None:
        async with store.claim([key("a")], resource=AsyncSession, sync=False) as claim:
            db: Any = claim.resource(AsyncSession)
            await db.execute(INSERT, {"note": "a"})
            await db.execute(sa.text(slow))

    task = asyncio.create_task(work())
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait({task}, timeout=20)
    assert task.cancelled()
    assert await handle(store, "b") is State.NEW
    assert notes(path) == ["b"]


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
    assert await handle(store, "a") is State.NEW
    monkeypatch.undo()
    assert await handle(store, "a") is State.DONE
    assert notes(path) == applied(path) == waiting(path) == ["a"]


@pytest.mark.proves(store="sqlite")
async def test_P4_a_lost_answer_is_looked_up_for_what_was_new_in_the_batch(
    store: SqlAlchemyStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await handle(store, "a") is State.NEW
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
        await handle(store, "a")
    monkeypatch.undo()
    assert notes(path) == applied(path) == waiting(path) == []
    assert await handle(store, "a") is State.NEW
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
        await handle(store, "a")
    monkeypatch.undo()
    assert await handle(store, "a") is State.DONE
    assert notes(path) == ["a"]


async def test_P9_a_cancelled_read_gives_its_connection_back(store: SqlAlchemyStore) -> None:
    """Also while it is being made: the relay reads when its service stops."""
    assert store._desk is not None
    engine = store._desk.engine
    for steps in range(30):
        await engine.dispose()
        reading = asyncio.ensure_future(store.outbox_backlog())
        for _ in range(steps):
            await asyncio.sleep(0.0002)
        reading.cancel()
        await asyncio.wait({reading}, timeout=5)
        assert engine.pool.checkedout() == 0, f"cancelled after {steps} steps"  # type: ignore[attr-defined]  # a queue
