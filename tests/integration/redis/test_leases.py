"""Leases: who holds a key, for how long, and what a worker that comes too late may still do."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import Any

import pytest

from tests.integration.nats.server import Proxy
from tests.integration.redis.kit import BUSY, NEW, Keys, apply, done, impatient, states
from tidings.errors import Contention, StoreUnavailable
from tidings.stores.redis import RedisStore
from tools.services.redis import Redis

LEASE = 0.3
LONG = 4.0
"""One that does not run out while the machine has no time for who holds it."""


@pytest.fixture
async def short(redis_url: str) -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    """Two workers. The first one's leases are short and are not renewed, as if it hung."""
    hanging, well = RedisStore(redis_url, lease=LEASE), RedisStore(redis_url)
    for store in (hanging, well):
        await store.open()
    await hanging._tasks.cancel()
    yield hanging, well
    for store in (hanging, well):
        await store.close()


async def taken(store: RedisStore, keys: Keys, name: str = "a") -> None:
    """Wait until a lease has run out."""
    for _ in range(500):
        if list(await states(store, keys(name))) != [BUSY]:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the lease never ran out")


async def test_trap_124_a_late_worker_cannot_complete_what_another_holds(
    short: tuple[RedisStore, RedisStore], key: Keys
) -> None:
    late, other = short
    async with AsyncExitStack() as stack:
        with pytest.raises(Contention, match="lost its lease"):
            async with late.claim([key("a", "1")], resource=None, sync=False):
                await asyncio.sleep(LEASE + 0.05)
                claim = await stack.enter_async_context(other.claim([key("a", "2")], resource=None, sync=False))
                assert list(claim.states) == [NEW]
        assert list(await states(late, key("a"))) == [BUSY], "it is the other's still"
    assert list(await states(late, key("a"))) == [done("2")]


async def test_trap_124_a_late_worker_cannot_release_what_another_holds(
    short: tuple[RedisStore, RedisStore], key: Keys
) -> None:
    late, other = short
    async with AsyncExitStack() as stack:
        with pytest.raises(LookupError):
            async with late.claim([key("a", "1")], resource=None, sync=False):
                await asyncio.sleep(LEASE + 0.05)
                await stack.enter_async_context(other.claim([key("a", "2")], resource=None, sync=False))
                raise LookupError
        assert list(await states(late, key("a"))) == [BUSY]
    assert list(await states(late, key("a"))) == [done("2")]


async def test_trap_124_a_late_worker_cannot_renew_what_another_holds_or_applied(
    short: tuple[RedisStore, RedisStore], key: Keys, client: Any
) -> None:
    late, other = short
    with pytest.raises(Contention):
        async with late.claim([key("a", "1"), key("b", "1")], resource=None, sync=False) as claim:
            await asyncio.sleep(LEASE + 0.05)
            await apply(other, key("b", "2"))
            async with other.claim([key("a", "2")], resource=None, sync=False):
                names = [key.stored("a"), key.stored("b")]
                before = [client.get(name) for name in names]
                await late._desk._renew(claim)
                assert [client.get(name)[:9] for name in names] == [value[:9] for value in before], "their tokens"
    assert list(await states(late, key("a"), key("b"))) == [done("2"), done("2")]


async def test_a_late_worker_may_complete_what_nobody_took(short: tuple[RedisStore, RedisStore], key: Keys) -> None:
    late, other = short
    async with late.claim([key("a")], resource=None, sync=False):
        await asyncio.sleep(LEASE + 0.05)
    assert list(await states(other, key("a"))) == [done("a")]


async def test_a_late_worker_may_not_complete_what_another_took_and_gave_back(
    short: tuple[RedisStore, RedisStore], key: Keys
) -> None:
    late, other = short
    with pytest.raises(Contention):
        async with late.claim([key("a"), key("b")], resource=None, sync=False):
            await asyncio.sleep(LEASE + 0.05)
            assert list(await states(other, key("a"))) == [NEW]
    assert list(await states(other, key("a"), key("b"))) == [NEW, done("b")], "what was not taken is done"


async def test_a_lease_is_renewed_while_a_handler_runs(redis_url: str, key: Keys, client: Any) -> None:
    async with AsyncExitStack() as stack:
        holder, other = RedisStore(redis_url, lease=LONG), RedisStore(redis_url, lease=LONG)
        for store in (holder, other):
            await store.open()
            stack.push_async_callback(store.close)
        async with holder.claim([key("a"), key("b")], resource=None, sync=False):
            ends = time.monotonic() + 1.5 * LONG
            while time.monotonic() < ends:
                assert list(await states(other, key("a"), key("b"))) == [BUSY, BUSY]
                await asyncio.sleep(0.02)
        assert list(await states(other, key("a"), key("b"))) == [done("a"), done("b")]


