"""Two kinds of store on one PostgreSQL database: the same tables, the same keys, one order."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle

import pytest

from tests.integration.stores.ledger import eventually, key, query
from tidings.delivery import Message
from tidings.errors import InvalidEvent
from tidings.outbox.tables import key_hash
from tidings.ports import NEW, Claimed, State, Store
from tidings.stores.postgres import PostgresStore
from tidings.stores.sqlalchemy import SqlAlchemyStore

pytestmark = pytest.mark.proves(store="postgres")

KEYS = ["plain", "a\\b", "a\\\\b", "a\\0b", "a\0b", "\\", "\\\\", "\0", "é\\"]
EACH = 6


def store_of(kind: str, url: str) -> Store:
    if kind == "":
        return PostgresStore(url, poll=0.05, lease=1.0)
    return SqlAlchemyStore(url.replace("postgresql:", f"postgresql+{kind}:", 1), poll=0.05, lease=1.0)


@asynccontextmanager
async def opened(kind: str, url: str) -> AsyncIterator[Store]:
    store = store_of(kind, url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def relaying(*stores: Store) -> AsyncIterator[list[Message]]:
    """What the relays of these publish, in the order in which they do."""
    got: list[Message] = []

    async def publish(messages: Sequence[Message]) -> list[None]:
        got.extend(messages)
        return [None] * len(messages)

    tasks = [asyncio.create_task(store.relay(publish)) for store in stores]
    try:
        yield got
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def write(stores: Sequence[Store], start: int = 0) -> list[Message]:
    """Events of every key, written by the stores in turn, each in a transaction of its own."""
    sent: list[Message] = []
    turn = cycle(stores)
    for number in range(start, start + EACH):
        for name in KEYS:
            one = Message(
                id=f"{number} {name}", stream="stock", type="stock.reserved", key=name, body=b"{}", headers={"k": name}
            )
            async with next(turn).claim([key(f"{number} {name}")], resource=None, sync=False) as claim:
                await claim.emit([one])
            sent.append(one)
    return sent


def by_key(messages: Sequence[Message]) -> dict[str | None, list[Message]]:
    found: dict[str | None, list[Message]] = defaultdict(list)
    for message in messages:
        found[message.key].append(message)
    return found


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("relay", [0, 1], ids=["the one", "the other"])
async def test_P8_the_relay_of_one_store_publishes_the_rows_of_another_as_they_were(
    postgres_url: str, driver: str, relay: int
) -> None:
    async with opened("", postgres_url) as one, opened(driver, postgres_url) as other:
        sent = await write([one, other])
        assert len(query(_alchemy(postgres_url), "SELECT DISTINCT key FROM tidings_outbox")) == len(KEYS)
        async with relaying((one, other)[relay]) as got:
            await eventually(lambda: len(got) >= len(sent))
    assert got == sent


async def test_P8_two_kinds_of_store_that_publish_side_by_side_keep_the_order_of_each_key(postgres_url: str) -> None:
    """Trap 139."""
    async with opened("", postgres_url) as one, opened("asyncpg", postgres_url) as other:
        async with relaying(one, other) as got:
            sent = [*(await write([one, other])), *(await write([other, one], EACH))]
            await eventually(lambda: {message.id for message in got} >= {message.id for message in sent})
            await eventually(lambda: query(_alchemy(postgres_url), "SELECT count(*) FROM tidings_outbox") == [(0,)])
    first = list({message.id: message for message in reversed(got)}.values())[::-1]
    assert by_key(first) == by_key(sent)


async def test_P4_a_key_that_one_store_applied_is_done_for_another(postgres_url: str) -> None:
    keys = [key(name, f"e-{name}") for name in [*KEYS, "k" * 10_000, "k" * 9_999 + "x", "Ä\0"]]
    async with opened("", postgres_url) as one, opened("psycopg", postgres_url) as other:
        for first, second, half in ((one, other, keys[::2]), (other, one, keys[1::2])):
            async with first.claim(half, resource=None, sync=False) as claim:
                assert list(claim.states) == [NEW] * len(half)
            async with second.claim(half, resource=None, sync=False) as claim:
                assert list(claim.states) == [Claimed(State.DONE, asked.event_id, asked.digest) for asked in half]


@pytest.mark.parametrize("kind", ["", "asyncpg"])
async def test_rows_that_were_written_before_backslashes_were_doubled_are_read_as_they_were_meant(
    postgres_url: str, kind: str
) -> None:
    """The store on asyncpg wrote texts as they are; the hash of the key tells."""
    async with opened(kind, postgres_url) as store:
        meant = [name for name in KEYS if "\0" not in name]
        for number, name in enumerate(meant):
            quoted = name.replace("\\", "\\\\")
            query(
                _alchemy(postgres_url),
                "INSERT INTO tidings_outbox (message_id, stream, type, key, key_hash, route, position, headers, body,"
                f" created_at) VALUES (E'{number} {quoted}', 'stock', 'stock.reserved', E'{quoted}',"
                f" {key_hash('stock', name)}, 'event', '', '{{}}', '', 0)",
            )
        async with relaying(store) as got:
            await eventually(lambda: len(got) >= len(meant))
    assert [message.key for message in got] == meant
    assert [message.id for message in got] == [f"{number} {name}" for number, name in enumerate(meant)]


@pytest.mark.parametrize("kind", ["", "asyncpg", "psycopg"])
async def test_half_a_surrogate_pair_in_an_event_is_refused_when_it_is_emitted(postgres_url: str, kind: str) -> None:
    async with opened(kind, postgres_url) as store:
        with pytest.raises(InvalidEvent, match="surrogate"):
            async with store.claim([key("a")], resource=None, sync=False) as claim:
                await claim.emit([Message(id="1", stream="stock", type="stock.reserved", key="\ud800", body=b"")])
        assert query(_alchemy(postgres_url), "SELECT count(*) FROM tidings_inbox") == [(0,)]


def _alchemy(url: str) -> str:
    return url.replace("postgresql:", "postgresql+psycopg:", 1)
