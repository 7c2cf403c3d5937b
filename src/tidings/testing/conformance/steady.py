"""A steady load, and what happens on an ordinary day: processes come and go, handlers are slow, the store is away."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import time
from collections import Counter
from contextlib import closing
from typing import Any, Final

import pytest

from tidings.delivery import Delivery
from tidings.testing.conformance.load import Load
from tidings.testing.conformance.policy import ONLY_WITH_A_STORE, ONLY_WITHOUT
from tidings.testing.conformance.stage import Stage

ACK_WAIT: Final = 4.0
"""Far longer than a busy machine lets a process wait for its turn: what keeps an event alive has to get one."""
SLOWER: Final = 20
"""How many times as long as its own publish an event may take until it is handled; a timer takes hundreds of times."""
QUICK: Final = 0.005
"""Seconds below which a publish counts as taking that long: a broker in this process answers at once."""


class Steady:
    """Part of the suite."""

    @ONLY_WITH_A_STORE
    @pytest.mark.parametrize("order", ["key", None])
    async def test_P4_P8_a_second_process_that_joins_and_leaves_under_load_changes_nothing(
        self, stage: Stage, order: str | None
    ) -> None:
        if order:
            stage.bench.needs("ordered")
        times = stage.bench.size("times", 20, 3)

        async def act(event: Any, delivery: Delivery) -> None:
            await asyncio.sleep(0.004)  # so that whoever leaves has something to leave

        first = stage.service()
        position = stage.handle(first, act, order=order, worker="first")
        async with stage.running(first), await stage.load(per_second=200) as load:
            await stage.until_seen(20)
            for _ in range(times):
                second = stage.service()
                stage.handle(second, act, order=order, worker="second")
                async with stage.running(second):
                    if order is None:
                        await self._until_second_works(stage, load, position)
                    await load.more(50)
                await load.more(50)
            await load.stop()
            await stage.until_applied(position, load.ids)
        stage.judge(position, load.ids)
        if order:
            stage.check_order(position)

    async def _until_second_works(self, stage: Stage, load: Load, position: str) -> None:
        begins = len(stage.seen)

        def works() -> bool:
            return any(one.worker == "second" for one in stage.seen[begins:])

        for _ in range(20):
            await load.more(50)
            async with load.resting():  # SQLite may leave the first its lock for as long as that has work
                await stage.bench.until(
                    lambda: works() or stage.count(position) == len(load.ids), "the second works, or nothing is left"
                )
            if works():
                return
        raise AssertionError("the second never had work")

    @ONLY_WITHOUT
    async def test_P2_a_handler_that_takes_three_times_the_ack_wait_gets_its_event_once(self, stage: Stage) -> None:
        rig = stage.bench.impatient

        async def act(event: Any, delivery: Delivery) -> None:
            await asyncio.sleep(3 * ACK_WAIT)

        first, second = stage.service(), stage.service()
        position = stage.handle(first, act, order=None, concurrency=3, batch=1, worker="first")
        stage.handle(second, act, order=None, concurrency=3, batch=1, worker="second")
        async with stage.running(first, second, make=lambda: rig.impatient_broker(ACK_WAIT)):
            await stage.publish(first, range(3))
            await stage.until_applied(position, range(3))
            await stage.quiet(first)
            await asyncio.sleep(ACK_WAIT)
        assert len(stage.seen) == 3, f"handlers were called {len(stage.seen)} times for 3 events"
        assert {delivery.delivered for delivery in stage.deliveries} == {1}
        stage.judge(position, range(3))

    @ONLY_WITH_A_STORE
    async def test_P3_while_the_store_is_away_nothing_is_acknowledged_and_it_goes_on_by_itself(
        self, stage: Stage
    ) -> None:
        away = stage.bench.size("seconds away", 30, 3)
        count = stage.bench.size("events", 1000, 40)
        service = stage.service()
        position = stage.handle(service)
        async with stage.running(service):
            with closing(sqlite3.connect(stage.path, isolation_level=None)) as other:
                other.execute("BEGIN EXCLUSIVE")  # no more than a database that does not answer
                await stage.publish(service, range(count))
                await asyncio.sleep(away)
                assert await stage.open_at_the_broker(service) == count, "something was acknowledged"
                assert stage.seen == [], "a handler was called"
                other.execute("ROLLBACK")
            await stage.until_applied(position, range(count))
            await stage.quiet(service)
        stage.judge(position, range(count))
        assert "retry" not in stage.outcomes.of[position], "an event was blamed for its store"

    async def test_P9_a_graceful_stop_under_load_finishes_what_runs_and_kills_nothing(self, stage: Stage) -> None:
        times = stage.bench.size("stops", 20, 3)

        async def act(event: Any, delivery: Delivery) -> None:
            await asyncio.sleep(0.002)

        position = ""
        reader = await stage.bench.client()
        async with await stage.load() as load:
            for _ in range(times):
                service = stage.service()
                position = stage.handle(service, act, order=None, concurrency=2)
                async with stage.running(service):
                    await stage.until_seen(len(stage.seen) + 20)
                assert len(stage.seen) == stage.count(position), "what ran was not finished"
            last = stage.service()
            stage.handle(last, act, order=None)
            async with stage.running(last):
                await load.more(50)
                await load.stop()
                await stage.until_applied(position, load.ids)
                assert await stage.letters(position, 0, reader) == []
        stage.judge(position, load.ids)
        more = Counter(one.id for one in stage.seen) - Counter(load.ids) - load.again
        assert not more, "a stop had something applied again"

    @ONLY_WITHOUT
    async def test_P6_one_event_a_second_takes_as_long_as_a_single_one(self, stage: Stage) -> None:
        count = stage.bench.size("events", 30, 5)
        service = stage.service()
        stage.handle(service)
        publishing, handling = [], []
        async with stage.running(service):
            for number in range(count + 1):
                began = time.time()
                await stage.publish(service, [number])
                stored = time.time()
                await stage.until_seen(number + 1)
                handled = stage.seen[number].at
                if number:  # the first one finds nothing warm
                    publishing.append(stored - began)
                    handling.append(handled - began)
                await asyncio.sleep(1.0)
        single = max(statistics.median(publishing), QUICK)
        latency = statistics.median(handling)
        stage.bench.sizes["ms"] = (round(latency * 1000),) * 2
        assert latency < SLOWER * single, f"handled after {latency:.3f} s where its publish takes {single:.3f} s"
