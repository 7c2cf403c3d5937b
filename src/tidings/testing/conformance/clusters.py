"""Servers that work as one and go away one by one, all of them, or the one that leads, while events keep coming."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tidings.delivery import Delivery
from tidings.service import Service
from tidings.testing._effects import event_class
from tidings.testing.conformance.policy import ONLY_WITH_A_STORE
from tidings.testing.conformance.stage import Stage

EVERY = 10.0
"""Seconds between two kills of a leader, where there is time."""


class Clusters:
    """Part of the suite."""

    @ONLY_WITH_A_STORE
    async def test_P1_P10_a_cluster_stopped_node_by_node_down_to_none_comes_back_with_everything(
        self, stage: Stage
    ) -> None:
        cluster = stage.bench.cluster
        away, between = stage.bench.size("seconds away", 30, 3), stage.bench.size("seconds between", 5, 1)
        service = stage.service()
        position = stage.handle(service, order="key")
        async with stage.running(service), await stage.load() as load:
            await stage.until_seen(50)
            for node in range(cluster.nodes):
                await cluster.stop_node(node)
                await asyncio.sleep(between)
            await asyncio.sleep(away)
            for node in reversed(range(cluster.nodes)):
                await cluster.start_node(node)
                await asyncio.sleep(between)
            await load.more(100)
            await load.stop()
            await stage.until_applied(position, load.ids)
        stage.judge(position, load.ids)
        stage.check_order(position)

    @ONLY_WITH_A_STORE
    async def test_P4_P8_P10_leaders_killed_under_load_lose_nothing_double_nothing_and_keep_the_order(
        self, stage: Stage
    ) -> None:
        cluster, stream = stage.bench.cluster, stage.bench.stream
        kills = stage.bench.size("kills", 12, 2)
        followed = event_class(stream, "followed")

        async def follow(event: Any, delivery: Delivery) -> Any:
            return followed(id=event.id, key=event.key)

        def process(worker: str) -> tuple[Service, str, str]:
            service = stage.service(also=[followed])
            position = stage.handle(service, follow, order="key", batch=16, worker=worker)
            return service, position, stage.handle(service, name="follow", events=[followed], order=None, worker=worker)

        (first, position, last), (second, _, _) = process("first"), process("second")
        async with stage.running(first, second), await stage.load() as load:
            await stage.until_seen(50)
            for _ in range(kills):
                began = time.monotonic()
                node = await cluster.leader(stream)
                await cluster.stop_node(node)
                await load.more(50)  # somebody else leads
                await stage.until_applied(position, load.ids)
                await cluster.start_node(node)
                await load.more(50)
                if stage.bench.full:
                    await asyncio.sleep(max(0.0, EVERY - (time.monotonic() - began)))
            await load.stop()
            await stage.until_applied(position, load.ids)
            await stage.until_applied(last, load.ids)
        for one in (position, last):
            stage.judge(one, load.ids)
        stage.check_order(position)