async def test_the_lease_of_a_claim_that_nobody_ends_runs_out(
    redis_url: str, store: RedisStore, key: Keys, client: Any
) -> None:
    dead, other = RedisStore(redis_url, lease=LONG), store
    await dead.open()
    await dead._tasks.cancel()
    claim = dead.claim([key("a")], resource=None, sync=False)
    await claim.__aenter__()
    assert list(await states(other, key("a"))) == [BUSY]
    assert 0 < client.pttl(key.stored("a")) <= (LONG + 601) * 1000, "not even what is left over stays for ever"
    await taken(other, key)
    assert list(await apply(other, key("a"))) == [NEW]
    await dead.close()


@pytest.mark.proves("P5", broker="memory", store="redis")
async def test_P5_no_two_workers_hold_a_key_at_a_time(redis_url: str, key: Keys) -> None:
    names = [f"k{number}" for number in range(5)]
    holders: dict[str, int] = {}
    applied: list[str] = []
    picks = random.Random(5)

    async def work(store: RedisStore, me: int) -> None:
        for _ in range(60):
            batch = [key(name) for name in picks.sample(names, 3)]
            try:
                async with store.claim(batch, resource=None, sync=False) as claim:
                    mine = [one.key for one, got in zip(batch, claim.states, strict=True) if got == NEW]
                    assert not holders.keys() & set(mine), "two hold it"
                    holders.update(dict.fromkeys(mine, me))
                    await asyncio.sleep(picks.random() * 0.005)
                    for name in mine:
                        del holders[name]
                    if picks.random() < 0.7:
                        raise LookupError
                    applied.extend(mine)
            except LookupError:
                pass

    async with AsyncExitStack() as stack:
        stores = [RedisStore(redis_url) for _ in range(4)]
        for store in stores:
            await store.open()
            stack.push_async_callback(store.close)
        await asyncio.gather(*(work(store, number) for number, store in enumerate(stores)))
    assert sorted(applied) == sorted(set(applied)), "applied twice"
    assert len(applied) == len(names)


class Lossy:
    """A store whose way to Redis can lose answers."""

    def __init__(self, server: Redis) -> None:
        self.proxy = Proxy(server.port)

    async def __aenter__(self) -> Lossy:
        await self.proxy.start()
        self.store = RedisStore(f"redis://127.0.0.1:{self.proxy.port}/0", lease=60.0)
        await self.store.open()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.store.close()
        await self.proxy.stop()

    @contextmanager
    def swallowing(self, answer: bytes) -> Iterator[None]:
        self.proxy.swallow = answer
        with impatient(self.store):
            yield
        self.proxy.swallow = b""


async def test_a_finish_whose_answer_was_lost_is_told_again_before_the_next_claim(server: Redis, key: Keys) -> None:
    async with Lossy(server) as lossy:
        await apply(lossy.store, key("warm"))
        claim = lossy.store.claim([key("a")], resource=None, sync=False)
        await claim.__aenter__()
        with lossy.swallowing(b"$1\r\n1\r\n"):
            with pytest.raises(StoreUnavailable, match="did not answer within"):
                await claim.__aexit__(None, None, None)
            with pytest.raises(StoreUnavailable):
                await states(lossy.store, key("a"))
        assert list(await states(lossy.store, key("a"))) == [done("a")]


async def test_a_claim_whose_answer_was_lost_is_given_back_before_the_next_one(server: Redis, key: Keys) -> None:
    async with Lossy(server) as lossy:
        await apply(lossy.store, key("warm"))
        with lossy.swallowing(b"$1\r\nn\r\n"), pytest.raises(StoreUnavailable):
            await states(lossy.store, key("a"))
        assert list(await states(lossy.store, key("a"))) == [NEW], "nobody works on it: it is no key in progress"


async def test_an_outage_longer_than_the_lease_repeats_nothing_that_was_applied(server: Redis, key: Keys) -> None:
    store = RedisStore(server.url, lease=LEASE)
    await store.open()
    claim = store.claim([key("a")], resource=None, sync=False)
    await claim.__aenter__()
    server.pause()
    with impatient(store), pytest.raises(StoreUnavailable):
        await claim.__aexit__(None, None, None)
    await asyncio.sleep(LEASE + 0.1)
    server.resume()
    assert list(await states(store, key("a"))) == [done("a")]
    await store.close()


async def test_a_failure_during_an_outage_stays_the_failure_that_it_is(server: Redis, key: Keys) -> None:
    store = RedisStore(server.url)
    await store.open()
    stack = ExitStack()
    with pytest.raises(LookupError):
        async with store.claim([key("a")], resource=None, sync=False):
            server.pause()
            stack.enter_context(impatient(store))
            raise LookupError
    stack.close()
    server.resume()
    assert list(await states(store, key("a"))) == [NEW]
    await store.close()
