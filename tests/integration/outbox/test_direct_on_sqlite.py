"""Publishing from memory, on a real SQLite file: at once, in order, and nothing lost when a process dies."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine

from tests.integration.outbox.direct_process import KEYS
from tests.integration.outbox.test_relay_on_sqlite import ROOT, Recorder, emit, lines, relaying
from tests.integration.stores.ledger import end_hold, eventually, key, message, query, waiting
from tidings import points
from tidings.delivery import Message
from tidings.errors import EventTooLarge
from tidings.stores.sqlalchemy import SqlAlchemyStore

HOLD = 120.0
MANY = 100_000
"""Changes that no process comes to the end of before it is told."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqlAlchemyStore]:
    """Its relay comes only when it is called. Neither a hold nor a lease ends while the machine has no time."""
    store = SqlAlchemyStore(f"sqlite:///{path}", lock_timeout=30, poll=3600, lease=HOLD, hold=HOLD)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def other(path: Path, store: SqlAlchemyStore) -> AsyncIterator[SqlAlchemyStore]:
    """As another process would have it."""
    other = SqlAlchemyStore(f"sqlite:///{path}", lock_timeout=30, poll=0.05, lease=HOLD, hold=HOLD)
    await other.open()
    try:
        yield other
    finally:
        await other.close()


def lease_taken(path: Path) -> bool:
    return query(path, "SELECT owner, expires_at FROM tidings_relay") != [("", 0.0)]


async def started(store: SqlAlchemyStore) -> None:
    desk = store._desk
    assert desk is not None
    await eventually(desk.direct.takes)


async def test_what_was_committed_leaves_at_once_and_no_relay_reads_it_back(store: SqlAlchemyStore, path: Path) -> None:
    broker = Recorder()
    async with relaying(store, broker):
        await started(store)
        for number in range(20):
            async with store.claim([key(str(number))], resource=None, sync=bool(number % 2)) as claim:
                await claim.emit([message(f"{number}a"), message(f"{number}b", None)])
        await emit(store, message("last"))
        await eventually(lambda: not waiting(path))
        assert not lease_taken(path)
    assert sorted(broker.stored) == sorted([*(f"{n}{letter}" for n in range(20) for letter in "ab"), "last"])
    in_order = [id for id in broker.stored if not id.endswith("b")]
    assert in_order == [*(f"{number}a" for number in range(20)), "last"]


