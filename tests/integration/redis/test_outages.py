"""Redis away, full, read-only, loading, or back without its memory: what a claim is told, and what a service does."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.integration.redis.kit import BUSY, NEW, Keys, apply, calls, done, impatient, look, states
from tests.integration.redis.worker import OrderPlaced
from tests.proxy import Proxy
from tests.unit.parts import until
from tidings import Service
from tidings.errors import StoreUnavailable
from tidings.stores.redis import RedisStore
from tidings.testing import MemoryBroker
from tools.services.redis import Redis


async def opened(url: str, *, lease: float = 15.0, timeout: float = 5.0) -> RedisStore:
    store = RedisStore(url, timeout=timeout, lease=lease)
    await store.open()
    return store


async def test_a_killed_redis_keeps_what_it_was_told_and_nothing_has_to_be_done(server: Redis, key: Keys) -> None:
    store = await opened(server.url)
    await apply(store, key("a"))
    async with store.claim([key("held")], resource=None, sync=False):
        server.stop(signal.SIGKILL)
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
            await states(store, key("a"))
        server.start()  # it knows no script any more: NOSCRIPT
        assert list(await states(store, key("a"), key("held"))) == [done("a"), BUSY]
    assert list(await states(store, key("held"))) == [done("held")]
    await store.close()


async def test_a_script_that_redis_forgot_is_sent_once_more(server: Redis, key: Keys) -> None:
    store = await opened(server.url)
    with look(server.url) as client:
        client.script_flush()
        client.config_resetstat()
        assert list(await apply(store, key("a"))) == [NEW]
        sent = calls(client)
        assert (sent["evalsha"], sent["eval"]) == (2, 2)
        client.config_resetstat()
        await apply(store, key("b"))
        assert "eval" not in calls(client)
    await store.close()


async def test_trap_125_a_full_redis_refuses_claims_and_ends_those_that_stand(server: Redis, key: Keys) -> None:
    store = await opened(server.url, lease=1.0)
    with look(server.url) as client:
        async with store.claim([key("a"), key("b"), key("c")], resource=None, sync=False) as claim:
            client.config_set("maxmemory", 1)
            with pytest.raises(StoreUnavailable, match=r"not allowed when used memory > .maxmemory"):
                await states(store, key("new"))
            assert client.exists(key.stored("new")) == 0
            await asyncio.sleep(1.5)  # renewed, although Redis is full
            claim.fail(2)
        assert list(await states(store, key("a"), key("b"))) == [done("a"), done("b")], "what is known still is"
        client.config_set("maxmemory", 0)
        assert list(await states(store, key("a"), key("c"), key("new"))) == [done("a"), NEW, NEW]
    await store.close()


async def test_a_redis_that_became_a_replica_takes_no_claims(server: Redis, key: Keys) -> None:
    store = await opened(server.url)
    await apply(store, key("a"))
    with look(server.url) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StoreUnavailable, match=r"(?i)read only replica"):
            await states(store, key("b"))
        client.execute_command("REPLICAOF", "NO", "ONE")
    assert list(await states(store, key("a"), key("b"))) == [done("a"), NEW]
    await store.close()


async def test_P10_a_redis_that_became_a_replica_is_left_for_the_one_at_its_address(
    server: Redis, key: Keys, tmp_path: Path
) -> None:
    """A failover closes no connection by itself: those that stand lead to what may only be read, for ever."""
    with Redis(tmp_path / "next") as primary:
        proxy = await Proxy(server.port).start()
        store = await opened(f"redis://127.0.0.1:{proxy.port}/0")
        try:
            await apply(store, key("a"))
            with look(server.url) as client:
                client.execute_command("REPLICAOF", "127.0.0.1", str(primary.port))
            proxy.lead_to(primary.port)
            assert list(await states(store, key("b"))) == [NEW]
        finally:
            await store.close()
            await proxy.stop()


async def test_a_right_that_is_taken_away_later_is_an_outage_and_no_failure_of_events(server: Redis, key: Keys) -> None:
    with look(server.url) as client:
        client.execute_command("ACL", "SETUSER", "shop", "on", ">pw", "~*", "+@all")
        store = await opened(server.url.replace("//", "//shop:pw@"))
        client.execute_command("ACL", "SETUSER", "shop", "-set")
        with pytest.raises(StoreUnavailable, match="The user needs"):
            await states(store, key("a"))
        client.execute_command("ACL", "SETUSER", "shop", "+set")
        assert list(await states(store, key("a"))) == [NEW]
    await store.close()


async def test_while_redis_reads_what_it_kept_it_is_away(server: Redis, key: Keys) -> None:
    store = await opened(server.url)
    for wave in range(2):  # it answers while it reads only after each thousand commands
        await apply(store, *(key(f"k{wave}-{number}") for number in range(1000)))
    server.settings = (*server.settings, "key-load-delay 200")
    told = set[bool]()
    for _ in range(20):  # reading takes half a second, and may be over before anybody looks
        server.stop(signal.SIGKILL)
        starting = asyncio.create_task(asyncio.to_thread(server.start))
        while not starting.done():
            try:
                found = await states(store, key("k1-999"))
            except StoreUnavailable as error:
                told.add("loading" in str(error))
            else:
                assert list(found) == [done("k1-999")]
            await asyncio.sleep(0.01)
        await starting
        if True in told:
            break
    assert True in told, "it was never seen loading"
    assert list(await states(store, key("k1-999"))) == [done("k1-999")]
    await store.close()


@pytest.mark.proves("P5", broker="memory", store="redis")
async def test_trap_126_a_redis_without_persistence_forgets_and_effects_repeat_as_it_was_said(
    server_folder: Path, key: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    with Redis(server_folder, "appendonly no", 'save ""', "maxmemory-policy noeviction") as server:
        store = await opened(server.url)
        assert "appendonly no" in caplog.text
        await apply(store, key("a"))
        server.stop(signal.SIGKILL)
        server.start()
        assert list(await apply(store, key("a"))) == [NEW], "an event that comes again is applied again, never lost"
        await store.close()


# ── whole services ──────────────────────────────────────────────────────────────────────────────────────────────────


class Stage:
    """A service on the memory broker, and what its handler did."""

    def __init__(self, server: Redis, *, slow: float = 0.0) -> None:
        self.broker = MemoryBroker()
        self.store = RedisStore(server.url, lease=2.0)
        self.stock = Service("stock", store=self.store, publishes=[OrderPlaced])
        self.effects: Counter[str] = Counter()

        @self.stock.on(OrderPlaced, batch=16, concurrency=4)
        async def reserve(order: OrderPlaced) -> None:
            await asyncio.sleep(slow)
            self.effects[order.order_id] += 1

    def reached(self, count: int) -> bool:
        return len(self.effects) >= count

    async def publish(self, first: int, count: int) -> None:
        events = [OrderPlaced(order_id=str(number)) for number in range(first, first + count)]
        assert not any(await self.stock.publish_many(events))


@pytest.mark.proves("P2", broker="memory", store="redis")
@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_P3_P5_while_redis_is_away_nothing_is_applied_or_acknowledged_and_then_it_resumes(
    server: Redis, how: str
) -> None:
    stage = Stage(server)
    async with stage.stock.running(broker=stage.broker):
        await stage.publish(0, 20)
        await stage.broker.idle(20)
        if how == "killed":
            server.stop(signal.SIGKILL)
        else:
            server.pause()
        with impatient(stage.store):
            await stage.publish(20, 20)
            (worker,) = stage.stock.active.workers
            await until(lambda: worker.trouble, 30)
            await asyncio.sleep(0.5)
            assert "Redis at 127.0.0.1" in worker.trouble
            assert len(stage.effects) == 20, "applied without a claim"
            backlog = await worker.backlog()
            assert backlog is not None
            assert backlog.in_flight == 20, "acknowledged without an effect"
        if how == "killed":
            server.start()
        else:
            server.resume()
        await stage.broker.idle(20)
        await until(lambda: not worker.trouble, 30)  # the lane looks once more, after all is settled
    assert stage.effects == Counter(map(str, range(40)))
    assert not stage.broker.dead_letters


@pytest.mark.proves(broker="memory", store="redis")
async def test_P5_redis_killed_again_and_again_under_load_loses_and_doubles_nothing(server: Redis) -> None:
    stage = Stage(server, slow=0.001)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(stage.stock.running(broker=stage.broker))
        for round in range(4):
            await stage.publish(round * 300, 300)
            await until(partial(stage.reached, round * 300 + 100), 20)
            server.stop(signal.SIGKILL)
            await asyncio.to_thread(server.start)
        await stage.broker.idle(30)
    assert set(stage.effects) == set(map(str, range(1200))), "lost"
    assert set(stage.effects.values()) == {1}, "the worker lived: what it could not mark, it marked later"
    assert not stage.broker.dead_letters


async def test_a_full_redis_holds_a_service_up_and_costs_it_nothing(server: Redis) -> None:
    stage = Stage(server)
    async with stage.stock.running(broker=stage.broker):
        with look(server.url) as client:
            client.config_set("maxmemory", 1)
            await stage.publish(0, 10)
            (worker,) = stage.stock.active.workers
            await until(lambda: "maxmemory" in worker.trouble, 30)
            assert not stage.effects
            client.config_set("maxmemory", 0)
        await stage.broker.idle(20)
    assert stage.effects == Counter(map(str, range(10)))
