"""`transaction`, `emit` and the relay on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from tests.integration.postgres.conftest import Opens
from tests.integration.postgres.ledger import (
    INSERT,
    eventually,
    in_transaction,
    key,
    message,
    notes,
    query,
    quietly,
    run,
    waiting,
)
from tidings.delivery import Message, Route
from tidings.errors import EventError, InvalidEvent, MisuseError
from tidings.stores.postgres import PostgresStore, Statements

PG = asyncpg.Connection


class Published:
    """A broker that is a list."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.refuses: set[str] = set()
        self.open = asyncio.Event()
        self.open.set()
        self.asked = 0

    @property
    def ids(self) -> list[str]:
        return [one.id for one in self.got]

    async def __call__(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        self.asked += 1
        await self.open.wait()
        errors = [EventError("too large") if one.id in self.refuses else None for one in messages]
        self.got += [one for one, error in zip(messages, errors, strict=True) if error is None]
        return errors


@asynccontextmanager
async def relaying(store: PostgresStore) -> AsyncIterator[Published]:
    published = Published()
    relay = asyncio.create_task(store.relay(published))
    try:
        yield published
    finally:
        published.open.set()
        relay.cancel()
        await asyncio.wait({relay})
    assert relay.cancelled()


@pytest.mark.proves(store="postgres")
async def test_P4_a_transaction_commits_what_was_written_and_emitted(store: PostgresStore, url: str) -> None:
    async with store.transaction() as db:
        await db.execute(INSERT, "a")
        await store.emit(db, [message("1"), message("2")])
        await store.emit(db, [message("3")])
        assert notes(url) == waiting(url) == []
    assert notes(url) == ["a"]
    assert waiting(url) == ["1", "2", "3"]
    async with store.transaction(Statements) as statements:
        statements.execute(INSERT, "b")
        await store.emit(statements, [message("4")])
    assert notes(url) == ["a", "b"]
    assert waiting(url) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError])
async def test_a_rollback_leaves_no_event(store: PostgresStore, url: str, error: type[BaseException]) -> None:
    """Trap 137."""
    with pytest.raises(error):
        async with store.transaction() as db:
            await db.execute(INSERT, "a")
            await store.emit(db, [message("1")])
            raise error
    assert notes(url) == waiting(url) == []
    assert in_transaction(url) == 0


@pytest.mark.parametrize("words", ["COMMIT", "ROLLBACK"])
async def test_a_block_that_ends_its_transaction_itself_is_refused(store: PostgresStore, url: str, words: str) -> None:
    with pytest.raises(MisuseError):
        async with store.transaction() as db:
            await db.execute(INSERT, "a")
            await store.emit(db, [message("1")])
            await quietly(db.execute(words))
    assert notes(url) == waiting(url) == []


async def test_a_second_transaction_inside_is_refused(store: PostgresStore) -> None:
    async with store.transaction():
        with pytest.raises(MisuseError, match="open here already"):
            async with store.transaction():
                pass
    with pytest.raises(MisuseError, match="not int"):
        async with store.transaction(int):
            pass


async def test_more_transactions_than_connections_wait_for_each_other(opens: Opens, url: str) -> None:
    store = await opens(connections=2)

    async def one(number: int) -> None:
        async with store.transaction() as db:
            await db.execute(INSERT, str(number))

    await asyncio.gather(*(one(number) for number in range(20)))
    assert len(notes(url)) == 20


async def test_an_event_joins_the_users_own_transaction(store: PostgresStore, url: str) -> None:
    """Traps 137 and 147."""
    async with asyncpg.create_pool(url, min_size=1, max_size=2) as pool:
        async with pool.acquire() as connection:
            with pytest.raises(MisuseError, match="not in a transaction"):
                await store.emit(connection, [message("0")])
            async with connection.transaction():
                await store.emit(connection, [message("1")])
                assert waiting(url) == []
            with pytest.raises(LookupError):
                async with connection.transaction():
                    await store.emit(connection, [message("2")])
                    raise LookupError
            async with connection.transaction():
                await store.emit(connection, [message("kept")])
                await store.emit(connection, [])
                with pytest.raises(LookupError):
                    async with connection.transaction():
                        await store.emit(connection, [message("undone")])
                        raise LookupError
    assert waiting(url) == ["1", "kept"]


