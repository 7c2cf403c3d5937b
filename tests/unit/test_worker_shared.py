"""What becomes of deliveries whose part of an ordered position goes to another process, or has gone."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.unit.parts import Doing, Placed, RecordingBroker, batch, until
from tests.unit.test_worker import Run
from tests.walk.virtual import in_virtual_time
from tidings.delivery import Delivery
from tidings.policy import Retry
from tidings.ports import Recalls, Sink, Subscription

AT_WORK = 30.0


class Slow:
    """A handler that waits until it is let go on."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.go = asyncio.Event()

    async def __call__(self, event: Placed) -> None:
        self.seen.append(f"{event.order_id}{event.number}")
        await self.go.wait()


def recalls(run: Run) -> Recalls:
    sink = run.broker.sinks["stock.step"]
    assert isinstance(sink, Recalls)
    return sink


def withdraw(*deliveries: Delivery) -> None:
    for one in deliveries:
        one.withdrawn = True


@in_virtual_time()
async def test_P8_what_is_given_up_is_not_begun_and_what_runs_is_finished_first() -> None:
    slow = Slow()
    async with Run(slow, ordered=True, size=1) as run:
        going, staying = batch("a1", "a2", "a3"), batch("b4")
        run.give(*going[:2])
        await until(lambda: slow.seen)
        run.give(going[2], *staying)
        withdraw(*going)
        giving = asyncio.create_task(_give_up(run, going, AT_WORK))
        await asyncio.sleep(0.02)
        assert not giving.done(), "one of them is at work"
        slow.go.set()
        assert await giving == []
        await until(lambda: len(run.broker.settled) == 2)
    assert slow.seen == ["a1", "b4"]
    assert [one for one, _ in run.broker.verdicts()] == ["a1", "b4"]


@pytest.mark.parametrize("ordered", [True, False])
async def test_P3_what_stands_behind_many_that_were_taken_away_is_begun_though_nobody_calls(ordered: bool) -> None:
    slow = Slow()
    async with Run(slow, ordered=ordered, size=2) as run:
        run.give(*batch("a0"))
        await until(lambda: slow.seen)
        lost = batch("a1", "a2", "a3", "a4", "a5")
        run.give(*lost, *batch("b1"))
        withdraw(*lost)
        slow.go.set()
        await until(lambda: len(run.broker.settled) == 2)
    assert slow.seen == ["a0", "b1"]


async def test_P8_what_takes_too_long_to_be_given_up_is_told_and_stays() -> None:
    slow = Slow()
    async with Run(slow, ordered=True) as run:
        going = batch("a1", "a2")
        run.give(*going)
        await until(lambda: slow.seen)
        withdraw(*going)
        assert await _give_up(run, going, 0.02) == going, "both are in the batch that runs"
        for one in going:
            one.withdrawn = False
        slow.go.set()
        await until(lambda: len(run.broker.settled) == 2)
    assert slow.seen == ["a1", "a2"]


async def test_P8_an_event_that_waits_for_its_next_attempt_is_given_up_with_those_behind_it() -> None:
    doing = Doing(a1=[ValueError("x")])
    async with Run(doing, ordered=True, retry=Retry(attempts=3, first=60.0, most=60.0)) as run:
        going = batch("a1", "a2")
        run.give(*going)
        await until(lambda: doing.seen and run.worker.waiting == 2)
        withdraw(*going)
        assert await _give_up(run, going, AT_WORK) == []
        assert run.worker.waiting == 0
        # The key is free here, for it may come back.
        run.give(*batch("a3"))
        await until(lambda: len(run.broker.settled) == 1)
    assert doing.seen == ["a1", "a3"]


@in_virtual_time()
async def test_P8_an_event_that_fails_while_it_is_given_up_is_not_kept_for_another_attempt() -> None:
    slow = Slow()

    async def fail(event: Placed) -> None:
        await slow(event)
        raise ValueError("x")

    async with Run(fail, ordered=True, retry=Retry(attempts=3, first=0.01, most=0.01)) as run:
        going = batch("a1")
        run.give(*going)
        await until(lambda: slow.seen)
        withdraw(*going)
        giving = asyncio.create_task(_give_up(run, going, AT_WORK))
        await asyncio.sleep(0.01)
        slow.go.set()
        assert await giving == []
        await asyncio.sleep(0.05)
        assert run.worker.waiting == 0
    assert slow.seen == ["a1"]
    assert run.broker.settled == []


