"""Acknowledgements on their way while more waits: what may overtake them, and what may not."""

from __future__ import annotations

import asyncio

from tests.unit.parts import Bench, Doing, batch
from tidings import Dead
from tidings.delivery import ACK
from tidings.order import Holds
from tidings.settling import MOST_WAVES


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


async def test_P11_the_broker_is_behind_by_so_many_batches_at_most() -> None:
    bench = Bench(Doing())
    answer = held_back(bench)
    for number in range(MOST_WAVES):
        async with asyncio.timeout(5):
            await bench.pipeline.process(batch(f"a{number}"), more=True)
    last = asyncio.ensure_future(bench.pipeline.process(batch("b1"), more=True))
    done, _ = await asyncio.wait({last}, timeout=0.05)
    assert not done
    answer.set()
    async with asyncio.timeout(5):
        await last
        await bench.pipeline.settler.settled()
    assert len(bench.broker.settled) == MOST_WAVES + 1


async def test_P12_without_an_order_the_next_batch_goes_on_before_the_copies_of_this_one_are_stored() -> None:
    bench = Bench(Doing(a1=ValueError("x")))
    answer = held_back(bench)
    async with asyncio.timeout(5):
        await bench.pipeline.process(batch("a1"), more=True)
    assert bench.broker.settled == []
    answer.set()
    async with asyncio.timeout(5):
        await bench.pipeline.settler.settled()
    assert len(bench.broker.published) == len(bench.broker.settled) == 1


async def test_P8_in_order_the_next_batch_waits_until_the_copies_of_this_one_are_stored() -> None:
    bench = Bench(Doing(a1=Dead("x")))
    answer = held_back(bench)
    process = asyncio.ensure_future(bench.pipeline.process(batch("a1"), Holds(), more=True))
    done, _ = await asyncio.wait({process}, timeout=0.05)
    assert not done
    answer.set()
    async with asyncio.timeout(5):
        await process
    assert len(bench.broker.published) == len(bench.broker.settled) == 1
