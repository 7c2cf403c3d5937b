"""Publishing from memory on PostgreSQL: at once, and in the order of the commits, whoever commits side by side."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.integration.postgres.conftest import Opens
from tests.integration.postgres.ledger import eventually, key, message, query, run, waiting
from tidings.delivery import Message
from tidings.errors import BrokerUnavailable, Contention
from tidings.ports import Publish
from tidings.stores.postgres import PostgresStore

KEYS = 3
LANES = 6
EACH = 25
HOLD = 120.0
"""No hold ends while the machine has no time."""


class Recorder:
    def __init__(self) -> None:
        self.ids: list[str] = []
        self.away = False

    async def __call__(self, messages: Sequence[Message]) -> list[Exception | None]:
        await asyncio.sleep(random.uniform(0, 0.02))
        if self.away:
            return [BrokerUnavailable("gone")] * len(messages)
        self.ids += [message.id for message in messages]
        return [None] * len(messages)


@asynccontextmanager
async def publishing(store: PostgresStore, publish: Publish) -> AsyncIterator[None]:
    task = asyncio.create_task(store.relay(publish))
    try:
        await eventually(store._ready().direct.takes)
        yield
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=10)
    assert task.cancelled()


async def emit(store: PostgresStore, *messages: Message) -> None:
    async with store.transaction() as db:
        await store.emit(db, messages)


async def test_what_was_committed_leaves_at_once_and_is_not_read_back(opens: Opens, url: str) -> None:
    store, broker = await opens(poll=3600, hold=HOLD), Recorder()
    async with publishing(store, broker):
        for number in range(10):
            async with store.claim([key(str(number))], resource=None, sync=False) as claim:
                await claim.emit([message(f"{number}a"), message(f"{number}b", None), message(f"{number}c")])
        await eventually(lambda: not waiting(url))
        assert query(url, "SELECT owner FROM tidings_relay") == [("",)]
    in_order = [id for id in broker.ids if not id.endswith("b")]
    assert in_order == [f"{number}{letter}" for number in range(10) for letter in "ac"]
    assert len(broker.ids) == 30


async def test_P8_a_row_of_another_process_that_is_unsent_is_not_overtaken(opens: Opens, url: str) -> None:
    store, other = await opens(hold=HOLD), await opens(hold=HOLD)
    stuck, broker = asyncio.Event(), Recorder()

    async def stand_still(messages: Sequence[Message]) -> list[None]:
        stuck.set()
        await asyncio.sleep(60)
        return [None] * len(messages)

    async def never(stored: Sequence[int], left: Sequence[int]) -> None:
        await asyncio.sleep(60)

    async with publishing(store, broker):
        standing = asyncio.create_task(other._ready().direct.run(stand_still, never))
        await eventually(other._ready().direct.takes)
        await emit(other, message("1", "k"))
        await stuck.wait()
        await emit(store, message("2", "k"), message("3", "free"))
        await emit(store, message("4", "k"))
        await eventually(lambda: broker.ids == ["3"])
        over = "UPDATE tidings_outbox SET retry_at = extract(epoch FROM now()) - 1 WHERE message_id = '1'"
        await asyncio.to_thread(run, url, over)
        await eventually(lambda: len(broker.ids) == 4)
        standing.cancel()
        await asyncio.wait({standing}, timeout=10)
    assert broker.ids == ["3", "1", "2", "4"]


@pytest.mark.proves("P8", store="postgres")
async def test_P8_the_order_is_that_of_the_commits_whatever_runs_side_by_side(opens: Opens, url: str) -> None:
    """Lanes of two processes count the same keys up; the number of each event is the place of its commit."""
    run(url, f"CREATE TABLE counters AS SELECT name, 0 AS n FROM generate_series(0, {KEYS - 1}) AS name")
    broker = Recorder()

    async def lane(store: PostgresStore, number: int) -> None:
        for turn in range(EACH):
            name = (number + turn) % KEYS
            for _ in range(100):
                try:
                    async with store.transaction() as db:
                        n = await db.fetchval("UPDATE counters SET n = n + 1 WHERE name = $1 RETURNING n", name)
                        await store.emit(db, [message(f"{name}-{n}", f"k{name}")])
                    break
                except Contention:
                    await asyncio.sleep(0.05)

    one, two = await opens(lock_timeout=5), await opens(lock_timeout=5)
    async with publishing(one, broker), publishing(two, broker):
        async with asyncio.timeout(120):
            await asyncio.gather(*(lane(store, number) for number in range(LANES) for store in (one, two)))
        await eventually(lambda: not waiting(url), 30)
    by_key: dict[str, list[int]] = defaultdict(list)
    for id in dict.fromkeys(broker.ids):
        its_key, n = id.split("-")
        by_key[its_key].append(int(n))
    assert sum(map(len, by_key.values())) == 2 * LANES * EACH
    for its_key, found in by_key.items():
        assert found == sorted(found), f"key {its_key} was reordered"


async def test_what_the_broker_did_not_take_is_the_relays_at_once(opens: Opens, url: str) -> None:
    store, broker = await opens(hold=60), Recorder()
    broker.away = True
    async with publishing(store, broker):
        await emit(store, message("1"), message("2"))
        await eventually(lambda: query(url, "SELECT retry_at FROM tidings_outbox") == [(0.0,), (0.0,)])
        broker.away = False
        await eventually(lambda: broker.ids == ["1", "2"])


async def test_a_commit_that_fails_lets_nothing_leave(opens: Opens, url: str) -> None:
    """At the commit itself, when the rows are written already."""
    run(
        url,
        "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int REFERENCES parent INITIALLY DEFERRED)",
    )
    store, broker = await opens(), Recorder()
    async with publishing(store, broker):
        with pytest.raises(Exception, match="child"):
            async with store.transaction() as db:
                await db.execute("INSERT INTO child VALUES (1)")
                await store.emit(db, [message("1")])
        await emit(store, message("2"))
        await eventually(lambda: not waiting(url))
    assert broker.ids == ["2"]
