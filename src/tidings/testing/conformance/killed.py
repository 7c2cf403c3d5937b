"""Consumers in processes of their own: killed at each point of an event's way, and slow before a long backlog."""

from __future__ import annotations

import asyncio
import signal
from typing import Final

import pytest

from tidings import points
from tidings.testing._effects import event_class
from tidings.testing.conformance.load import KEYS
from tidings.testing.conformance.policy import ONLY_WITH_A_STORE, ONLY_WITHOUT
from tidings.testing.conformance.stage import Stage

MIB: Final = 1024 * 1024
MOST_MEMORY: Final = 128 * MIB
"""What a slow process may have beyond an idle one: some times the limit of what may be with it, 32 MiB of bodies."""


class Killed:
    """Part of the suite."""

    @ONLY_WITH_A_STORE
    @pytest.mark.parametrize("point", points.ALL)
    async def test_P4_a_process_that_was_killed_at_a_point_loses_nothing_and_doubles_nothing(
        self, stage: Stage, point: str
    ) -> None:
        stage.bench.needs("durable")
        after = stage.service("after")
        last = stage.handle(after, events=[event_class(stage.bench.stream, "followed")])
        position = f"{stage.bench.name}.handle"
        more = stage.bench.size("events afterwards", 1000, 20)
        async with stage.running(after):
            async with stage.process(causes="followed", kill_at=f"{point}:2") as killed:
                await killed.ready()
                async with await stage.load() as load:
                    assert await killed.ended() == -signal.SIGKILL
                    async with stage.process(causes="followed") as successor:
                        await successor.ready()
                        await load.more(more)
                        await load.stop()
                        await stage.until_applied(position, load.ids)
                        await stage.until_applied(last, load.ids)
                        await successor.stop()
        stage.judge(position, load.ids)
        stage.judge(last, load.ids)

    @ONLY_WITHOUT
    async def test_P11_memory_is_bounded_with_a_slow_handler_and_a_long_backlog(self, stage: Stage) -> None:
        stage.bench.needs("durable", "history")
        # A million of a kilobyte; where there is no time for so many, a few that are large.
        count, size = (1_000_000, 1000) if stage.bench.full else (4000, 60_000)
        stage.bench.sizes["events"] = (count, 1_000_000)
        async with stage.process() as idle:
            await idle.ready()
            before = await idle.stop()
        client = await stage.bench.client()
        for start in range(0, count, 500):
            numbers = range(start, min(count, start + 500))
            filler = "x" * size
            await stage.bench.publish_until_stored(
                client,
                [stage.message(stage.Happened, id=str(n), key=f"k{n % KEYS}", note=filler) for n in numbers],
            )
        async with stage.process(pause=0.01) as slow:
            await slow.ready()
            await stage.bench.until(lambda: stage.noted() >= 100, "it has begun", 0.1)
            await asyncio.sleep(2.0)  # time to take more than it may
            peak = await slow.stop()
        grown = (peak - before) / MIB
        stage.bench.sizes["MiB of the backlog"] = (count * size // MIB,) * 2
        stage.bench.sizes["MiB taken"] = (round(grown),) * 2
        assert peak - before < MOST_MEMORY, f"it had {grown:.0f} MiB more than an idle process"
