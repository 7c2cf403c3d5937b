"""The relay on a real SQLite file: what committed leaves, in order, whoever dies meanwhile."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from tests.integration.stores.ledger import eventually, key, message, query, waiting
from tidings.delivery import Message
from tidings.errors import EventTooLarge, NotStored
from tidings.outbox import rows
from tidings.ports import Publish
from tidings.stores.sqlalchemy import SqlAlchemyStore

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqlAlchemyStore]:
    store = SqlAlchemyStore(f"sqlite:///{path}", lock_timeout=5, poll=0.05, lease=1.0)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def relaying(store: SqlAlchemyStore, publish: Publish) -> AsyncIterator[None]:
    task = asyncio.create_task(store.relay(publish))
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=10)
        assert task.cancelled()


@contextmanager
def relay_process(path: Path, file: Path, *mode: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.integration.outbox.relay_process", str(path), str(file), *map(str, mode)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


async def emit(store: SqlAlchemyStore, *messages: Message) -> None:
    async with store.transaction() as db:
        await store.emit(db, messages)


class Recorder:
    def __init__(self, answer: Callable[[Message], Exception | None] = lambda message: None) -> None:
        self.answer = answer
        self.stored: list[str] = []

    async def __call__(self, messages: Sequence[Message]) -> list[Exception | None]:
        answers = [self.answer(message) for message in messages]
        self.stored += [message.id for message, error in zip(messages, answers, strict=True) if error is None]
        return answers


def lines(file: Path) -> list[tuple[str, str, str]]:
    """What the relays' processes stored: id, key, process."""
    if not file.exists():
        return []
    found = [line.split() for line in file.read_text().splitlines()]
    return [(line[0], line[1], line[2]) for line in found if len(line) == 3]


def assert_in_order(stored: Sequence[tuple[str, str]]) -> None:
    """Each key's events in order, when what came again is left out, as a broker does that knows its id."""
    firsts = list(dict.fromkeys(stored))
    for one in {its_key for _, its_key in firsts}:
        mine = [int(id) for id, its_key in firsts if its_key == one]
        assert mine == sorted(mine), f"key {one} was reordered"


async def test_what_was_committed_leaves_and_is_taken_out(store: SqlAlchemyStore, path: Path) -> None:
    broker = Recorder()
    async with relaying(store, broker):
        for number in range(20):
            async with store.claim([key(str(number))], resource=None, sync=bool(number % 2)) as claim:
                await claim.emit([message(str(number))])
        await eventually(lambda: not waiting(path))
    assert broker.stored == [str(number) for number in range(20)]


