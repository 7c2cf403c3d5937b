"""Publishing from memory on every database: at once, and in the order of the commits, whoever commits side by side."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import sqlalchemy as sa

from tests.integration.stores.ledger import (
    Where,
    applied,
    end_hold,
    eventually,
    key,
    message,
    query,
    url_of,
    waiting,
)
from tidings.delivery import Message
from tidings.errors import Contention
from tidings.ports import Publish
from tidings.stores.sqlalchemy import SqlAlchemyStore

KEYS = 3
LANES = 6
EACH = 25
HOLD = 120.0
"""No hold ends while the machine has no time."""


@asynccontextmanager
async def opened(where: Where, publish: Publish | None = None, *, poll: float = 0.05) -> AsyncIterator[SqlAlchemyStore]:
    """A store as one process would have it, with what it publishes running."""
    store = SqlAlchemyStore(url_of(where), lock_timeout=30, poll=poll, lease=1.0, hold=HOLD)
    await store.open()
    relaying = None
    try:
        if publish is not None:
            relaying = asyncio.create_task(store.relay(publish))
            await eventually(lambda: store._desk is not None and store._desk.direct.takes())
        yield store
    finally:
        if relaying is not None:
            relaying.cancel()
            await asyncio.wait({relaying}, timeout=10)
        await store.close()


class Recorder:
    def __init__(self) -> None:
        self.stored: list[Message] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def __call__(self, messages: Sequence[Message]) -> list[None]:
        await self.answers.wait()
        await asyncio.sleep(random.uniform(0, 0.02))
        self.stored += messages
        return [None] * len(messages)

    @property
    def ids(self) -> list[str]:
        return [message.id for message in self.stored]


async def test_what_was_committed_leaves_at_once_and_is_not_read_back(where: Where) -> None:
    broker = Recorder()
    async with opened(where, broker, poll=3600) as store:
        for number in range(10):
            async with store.claim([key(str(number))], resource=None, sync=bool(number % 2)) as claim:
                await claim.emit([message(f"{number}a"), message(f"{number}b", None), message(f"{number}c")])
        await eventually(lambda: not waiting(where))
        assert query(where, "SELECT owner FROM tidings_relay") == [("",)]
    in_order = [id for id in broker.ids if not id.endswith("b")]
    assert in_order == [f"{number}{letter}" for number in range(10) for letter in "ac"]
    assert len(broker.ids) == 30


async def test_a_hundred_events_are_a_few_statements(where: Where) -> None:
    """On some databases the answer to an insert of many rows costs one for each, unless one takes care."""
    statements: list[tuple[object, str]] = []
    broker = Recorder()
    broker.answers.clear()  # nothing is taken out meanwhile
    async with opened(where, broker, poll=3600) as store:
        assert store._desk is not None

        def count(connection: sa.Connection, cursor: object, statement: str, *rest: object) -> None:
            statements.append((connection.connection.dbapi_connection, statement))

        sa.event.listen(store._desk.engine.sync_engine, "before_cursor_execute", count)
        async with store.transaction() as db:
            own = (await db.get_raw_connection()).dbapi_connection  # the relay has its first look over another
            await store.emit(db, [message(str(number), f"k{number}") for number in range(100)])
        assert len([one for by, one in statements if by is own and "tidings_outbox" in one]) == 2, statements
        broker.answers.set()
        await eventually(lambda: not waiting(where))
    assert len(broker.ids) == 100


async def test_P4_the_events_of_a_batch_may_be_larger_together_than_what_a_server_takes_at_once(where: Where) -> None:
    """MariaDB takes 16 MiB in one statement, unless told otherwise; each byte of these is two on its way."""
    broker = Recorder()
    wanted = [f"m{number}" for number in range(20)]
    async with opened(where, broker, poll=3600) as store:
        async with store.claim([key("large")], resource=None, sync=False) as claim:
            await claim.emit([message(id, "k", b"\0" * 900_000) for id in wanted])
        await eventually(lambda: not waiting(where))
    assert broker.ids == wanted
    assert applied(where) == ["large"]


async def test_P8_a_row_of_another_process_that_is_unsent_is_not_overtaken(where: Where) -> None:
    stuck, broker = asyncio.Event(), Recorder()

    async def stand_still(messages: Sequence[Message]) -> list[None]:
        stuck.set()
        await asyncio.sleep(60)
        return [None] * len(messages)

    async def never(stored: Sequence[int], left: Sequence[int]) -> None:
        await asyncio.sleep(60)

    async with opened(where) as other, opened(where, broker) as store:
        assert other._desk is not None
        standing = asyncio.create_task(other._desk.direct.run(stand_still, never))
        await eventually(other._desk.direct.takes)
        for ours, id, name in ((other, "1", "k"), (store, "2", "k"), (store, "3", "free"), (store, "4", "k")):
            async with ours.transaction() as db:
                await ours.emit(db, [message(id, name)])
            await stuck.wait()
        await eventually(lambda: broker.ids == ["3"])
        await end_hold(where, "1")
        await eventually(lambda: len(broker.ids) == 4)
        standing.cancel()
        await asyncio.wait({standing}, timeout=10)
    assert broker.ids == ["3", "1", "2", "4"]


async def test_P8_the_order_is_that_of_the_commits_whatever_runs_side_by_side(where: Where) -> None:
    """Lanes of two processes count the same keys up; the number of each event is the place of its commit."""
    query(where, "CREATE TABLE counters (name INTEGER PRIMARY KEY, n INTEGER NOT NULL)")
    for name in range(KEYS):
        query(where, f"INSERT INTO counters VALUES ({name}, 0)")
    broker = Recorder()

    async def lane(store: SqlAlchemyStore, number: int) -> None:
        for turn in range(EACH):
            name = (number + turn) % KEYS
            for _ in range(100):
                try:
                    async with store.transaction() as db:
                        await db.execute(sa.text("UPDATE counters SET n = n + 1 WHERE name = :name"), {"name": name})
                        read = await db.execute(sa.text("SELECT n FROM counters WHERE name = :name"), {"name": name})
                        await store.emit(db, [message(f"{name}-{read.scalar_one()}", f"k{name}")])
                    break
                except Contention:
                    await asyncio.sleep(0.05)

    async with opened(where, broker) as one, opened(where, broker) as two:
        async with asyncio.timeout(120):
            await asyncio.gather(*(lane(store, number) for number in range(LANES) for store in (one, two)))
        await eventually(lambda: not waiting(where), 30)
    by_key: dict[str, list[int]] = defaultdict(list)
    for id in dict.fromkeys(broker.ids):
        its_key, n = id.split("-")
        by_key[its_key].append(int(n))
    assert sum(map(len, by_key.values())) == 2 * LANES * EACH
    for its_key, found in by_key.items():
        assert found == sorted(found), f"key {its_key} was reordered"
