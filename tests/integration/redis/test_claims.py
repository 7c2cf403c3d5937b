"""Claims on a real Redis: what each state is told, and what becomes of keys at the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.integration.redis.kit import BUSY, NEW, Keys, apply, calls, done, look, states
from tidings.delivery import Message
from tidings.errors import MisuseError
from tidings.stores.redis import Fence, RedisStore
from tools.services.redis import Redis


async def test_a_clean_exit_marks_keys_done_and_tells_which_event_did(store: RedisStore, key: Keys) -> None:
    assert list(await apply(store, key("a", "1"), key("b", "2"))) == [NEW, NEW]
    assert list(await states(store, key("a", "9"), key("b", "9"), key("c"))) == [done("1"), done("2"), NEW]


async def test_an_exception_gives_keys_back(store: RedisStore, key: Keys, client: Any) -> None:
    assert list(await states(store, key("a"))) == [NEW]
    assert client.exists(key.stored("a")) == 0
    assert list(await states(store, key("a"))) == [NEW]


async def test_cancellation_gives_keys_back(store: RedisStore, key: Keys) -> None:
    held = asyncio.Event()

    async def hold() -> None:
        async with store.claim([key("a")], resource=None, sync=False):
            held.set()
            await asyncio.sleep(30)

    task = asyncio.create_task(hold())
    await held.wait()
    assert list(await states(store, key("a"))) == [BUSY]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(await states(store, key("a"))) == [NEW]


async def test_trap_122_a_key_in_progress_is_busy_and_not_a_duplicate(store: RedisStore, key: Keys) -> None:
    async with store.claim([key("a"), key("b")], resource=None, sync=False):
        async with store.claim([key("b"), key("c")], resource=None, sync=False) as other:
            assert list(other.states) == [BUSY, NEW]
    assert list(await states(store, key("a"), key("b"), key("c"))) == [done("a"), done("b"), done("c")]


async def test_one_event_of_a_batch_can_be_given_back_alone(store: RedisStore, key: Keys) -> None:
    async with store.claim([key("a"), key("b"), key("c")], resource=None, sync=False) as claim:
        claim.fail(1)
    assert list(await states(store, key("a"), key("b"), key("c"))) == [done("a"), NEW, done("c")]


async def test_of_equal_keys_in_a_batch_the_first_claims(store: RedisStore, key: Keys) -> None:
    batch = [key("a", "1"), key("b", "2"), key("a", "3")]
    assert list(await apply(store, *batch)) == [NEW, NEW, done("1")]
    assert list(await states(store, *batch)) == [done("1"), done("2"), done("1")]
    async with store.claim([key("x", "1")], resource=None, sync=False):
        assert list(await states(store, key("x", "1"), key("x", "2"))) == [BUSY, BUSY]


async def test_trap_128_two_handlers_have_keys_of_their_own(store: RedisStore, key: Keys) -> None:
    other = key(f"{key.position}x", "a", position="other.handler")
    await apply(store, key("a"))
    assert list(await states(store, key("a"), other)) == [done("a"), NEW]


@pytest.mark.parametrize(
    "name", ["nul\0 in it", "x" * 10_000, "ключ", "\ud800 alone", "", "a:b:c", "line\r\nbreak", "tidings:fence"]
)
async def test_any_text_is_a_key(store: RedisStore, key: Keys, name: str) -> None:
    assert list(await apply(store, key(name, "1"))) == [NEW]
    assert list(await states(store, key(name, "2"), key(f"{name}.", "2"))) == [done("1"), NEW]


async def test_long_keys_that_differ_at_their_end_are_two_and_take_little_room(
    store: RedisStore, key: Keys, client: Any
) -> None:
    long = "x" * 10_000
    await apply(store, key(f"{long}1", "1"))
    assert list(await states(store, key(f"{long}2", "2"))) == [NEW]
    (stored,) = client.keys(key.stored("*"))
    assert len(stored) < 400


async def test_a_batch_of_a_thousand_keys_is_two_round_trips(server: Redis, key: Keys) -> None:
    store = RedisStore(server.url)
    await store.open()
    batch = [key(f"k{number}") for number in range(1000)]
    with look(server.url) as client:
        await apply(store, key("warm"))
        client.config_resetstat()
        assert list(await apply(store, *batch)) == [NEW] * 1000
        sent = calls(client)
        assert sent["evalsha"] == 2
        assert {name for name in sent if name not in ("get", "set", "time", "persist")} <= {
            "evalsha",
            "config|resetstat",
        }
        client.config_resetstat()
        assert list(await apply(store, *batch)) == [done(f"k{number}") for number in range(1000)]
        sent = calls(client)
        assert sent["evalsha"] == 1, "where all is known there is nothing to finish"
        assert "set" not in sent, "and nothing to write"
    await store.close()


DAY = 86400


async def test_trap_127_each_key_is_known_for_as_long_as_it_says_and_without_a_word_for_ever(
    redis_url: str, key: Keys, client: Any
) -> None:
    store = RedisStore(redis_url)
    await store.open()
    await apply(store, key("@event", lives=3 * DAY), key("order_id:7", "event", lives=3600.5), key("@ever"))
    await apply(store, key("order_id:8", lives=0.0001))
    assert 2.9 * DAY < client.ttl(key.stored("@event")) <= 3 * DAY
    assert 3590_000 < client.pttl(key.stored("order_id:7")) <= 3600_500
    assert client.ttl(key.stored("@ever")) == -1
    await asyncio.sleep(0.05)
    assert list(await states(store, key("order_id:8"))) == [NEW]
    await apply(store, key("@event", lives=9 * DAY))
    assert client.ttl(key.stored("@event")) <= 3 * DAY, "a duplicate is not applied, and changes nothing"
    await store.close()

    short = RedisStore(f"{redis_url}?remember=60s")
    await short.open()
    await apply(short, key("@soon", lives=DAY), key("order_id:9", lives=DAY))
    assert 0 < client.pttl(key.stored("@soon")) <= 60_000
    assert client.ttl(key.stored("order_id:9")) > DAY - 100, "the option is for the ids of events"
    assert list(await states(short, key("@soon"))) == [done("@soon")]
    client.pexpire(key.stored("@soon"), 1)
    await asyncio.sleep(0.05)
    assert list(await states(short, key("@soon"))) == [NEW], "an older replay is applied again: that is the horizon"
    await short.close()

    ever = RedisStore(f"{redis_url}?remember=forever")
    await ever.open()
    await apply(ever, key("@kept", lives=DAY))
    assert client.ttl(key.stored("@kept")) == -1
    await ever.close()


async def test_the_number_of_a_fence_grows_with_each_claim_and_is_shared_in_one(store: RedisStore, key: Keys) -> None:
    numbers = []
    for name in ("a", "b", "c"):
        async with store.claim([key(name), key(f"{name}2")], resource=Fence, sync=False) as claim:
            fence = claim.resource(Fence)
            assert isinstance(fence, Fence)
            numbers.append(int(fence))
    assert numbers == sorted(set(numbers))
    async with store.claim([], resource=Fence, sync=False) as claim:  # a handler whose effect may repeat
        fence = claim.resource(Fence)
        assert isinstance(fence, Fence)
        assert fence.number > numbers[-1]


async def test_the_number_of_a_fence_grows_also_where_redis_forgot_the_last_one(server: Redis, key: Keys) -> None:
    store = RedisStore(server.url)
    await store.open()
    numbers: list[int] = []
    with look(server.url) as client:
        for change in (None, client.flushall, lambda: client.set("tidings:fence", 4_000_000_000_000_000)):
            if change is not None:
                change()
            for name in ("a", "b"):
                async with store.claim([key(f"{name}{len(numbers)}")], resource=Fence, sync=False) as claim:
                    fence = claim.resource(Fence)
                    assert isinstance(fence, Fence)
                    numbers.append(fence.number)
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 4_000_000_000_000_002, "exact, beyond what a float prints"
    await store.close()


async def test_a_store_on_redis_gives_a_fence_and_nothing_else(store: RedisStore, key: Keys) -> None:
    assert store.gives(Fence, sync=True)
    assert store.gives(Fence, sync=False)
    assert not store.gives(Keys, sync=False)
    assert not store.transactional
    async with store.claim([key("a")], resource=None, sync=False) as claim:
        assert claim.executor is None
        assert await claim.emit([]) is False
        with pytest.raises(MisuseError, match="no Keys to give"):
            claim.resource(Keys)


async def test_there_are_no_transactions_and_there_is_no_outbox(store: RedisStore) -> None:
    with pytest.raises(MisuseError, match="sqlite:///"):
        store.transaction()
    with pytest.raises(MisuseError, match="no outbox"):
        await store.emit(object(), [Message(id="1", stream="s", type="s.t", key=None, body=b"")])
    relay = asyncio.create_task(store.relay(lambda messages: asyncio.sleep(0, [])))
    done_, _ = await asyncio.wait([relay], timeout=0.05)
    assert not done_
    relay.cancel()
    await asyncio.wait([relay])