async def test_a_transaction_of_another_database_is_refused(
    store: PostgresStore, opens: Opens, url: str, postgres_url: str
) -> None:
    """Another service's relay would publish it, or nobody."""
    for tables in (False, True):
        if tables:
            await opens(postgres_url)
        other: Any = await asyncpg.connect(postgres_url)
        with pytest.raises(MisuseError, match="does not lead"):
            async with other.transaction():
                await store.emit(other, [message("1")])
        await other.close()
    assert waiting(url) == waiting(postgres_url) == []


@pytest.mark.parametrize("tx", [None, "tx", 42, object()])
async def test_what_is_no_transaction_is_refused(store: PostgresStore, tx: object) -> None:
    with pytest.raises(MisuseError, match=r"asyncpg\.Connection"):
        await store.emit(tx, [message("1")])


async def test_all_of_a_message_comes_back_and_what_cannot_be_kept_is_refused(store: PostgresStore, url: str) -> None:
    sent = [
        message("plain"),
        message("no key", None),
        Message(
            id="all",
            stream="stock",
            type="stock.réservé",
            key="clé",
            body=bytes(range(256)),
            headers={"tidings-key": "a%20b", "other": "é\x00"},
            route=Route.RETRY,
            position="stock.reserve",
            due=1234.5,
        ),
        Message(id="large", stream="stock", type="stock.reserved", body=b"x" * 3_000_000),
        message("a\x00\\0", "k\x00\\0"),
    ]
    async with store.transaction() as db:
        with pytest.raises(InvalidEvent, match="surrogate"):
            await store.emit(db, [message("m", "k\ud800")])
        await store.emit(db, sent)
    async with relaying(store) as published:
        await eventually(lambda: len(published.got) == len(sent))
    assert published.got == sent
    await eventually(lambda: waiting(url) == [])


async def test_a_row_whose_transaction_commits_late_is_not_skipped(store: PostgresStore, url: str) -> None:
    """Trap 138: its number is below those that were published long ago."""
    late: Any = await asyncpg.connect(url)
    async with relaying(store) as published:
        transaction = late.transaction()
        await transaction.start()
        await store.emit(late, [message("late", "other key"), message("late too")])
        for number in range(3):
            async with store.transaction() as db:
                await store.emit(db, [message(str(number))])
        await eventually(lambda: published.ids == ["0", "1", "2"])
        await eventually(lambda: waiting(url) == [])
        await transaction.commit()
        await eventually(lambda: len(published.got) == 5)
    assert published.ids[3:] == ["late", "late too"]
    await late.close()


async def test_no_transaction_is_open_while_the_broker_is_slow(store: PostgresStore, url: str) -> None:
    """Trap 142."""
    async with relaying(store) as published:
        published.open.clear()
        async with store.transaction() as db:
            await store.emit(db, [message("1")])
        await eventually(lambda: published.asked)
        for _ in range(5):  # the relay looks now and then; what was open all the time would be seen all the time
            await eventually(lambda: in_transaction(url) == 0)
            await asyncio.sleep(0.05)
        assert published.got == []
        published.open.set()
        await eventually(lambda: published.ids == ["1"])


async def test_another_process_is_woken_by_a_notification_and_listens_again_after_a_loss(
    opens: Opens, url: str
) -> None:
    """Trap 144. With an hour between two looks, nothing else could wake it."""
    writer, reader = await opens(), await opens(poll=3600)
    async with relaying(reader) as published:

        def listeners() -> list[tuple[int]]:
            return query(url, "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND state = 'idle'")

        await eventually(listeners)
        await asyncio.sleep(0.1)
        async with writer.transaction() as db:
            await writer.emit(db, [message("1")])
        await eventually(lambda: published.ids == ["1"])
        ((pid,),) = listeners()
        run(url, f"SELECT pg_terminate_backend({pid})")
        await eventually(lambda: listeners() and listeners() != [(pid,)])
        mine: Any = await asyncpg.connect(url)
        async with mine.transaction():
            await writer.emit(mine, [message("2")])
        await mine.close()
        await eventually(lambda: published.ids == ["1", "2"])