async def test_under_load_it_costs_one_transaction_for_an_event_and_not_two(
    store: SqlAlchemyStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was published is taken out by the commit that comes next."""
    broker = Recorder()
    async with relaying(store, broker):
        await started(store)
        writes = store._write
        own = 0

        async def counted(work: object) -> object:
            nonlocal own
            own += 1
            return await writes(work)  # type: ignore[arg-type]  # whatever it is, it is passed on

        monkeypatch.setattr(store, "_write", counted)
        began = asyncio.get_running_loop().time()
        for number in range(200):
            await emit(store, message(str(number)))
        seconds = asyncio.get_running_loop().time() - began
        await eventually(lambda: not waiting(path))
    assert len(broker.stored) == 200
    assert own <= 3 + seconds / 0.1, "at most one each tenth of a second, and those at the end"


@pytest.mark.proves("P8", store="sqlite")
async def test_P8_a_row_of_another_process_that_is_unsent_is_not_overtaken(
    store: SqlAlchemyStore, other: SqlAlchemyStore, path: Path
) -> None:
    """The other one stands still with its row, until its hold is over; then a relay publishes both."""
    stuck, broker = asyncio.Event(), Recorder()

    async def stand_still(messages: Sequence[Message]) -> list[None]:
        stuck.set()
        await asyncio.sleep(60)
        return [None] * len(messages)

    async with relaying(store, broker):
        await started(store)
        standing = asyncio.create_task(other._desk.direct.run(stand_still, _never))  # type: ignore[union-attr]  # it is open
        await started(other)
        await emit(other, message("1", "k"))
        await stuck.wait()
        await emit(store, message("2", "k"), message("3", "free"))
        await eventually(lambda: broker.stored == ["3"])
        await emit(store, message("4", "k"))
        assert waiting(path) == ["1", "2", "4"]
        await end_hold(path, "1")
        store._desk.wake.now()  # type: ignore[union-attr]  # as above; it may have the lease
        third = Recorder()
        async with relaying(third_store := await _opened(path), third):
            await eventually(lambda: not waiting(path))
        await third_store.close()
        standing.cancel()
        await asyncio.wait({standing}, timeout=10)
    assert broker.stored + third.stored == ["3", "1", "2", "4"]


async def _opened(path: Path) -> SqlAlchemyStore:
    store = SqlAlchemyStore(f"sqlite:///{path}", lock_timeout=30, poll=0.05, lease=HOLD)
    await store.open()
    return store


async def _never(stored: Sequence[int], left: Sequence[int]) -> None:
    await asyncio.sleep(60)


async def test_while_it_is_published_from_memory_no_relay_publishes_it_too(
    store: SqlAlchemyStore, other: SqlAlchemyStore, path: Path
) -> None:
    slow, relay = asyncio.Event(), Recorder()

    async def publish(messages: Sequence[Message]) -> list[None]:
        await slow.wait()
        return [None] * len(messages)

    async with relaying(store, publish), relaying(other, relay):
        await started(store)
        await emit(store, message("1"))
        await asyncio.sleep(0.5)
        assert waiting(path) == ["1"]
        slow.set()
        await eventually(lambda: not waiting(path))
    assert relay.stored == []


async def test_what_is_rolled_back_never_leaves(store: SqlAlchemyStore, path: Path) -> None:
    """Trap 137."""
    broker = Recorder()
    async with relaying(store, broker):
        await started(store)
        with pytest.raises(ZeroDivisionError):
            async with store.transaction() as db:
                await store.emit(db, [message("1")])
                raise ZeroDivisionError
        await emit(store, message("2"))
        await eventually(lambda: broker.stored == ["2"])


async def test_a_commit_that_fails_lets_nothing_leave(store: SqlAlchemyStore, path: Path) -> None:
    """At the commit itself, when the rows are written already; and what was to be taken out is not forgotten."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE parent (id INTEGER PRIMARY KEY);"
            "CREATE TABLE child (id INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED);"
        )
    broker = Recorder()
    async with relaying(store, broker):
        await started(store)
        await emit(store, message("0"))
        await eventually(lambda: broker.stored == ["0"])
        with pytest.raises(IntegrityError):
            async with store.transaction() as db:
                await db.exec_driver_sql("INSERT INTO child VALUES (1)")
                await store.emit(db, [message("1")])
        await emit(store, message("2"))
        await eventually(lambda: not waiting(path))
    assert broker.stored == ["0", "2"]


async def test_a_row_that_is_refused_is_parked_by_the_relay_and_holds_its_key(
    store: SqlAlchemyStore, path: Path
) -> None:
    """Trap 143."""
    broker = Recorder(lambda message: EventTooLarge("2 MiB") if message.id == "1" else None)
    async with relaying(store, broker):
        await started(store)
        await emit(store, message("1", "k"), message("2", "k"), message("3", "free"))
        await emit(store, message("4", "k"))
        await eventually(lambda: query(path, "SELECT message_id FROM tidings_outbox WHERE parked") == [("1",)])
        await emit(store, message("5", "k"), message("6", "free"))
        await eventually(lambda: "6" in broker.stored)
        assert broker.stored == ["3", "6"]
        (parked,) = await store.outbox_parked()
        assert await store.outbox_discard(parked.id)
        await eventually(lambda: not waiting(path))
    assert broker.stored == ["3", "6", "2", "4", "5"]


