"""Acknowledgements on their way while more waits: what may overtake them, and what may not."""

from __future__ import annotations

import asyncio
import gc
import weakref

import msgspec
import pytest

from tests.unit.parts import Bench, Doing, batch, delivery, envelope, ids
from tidings import BrokerUnavailable, Dead
from tidings.delivery import ACK, Route
from tidings.envelope import to_structured
from tidings.order import Holds
from tidings.settling import COPY_PAUSE, MOST_WAVES

FOREVER = 1e9


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


async def test_P8_in_order_what_follows_a_dead_letter_waits_until_it_is_stored_and_other_keys_go_on() -> None:
    woken: list[float] = []
    doing = Doing(a1=Dead("x"))
    bench, holds = Bench(doing, ordered=True), Holds(lambda: woken.append(asyncio.get_running_loop().time()))
    answer = held_back(bench)
    async with asyncio.timeout(5):
        await bench.pipeline.process(batch("a1"), holds)
        await bench.pipeline.process(batch("a2", "b3"), holds, more=True)
    assert doing.seen == ["a1", "b3"]
    assert list(holds.release(FOREVER)) == []
    assert holds.next_due() is None, "nobody knows when, so nobody looks"
    answer.set()
    async with asyncio.timeout(5):
        await bench.pipeline.settler.settled()
    assert bench.outcomes == {"a1": "dead", "b3": "done"}
    assert len(woken) == 1
    assert ids(list(holds.release(asyncio.get_running_loop().time()))) == ["a2"]


async def test_P8_a_dead_letter_that_cannot_be_stored_comes_again_before_what_follows_it() -> None:
    bench, holds = Bench(Doing(a1=Dead("x"), a2=Dead("y")), ordered=True), Holds()
    bench.broker.refuse_publish = lambda message: BrokerUnavailable("gone")
    async with asyncio.timeout(5):
        await bench.pipeline.process(batch("a1", "a2"), holds, more=True)
        await bench.pipeline.process(batch("a3"), holds, more=True)
        await bench.pipeline.settler.settled()
    now = asyncio.get_running_loop().time()
    assert list(holds.release(now + COPY_PAUSE - 1)) == []
    assert ids(list(holds.release(now + COPY_PAUSE))) == ["a1", "a2", "a3"]


async def test_P8_a_next_attempt_that_is_due_while_a_letter_behind_it_is_stored_keeps_its_place() -> None:
    doing = Doing(a1=[ValueError("x"), ValueError("x")])
    bench, holds = Bench(doing, ordered=True), Holds()
    unfit = delivery("a", 2, body=to_structured(msgspec.structs.replace(envelope("a", 2), data=msgspec.Raw(b"{}"))))
    async with asyncio.timeout(5):
        await bench.pipeline.process(batch("a1"), holds)
        answer = held_back(bench)
        await bench.pipeline.process([unfit], holds, more=True)
        await bench.pipeline.process(batch("a3"), holds, more=True)
        for _ in range(3):  # what is due goes on
            if again := list(holds.release(FOREVER)):
                await bench.pipeline.process(again, holds, more=True)
        answer.set()
        await bench.pipeline.settler.settled()
        for _ in range(2):
            await bench.pipeline.process(list(holds.release(FOREVER)), holds)
    assert doing.seen == ["a1", "a1", "a1", "a3"]
    assert len(holds) == 0
    assert [message.route for message in bench.broker.published].count(Route.DEAD) == 1


async def test_P8_what_follows_a_dead_letter_does_not_wait_for_ever_where_settling_breaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, holds = Bench(Doing(a1=Dead("x")), ordered=True), Holds()

    async def breaks(gone: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(bench.pipeline.settler.counts, "ended", breaks)
    async with asyncio.timeout(5):
        await bench.pipeline.process(batch("a1", "a2"), holds, more=True)
        await bench.pipeline.settler.settled()
    assert ids(list(holds.release(asyncio.get_running_loop().time()))) == ["a2"]


async def test_P8_in_order_the_next_batch_waits_until_it_is_noted_what_failed() -> None:
    bench, holds = Bench(Doing(a1=ValueError("x")), ordered=True), Holds()
    answer = held_back(bench)
    process = asyncio.ensure_future(bench.pipeline.process(batch("a1", "b1"), holds, more=True))
    done, _ = await asyncio.wait({process}, timeout=0.05)
    assert not done
    answer.set()
    async with asyncio.timeout(5):
        await process
    assert ids(holds.clear()) == ["a1"]


@pytest.mark.parametrize("holds", [None, Holds()], ids=["in no order", "in order"])
async def test_a_batch_that_was_settled_is_gone_without_the_garbage_collector(holds: Holds | None) -> None:
    """Its events, and their tracebacks, would each time be found by walking through all that is young."""
    bench = Bench(Doing(a1=Dead("x"), b2=Dead("y")), ordered=holds is not None)
    bodies = [None, b"no event"]
    gc.collect()
    gc.disable()
    try:
        there = []
        for body in bodies:
            (one,) = [delivery("a", 1, body=body)]
            there.append(weakref.ref(one))
            await bench.pipeline.process([one, *batch("b2", "c3")], holds)
            del one
            bench.watcher.outcomes.clear()
            bench.broker.settled.clear()
        assert [kept() for kept in there] == [None, None]
    finally:
        gc.enable()