@pytest.mark.proves("P3", store="sqlite")
async def test_a_kill_between_commit_and_publish_loses_nothing(
    store: SqlAlchemyStore, path: Path, tmp_path: Path
) -> None:
    """The process that committed died; another one publishes."""
    code = (
        "import asyncio, os, signal, sys\n"
        "from tests.integration.stores.ledger import key, message\n"
        "from tidings.stores.sqlalchemy import SqlAlchemyStore\n"
        "async def main():\n"
        "    store = SqlAlchemyStore(f'sqlite:///{sys.argv[1]}')\n"
        "    await store.open()\n"
        "    async with store.claim([key('a')], resource=None, sync=False) as claim:\n"
        "        await claim.emit([message('1'), message('2')])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert waiting(path) == ["1", "2"]
    broker = Recorder()
    async with relaying(store, broker):
        await eventually(lambda: not waiting(path))
    assert broker.stored == ["1", "2"]


async def test_a_kill_between_publish_and_mark_publishes_again_with_the_same_id(
    store: SqlAlchemyStore, path: Path, tmp_path: Path
) -> None:
    """Trap 140. The lease of the dead one is waited for."""
    file = tmp_path / "stored"
    await emit(store, *(message(str(number)) for number in range(5)))
    with relay_process(path, file, "kill-after", 1) as process:
        assert await asyncio.to_thread(process.wait, 20) == -signal.SIGKILL
    assert [id for id, _, _ in lines(file)] == ["0"]
    broker = Recorder()
    async with relaying(store, broker):
        await eventually(lambda: not waiting(path))
    assert broker.stored == ["0", "1", "2", "3", "4"]


async def test_two_relay_processes_never_reorder_whoever_dies(
    store: SqlAlchemyStore, path: Path, tmp_path: Path
) -> None:
    """Traps 139 and 141."""
    file = tmp_path / "stored"
    count = 400

    async def feed() -> None:
        for first in range(0, count, 10):
            await emit(store, *(message(str(number), f"k{number % 7}") for number in range(first, first + 10)))
            await asyncio.sleep(0.02)

    feeding = asyncio.create_task(feed())
    with relay_process(path, file, "kill-after", 60):
        await eventually(lambda: lines(file))  # it holds the lease, and dies soon
        with relay_process(path, file, "kill-after", 90), relay_process(path, file, "slow", 0.02):
            with relay_process(path, file):
                await eventually(lambda: feeding.done() and not waiting(path), 40)
    await feeding
    stored = [(id, key) for id, key, _ in lines(file)]
    assert {int(id) for id, _ in stored} == set(range(count))
    assert_in_order(stored)
    assert len({process for _, _, process in lines(file)}) > 1, "only one of them ever published"


async def test_a_row_that_commits_late_is_not_skipped(store: SqlAlchemyStore, path: Path) -> None:
    """Trap 138: while it is open nothing overtakes it, and afterwards it leaves."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    broker = Recorder()
    async with relaying(store, broker):
        async with engine.begin() as late:
            await store.emit(late, [message("1")])
            other = asyncio.create_task(emit(store, message("2")))
            await asyncio.sleep(0.3)
            assert broker.stored == []
        await other
        await eventually(lambda: not waiting(path))
    await engine.dispose()
    assert broker.stored == ["1", "2"]


async def test_while_the_broker_is_slow_others_can_write(store: SqlAlchemyStore, path: Path) -> None:
    """Trap 142: no transaction is open while it is spoken to."""
    publishing, go_on = asyncio.Event(), asyncio.Event()

    async def publish(messages: Sequence[Message]) -> list[None]:
        publishing.set()
        await go_on.wait()
        return [None] * len(messages)

    await emit(store, message("1"))
    async with relaying(store, publish):
        await publishing.wait()
        with closing(sqlite3.connect(path, timeout=0.1)) as other:
            other.execute("CREATE TABLE other (n INTEGER)")
            other.commit()
        await emit(store, message("2"))
        go_on.set()
        await eventually(lambda: not waiting(path))


async def test_a_parked_row_is_counted_and_holds_its_key_until_somebody_decides(
    store: SqlAlchemyStore, path: Path
) -> None:
    """Trap 143."""
    bad = {"1": EventTooLarge("1: 2 MiB"), "4": EventTooLarge("4: 2 MiB")}
    broker = Recorder(lambda message: bad.get(message.id))
    await emit(store, *(message(str(number), f"k{number % 3}") for number in range(1, 10)))
    async with relaying(store, broker):
        await eventually(lambda: len(waiting(path)) == 3)
        assert sorted(broker.stored) == ["2", "3", "5", "6", "8", "9"]
        assert waiting(path) == ["1", "4", "7"]
        backlog = await store.outbox_backlog()
        assert (backlog.waiting, backlog.parked) == (3, 1)
        assert backlog.oldest_seconds >= 0

        (parked,) = await store.outbox_parked()
        assert (parked.message.id, "2 MiB" in parked.error) == ("1", True)
        assert await store.outbox_discard(parked.id)
        await eventually(lambda: bad and query(path, "SELECT count(*) FROM tidings_outbox WHERE parked") == [(1,)])
        assert waiting(path) == ["4", "7"]

        bad.clear()
        (parked,) = await store.outbox_parked()
        assert await store.outbox_release(parked.id)
        await eventually(lambda: not waiting(path))
        assert broker.stored[-2:] == ["4", "7"]
        assert not await store.outbox_release(parked.id)
        assert not await store.outbox_discard(parked.id)
    assert tuple(await store.outbox_backlog()) == (0, 0.0, 0)


async def test_a_row_that_was_not_stored_keeps_its_reason_and_its_attempts(store: SqlAlchemyStore, path: Path) -> None:
    broker = Recorder(lambda message: NotStored("the stream is full") if message.key == "a" else None)
    await emit(store, message("1", "a"), message("2", "b"), message("3", "a"))
    async with relaying(store, broker):
        await eventually(lambda: query(path, "SELECT attempts FROM tidings_outbox WHERE message_id = '1'") > [(2,)])
    ((error, parked),) = query(path, "SELECT error, parked FROM tidings_outbox WHERE message_id = '1'")
    assert error == "NotStored: the stream is full"
    assert not parked
    assert query(path, "SELECT attempts FROM tidings_outbox WHERE message_id = '3'") == [(0,)]
    assert broker.stored == ["2"]


async def test_P8_a_row_that_waits_by_a_clock_that_was_wrong_leaves_and_a_parked_one_does_not(
    store: SqlAlchemyStore, path: Path
) -> None:
    """Whoever held it was ahead by a day when it died, or its machine's clock was set back since."""
    await emit(store, message("parked", "p"))
    broker = Recorder(lambda message: EventTooLarge("2 MB") if message.id == "parked" else None)
    async with relaying(store, broker):
        await eventually(lambda: query(path, "SELECT id FROM tidings_outbox WHERE parked") != [])
    await emit(store, message("1", "k"), message("2", "k"), message("behind", "p"))
    query(path, "UPDATE tidings_outbox SET retry_at = unixepoch() + 86400 WHERE message_id = '1'")
    async with relaying(store, broker):
        await eventually(lambda: broker.stored == ["1", "2"])
    assert waiting(path) == ["parked", "behind"]


async def test_rows_behind_a_parked_one_do_not_keep_others_from_leaving(store: SqlAlchemyStore, path: Path) -> None:
    """More of them than a batch holds."""
    broker = Recorder(lambda message: EventTooLarge("no") if message.id == "0" else None)
    await emit(store, *(message(str(number), "stuck") for number in range(3000)), message("free", "other"))
    async with relaying(store, broker):
        await eventually(lambda: "free" in broker.stored)
    assert broker.stored == ["free"]


async def test_large_rows_are_read_a_few_at_a_time(store: SqlAlchemyStore, path: Path) -> None:
    """P11: the memory of a batch is bounded by bytes, not only by rows."""
    body = b"x" * 1_000_000
    largest = 0

    async def publish(messages: Sequence[Message]) -> list[None]:
        nonlocal largest
        largest = max(largest, sum(len(message.body) for message in messages))
        return [None] * len(messages)

    for number in range(6):
        await emit(store, *(Message(id=f"{number}-{one}", stream="s", type="s.t", body=body) for one in range(10)))
    tracemalloc.start()
    async with relaying(store, publish):
        await eventually(lambda: not waiting(path), 40)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert largest <= 8 * 1024 * 1024
    assert peak < 40 * 1024 * 1024


async def test_a_database_that_is_locked_for_a_while_delays_and_loses_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqlAlchemyStore(f"sqlite:///{path}", lock_timeout=0.05, poll=0.05, lease=0.5)
    await store.open()
    await emit(store, message("1"), message("2"))
    broker = Recorder()
    other: Any = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with relaying(store, broker):
        await asyncio.sleep(0.4)
        assert broker.stored == []  # without the lease nothing is published
        other.execute("ROLLBACK")
        await eventually(lambda: not waiting(path))
    other.close()
    await store.close()
    assert list(dict.fromkeys(broker.stored)) == ["1", "2"]


async def test_a_stopped_relay_gives_its_lease_back_at_once(path: Path) -> None:
    first = SqlAlchemyStore(f"sqlite:///{path}", lease=3600, poll=0.05)
    second = SqlAlchemyStore(f"sqlite:///{path}", lease=3600, poll=0.05)
    await first.open()
    await second.open()
    broker, other = Recorder(), Recorder()
    await emit(first, message("1"))
    async with relaying(first, broker):
        await eventually(lambda: not waiting(path))
    await emit(first, message("2"))
    async with relaying(second, other):
        await eventually(lambda: not waiting(path))
    assert (broker.stored, other.stored) == (["1"], ["2"])
    await first.close()
    await second.close()


async def test_the_lease_has_one_owner_at_a_time(store: SqlAlchemyStore) -> None:
    async def take(owner: str, seconds: float = 3600) -> bool:
        return await store._write(lambda connection: rows.take_lease(connection, owner, seconds))

    async def give_back(owner: str) -> None:
        await store._write(lambda connection: rows.give_lease_back(connection, owner))

    assert await take("a")
    assert not await take("b")
    assert await take("a"), "its owner may renew it"
    await give_back("b")
    assert not await take("b"), "only its owner can give it back"
    await give_back("a")
    assert await take("b", 0.01)
    await asyncio.sleep(0.02)
    assert await take("a"), "it ran out"
    assert await take("b", 1), "it ends later than any lease of this length could: the clock was set back"


async def test_while_one_publishes_slowly_another_process_does_not(path: Path) -> None:
    publishing, go_on, other = asyncio.Event(), asyncio.Event(), Recorder()

    async def publish(messages: Sequence[Message]) -> list[None]:
        publishing.set()
        await go_on.wait()
        return [None] * len(messages)

    first, second = (SqlAlchemyStore(f"sqlite:///{path}", lock_timeout=5, poll=0.05, lease=4.0) for _ in range(2))
    await first.open()
    await second.open()
    await emit(first, message("1"), message("2"))
    async with relaying(first, publish):
        await publishing.wait()
        ((owner, ends),) = query(path, "SELECT owner, expires_at FROM tidings_relay")
        async with relaying(second, other):
            await eventually(lambda: time.time() > ends + 0.5)  # longer than the lease, which is renewed meanwhile
            assert query(path, "SELECT owner FROM tidings_relay") == [(owner,)]
            assert other.stored == []
            go_on.set()
            await eventually(lambda: not waiting(path))
    for one in (first, second):
        await one.close()
    assert other.stored == []