async def test_polling_finds_what_no_notification_told(store: PostgresStore, url: str) -> None:
    async with relaying(store) as published:
        run(
            url,
            "INSERT INTO tidings_outbox (message_id, stream, type, route, position, headers, body, created_at)"
            " VALUES ('1', 'stock', 'stock.reserved', 'event', '', '{}', '', 0)",
        )
        await eventually(lambda: published.ids == ["1"])


async def test_two_processes_publish_side_by_side_and_keep_the_order_of_a_key(opens: Opens, url: str) -> None:
    """Trap 139."""
    stores = [await opens(lease=60.0, hold=60.0) for _ in range(2)]  # neither ends by itself: nothing leaves twice
    order: list[Message] = []
    async with relaying(stores[0]) as one, relaying(stores[1]) as two:
        one.got = two.got = order
        for number in range(60):
            async with stores[number % 2].claim([key(str(number))], resource=None, sync=False) as claim:
                await claim.emit([message(str(number))])
        await eventually(lambda: len(order) >= 60)
    assert [one.id for one in order] == [str(number) for number in range(60)]


async def test_one_row_that_cannot_be_published_stops_its_key_and_no_other(store: PostgresStore, url: str) -> None:
    """Trap 143."""
    async with relaying(store) as published:
        published.refuses.add("bad")
        async with store.transaction() as db:
            await store.emit(db, [message("bad"), message("behind"), message("free", "other")])
        await eventually(lambda: published.ids == ["free"])
        await eventually(lambda: query(url, "SELECT count(*) FROM tidings_outbox WHERE parked") == [(1,)])
        backlog = await store.outbox_backlog()
        assert (backlog.waiting, backlog.parked) == (2, 1)
        (parked,) = await store.outbox_parked()
        assert parked.message.id == "bad"
        assert "too large" in parked.error
        assert not await store.outbox_discard(parked.id + 1000)
        published.refuses.clear()
        assert await store.outbox_release(parked.id)
        await eventually(lambda: published.ids == ["free", "bad", "behind"])


@pytest.mark.parametrize("how", ["headers = 'garbage'", "route = 'by pigeon'"])
async def test_P8_P12_a_row_that_cannot_be_read_is_parked_and_stops_its_key_alone(
    opens: Opens, url: str, how: str
) -> None:
    """Somebody wrote it by hand, or another version did."""
    store: PostgresStore = await opens()
    async with store.transaction() as db:
        await store.emit(db, [message("bad"), message("behind"), message("free", "other")])
    run(url, f"UPDATE tidings_outbox SET {how} WHERE message_id = 'bad'")
    async with relaying(store) as published:
        await eventually(lambda: published.ids == ["free"])
        await eventually(lambda: query(url, "SELECT count(*) FROM tidings_outbox WHERE parked") == [(1,)])
        (parked,) = await store.outbox_parked()
        assert parked.message.id == "bad"
        assert how.partition(" ")[0] in parked.error
        run(url, "UPDATE tidings_outbox SET headers = '{}', route = 'event'")
        assert await store.outbox_release(parked.id)
        await eventually(lambda: published.ids == ["free", "bad", "behind"])


async def test_P8_a_row_that_waits_by_a_clock_that_was_wrong_leaves_and_a_parked_one_does_not(
    store: PostgresStore, url: str
) -> None:
    """Whoever held it was ahead by a day when it died, or its machine's clock was set back since."""
    async with store.transaction() as db:
        await store.emit(db, [message("parked", "p"), message("1", "k"), message("2", "k"), message("behind", "p")])
    run(url, "UPDATE tidings_outbox SET retry_at = 1e18, parked = true WHERE message_id = 'parked'")
    run(url, "UPDATE tidings_outbox SET retry_at = extract(epoch FROM now()) + 86400 WHERE message_id = '1'")
    async with relaying(store) as published:
        await eventually(lambda: published.ids == ["1", "2"])
    assert waiting(url) == ["parked", "behind"]