async def test_the_transaction_of_a_user_is_the_relays(store: SqlAlchemyStore, path: Path) -> None:
    """Nobody tells when it commits."""
    broker = Recorder()
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with relaying(store, broker):
        await started(store)
        async with engine.begin() as tx:
            await store.emit(tx, [message("1")])
        assert query(path, "SELECT retry_at FROM tidings_outbox") in ([(0.0,)], [])
        await emit(store, message("2"))
        await eventually(lambda: not waiting(path))
    await engine.dispose()
    assert broker.stored == ["1", "2"]


# ── processes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def changing(path: Path, file: Path, count: int, *how: object) -> Iterator[subprocess.Popen[str]]:
    arguments = [str(path), str(file), str(count), *map(str, how)]
    command = [sys.executable, "-m", "tests.integration.outbox.direct_process", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def assert_complete_and_in_order(path: Path, file: Path) -> int:
    """Each change left, in the order of the commits of its key, where what came again is left out. Returns repeats."""
    by_key: dict[str, list[int]] = defaultdict(list)
    repeats = 0
    for id, its_key, _ in lines(file):
        if int(id) in by_key[its_key]:
            repeats += 1
        else:
            by_key[its_key].append(int(id))
    counted = {str(key): n for key, n in query(path, "SELECT key, n FROM counter")}
    assert {key: len(found) for key, found in by_key.items()} == counted, "events were lost, or never committed"
    for its_key, found in by_key.items():
        assert found == sorted(found), f"key {its_key} was reordered"
    return repeats


@pytest.fixture
async def counted(store: SqlAlchemyStore, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE counter (key INTEGER PRIMARY KEY, n INTEGER NOT NULL)")
        connection.executemany("INSERT INTO counter VALUES (?, 0)", [(key,) for key in range(KEYS)])


@pytest.mark.usefixtures("counted")
@pytest.mark.proves("P8", store="sqlite")
async def test_P8_processes_that_change_the_same_keys_keep_their_order_when_one_stands_still(
    path: Path, tmp_path: Path
) -> None:
    """SIGSTOP for longer than the hold, again and again; then it goes on.

    Until both have published: the one that stands may hold the database, and then the other one can do nothing.
    """
    file = tmp_path / "stored"
    stops = 0
    with changing(path, file, MANY) as first:
        await eventually(lambda: lines(file))
        with changing(path, file, MANY) as second:
            while stops < 2 or (len({process for _, _, process in lines(file)}) < 2 and stops < 20):
                await asyncio.sleep(0.4)
                first.send_signal(signal.SIGSTOP)
                await asyncio.sleep(1.5)
                first.send_signal(signal.SIGCONT)
                stops += 1
            for process in (first, second):
                process.terminate()
            for process in (first, second):
                assert await asyncio.to_thread(process.wait, 60) == 0
    assert_complete_and_in_order(path, file)
    assert len({process for _, _, process in lines(file)}) == 2


@pytest.mark.usefixtures("counted")
@pytest.mark.proves("P4", store="sqlite")
@pytest.mark.parametrize("point", [points.AFTER_COMMIT, points.OUTBOX_PUBLISH, points.OUTBOX_MARK])
async def test_P4_a_process_that_is_killed_loses_nothing_and_is_not_overtaken(
    path: Path, tmp_path: Path, point: str
) -> None:
    """Between commit and publish, and between publish and delete (trap 140).

    The living one leaves after its changes. Its relay may have taken over all keys by then, and keep them as long as
    rows come without a gap: then the other one would never publish, and never come to the point.
    """
    file = tmp_path / "stored"
    with changing(path, file, 60, "leave") as living, changing(path, file, 1000, "kill", point, 15) as dying:
        assert await asyncio.to_thread(dying.wait, 60) == -signal.SIGKILL
        assert await asyncio.to_thread(living.wait, 60) == 0
    with changing(path, file, 0) as last:  # whatever is left, if the other one had left by then
        assert await asyncio.to_thread(last.wait, 60) == 0
    repeats = assert_complete_and_in_order(path, file)
    if point == points.OUTBOX_MARK:
        assert repeats > 0, "what was published and not taken out leaves again, under its id"