class FencedBroker(RecordingBroker):
    """Its feed has lost what is named here, and finds out when it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.doubt = ""
        self.lost: list[Delivery] = []
        self.asked = 0

    async def subscribe(self, subscription: Subscription, sink: Sink) -> FencedBroker:
        await super().subscribe(subscription, sink)
        return self

    def fence(self) -> str:
        self.asked += 1
        withdraw(*self.lost)
        return self.doubt


@pytest.fixture
def fenced() -> FencedBroker:
    return FencedBroker()


async def test_P8_nothing_is_begun_that_another_process_has_meanwhile(fenced: FencedBroker) -> None:
    doing = Doing()
    run = Run(doing, ordered=True)
    run.broker = run.worker._broker = fenced
    run.bench.pipeline._broker = run.bench.pipeline.settler._broker = fenced
    async with run:
        deliveries = batch("a1", "b2", "a3")
        fenced.lost = [deliveries[0], deliveries[2]]
        run.give(*deliveries)
        await until(lambda: fenced.settled)
    assert doing.seen == ["b2"]


async def test_P8_a_batch_that_was_held_up_in_the_middle_goes_on_with_nothing_that_was_lost(
    fenced: FencedBroker,
) -> None:
    seen: list[str] = []

    async def held_up(event: Placed) -> None:
        seen.append(f"{event.order_id}{event.number}")
        if len(seen) == 1:
            fenced.lost = deliveries[2:]
            time.sleep(0.06)  # longer than a batch may take, as after a SIGSTOP; and no task has run meanwhile

    run = Run(held_up, ordered=True)
    run.broker = run.worker._broker = fenced
    run.bench.pipeline._broker = run.bench.pipeline.settler._broker = fenced
    deliveries = batch("a1", "b2", "a3", "a4")
    async with run:
        run.give(*deliveries)
        await until(lambda: len(fenced.settled) == 2)
    assert seen == ["a1", "b2"]


@in_virtual_time()
async def test_P8_what_is_to_go_is_not_begun_by_the_batch_that_has_it() -> None:
    seen: list[str] = []

    async def slow(event: Placed) -> None:
        seen.append(f"{event.order_id}{event.number}")
        withdraw(*deliveries)
        await asyncio.sleep(0.06)

    async with Run(slow, ordered=True) as run:
        deliveries = batch("a1", "a2", "b3")
        run.give(*deliveries)
        await until(lambda: seen)
        assert await _give_up(run, deliveries, AT_WORK) == []
        assert run.worker.waiting == 0
    assert seen == ["a1"]


@in_virtual_time()
async def test_P8_nothing_is_begun_while_nobody_knows_whose_it_is_and_the_handler_says_so(fenced: FencedBroker) -> None:
    doing = Doing()
    run = Run(doing, ordered=True)
    run.broker = run.worker._broker = fenced
    run.bench.pipeline._broker = run.bench.pipeline.settler._broker = fenced
    fenced.doubt = "nobody knows"
    async with run:
        run.give(*batch("a1", "a2"))
        await until(lambda: fenced.asked > 1)
        assert run.worker.trouble == "nobody knows"
        assert doing.seen == []
        fenced.doubt = ""
        await until(lambda: len(fenced.settled) == 2)
        assert run.worker.trouble == ""
    assert doing.seen == ["a1", "a2"]


async def _give_up(run: Run, deliveries: list[Delivery], patience: float) -> list[Delivery]:
    return list(await recalls(run).give_up(deliveries, patience))


@in_virtual_time()
async def test_P8_a_part_stays_while_a_call_runs_on_for_an_event_of_it() -> None:
    go, seen = asyncio.Event(), list[str]()

    async def hold(event: Placed) -> None:
        seen.append(f"{event.order_id}{event.number}")
        while event.number == 1 and not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                pass

    async with Run(hold, ordered=True, timeout=0.05, abandon_after=0.05) as run:
        going, other = batch("a1", "a2"), batch("b3")
        run.give(*going, *other)
        await until(lambda: run.worker.stuck and "b3" in seen)
        withdraw(*going)
        assert await _give_up(run, going, 0.02) == going[:1], "what runs on keeps it, what waits behind it does not"
        for one in going:
            one.withdrawn = False
        again = batch("a2")
        run.give(*again)  # as the broker gives it once more, where the part stayed
        await asyncio.sleep(0.05)
        assert seen == ["a1", "b3"], "its key is still held"
        withdraw(*going[:1], *again)
        giving = asyncio.create_task(_give_up(run, [*going[:1], *again], AT_WORK))
        await asyncio.sleep(0.02)
        assert not giving.done()
        go.set()
        assert await giving == []
    assert seen == ["a1", "b3"]
