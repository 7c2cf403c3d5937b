"""Acknowledgements on their way while more waits: what may overtake them, and what may not."""

from __future__ import annotations

import asyncio

from tests.unit.parts import Bench, Doing, batch
from tidings.delivery import ACK


def held_back(bench: Bench) -> asyncio.Event:
    """Let the broker answer only once the event is set."""
    bench.broker.gate = asyncio.Event()
    return bench.broker.gate


async def test_P3_while_more_waits_the_next_batch_goes_on_before_the_acknowledgement_of_this_one() -> None:
    bench = Bench(Doing())
    answer = held_back(bench)
    async with asyncio.timeout(5):
        await bench.pipeline.process(batch("a1"), more=True)
    assert bench.broker.settled == []
    answer.set()
    async with asyncio.timeout(5):
        await bench.pipeline.settler.settled()
    assert [verdict for _, verdict in bench.broker.settled] == [ACK]


async def test_P11_only_one_wave_is_on_its_way_at_a_time() -> None:
    bench = Bench(Doing())
    answer = held_back(bench)
    await bench.pipeline.process(batch("a1"), more=True)
    second = asyncio.ensure_future(bench.pipeline.process(batch("b2"), more=True))
    done, _ = await asyncio.wait({second}, timeout=0.05)
    assert not done
    answer.set()
    async with asyncio.timeout(5):
        await second
        await bench.pipeline.settler.settled()
    assert len(bench.broker.settled) == 2


async def test_P2_what_is_no_plain_acknowledgement_is_told_before_the_batch_returns() -> None:
    bench = Bench(Doing(a1=ValueError("x")))
    answer = held_back(bench)
    process = asyncio.ensure_future(bench.pipeline.process(batch("a1"), more=True))
    done, _ = await asyncio.wait({process}, timeout=0.05)
    assert not done
    answer.set()
    async with asyncio.timeout(5):
        await process
    assert len(bench.broker.published) == len(bench.broker.settled) == 1
