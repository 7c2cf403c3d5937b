"""Lanes: who takes what, who waits, and how everything is given back."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.unit.parts import Bench, Doing, Placed, RecordingBroker, ToldStore, Watcher, batch, delivery, ids, until
from tests.walk.virtual import in_virtual_time
from tidings.delivery import ACK, Delivery, Release
from tidings.errors import Contention, StoreUnavailable
from tidings.lane import Lane
from tidings.partition import slot_of
from tidings.policy import Retry
from tidings.ports import Subscription
from tidings.worker import Worker

FOREVER = 60.0
AT_ONCE = Retry(attempts=3, first=0.0, most=0.0)


class Run:
    """A worker with its bench. `give` hands deliveries over as a feed does."""

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        *,
        lanes: int = 1,
        size: int = 64,
        ordered: bool = False,
        **rules: Any,
    ) -> None:
        self.bench = Bench(call, ordered=ordered, **rules)
        self.broker: RecordingBroker = self.bench.broker
        subscription = Subscription(
            position="stock.step", stream="order", types=("order.placed",), ordered=ordered, max_in_flight=256
        )
        self.worker = Worker(
            subscription,
            self.bench.pipeline,
            self.broker,
            lanes=lanes,
            batch=size,
            observers=[self.bench.watcher],
        )

    async def __aenter__(self) -> Run:
        await self.worker.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.worker.stop(1.0)

    def give(self, *deliveries: Delivery) -> None:
        for one in deliveries:
            one.slot = slot_of(one.origin_text.split("@")[0]) if one.slot is None else one.slot
            self.broker.sinks["stock.step"](one)

    async def settled(self, count: int) -> None:
        await until(lambda: len(self.broker.settled) >= count)


async def test_what_waits_goes_as_one_batch_and_a_single_event_goes_at_once() -> None:
    async with Run(Doing()) as run:
        run.give(*batch("a1", "b2", "c3"))
        await run.settled(3)
        run.give(*batch("d4"))
        await run.settled(4)
    assert run.broker.waves == [3, 1]
    assert run.bench.watcher.counts == [3, 1]


async def test_P11_a_batch_is_no_larger_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidings.calls.BATCH_SECONDS", 60.0)  # however slow the machine is, none ends before it is full
    async with Run(Doing(), size=2) as run:
        run.give(*batch("a1", "b2", "c3", "d4", "e5"))
        await run.settled(5)
    assert run.broker.waves == [2, 2, 1]


async def test_several_lanes_work_side_by_side_on_what_has_no_order() -> None:
    barrier = asyncio.Barrier(3)

    async def together(event: Placed) -> None:
        await barrier.wait()

    async with Run(together, lanes=3, size=1) as run:
        run.give(*batch("a1", "b2", "c3"))
        await run.settled(3)


@in_virtual_time()
async def test_P8_in_order_the_events_of_a_key_go_to_one_lane_and_of_others_run_beside_it() -> None:
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    order: list[str] = []

    async def watch(event: Placed) -> None:
        running[event.order_id] += 1
        running["all"] += 1
        for name in (event.order_id, "all"):
            most[name] = max(most[name], running[name])
        await asyncio.sleep(0.01)
        order.append(f"{event.order_id}{event.number}")
        running.subtract([event.order_id, "all"])

    async with Run(watch, lanes=2, ordered=True) as run:
        deliveries = batch("a1", "b1", "a2", "b2", "a3", "b3")
        for one in deliveries:
            one.slot = "ab".index(one.body.decode().split('"subject":"')[1][0])
        run.give(*deliveries)
        await run.settled(6)
    assert most == {"a": 1, "b": 1, "all": 2}
    for key in "ab":
        assert [one for one in order if one[0] == key] == [f"{key}1", f"{key}2", f"{key}3"]


async def test_P6_P8_a_held_event_is_tried_again_when_it_is_due_and_other_keys_go_on_meanwhile() -> None:
    doing = Doing(a1=[ValueError("x")])
    async with Run(doing, ordered=True, retry=Retry(attempts=3, first=0.05, most=0.05)) as run:
        run.give(*batch("a1", "a2", "b3"))
        await run.settled(3)
    assert doing.seen == ["a1", "b3", "a1", "a2"]
    assert [one for one, _ in run.broker.verdicts()] == ["b3", "a1", "a2"]


async def test_P8_an_event_that_fails_again_and_again_keeps_its_followers_until_it_is_dead() -> None:
    doing = Doing(a1=[ValueError("x")] * 3)
    async with Run(doing, ordered=True, retry=AT_ONCE) as run:
        run.give(*batch("a1", "a2", "a3"))
        await run.settled(3)
    assert doing.seen == ["a1", "a1", "a1", "a2", "a3"]
    assert run.bench.outcomes == {"a1": "dead", "a2": "done", "a3": "done"}


async def test_P8_what_was_held_and_is_due_goes_before_what_its_lane_has_not_seen_yet() -> None:
    lane = Lane(deque(batch("a3", "b4")), ordered=True)
    assert lane.holds is not None
    for one in batch("a1", "a2"):
        lane.holds.hold("a", one, 0.0)
    assert [one.origin_text for one in lane.take(3)] == ["order@1", "order@2", "order@3"]
    lane.put_back(batch("a2", "a3"))
    assert [one.origin_text for one in lane.take(9)] == ["order@2", "order@3", "order@4"]


# ── the world is down ───────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time()
async def test_P5_while_the_store_is_down_nothing_is_settled_and_afterwards_it_goes_on_by_itself() -> None:
    store = ToldStore()
    store.enter.extend([StoreUnavailable("gone")] * 3)
    async with Run(Doing(), store=store) as run:
        run.give(*batch("a1", "b2"))
        await until(lambda: run.worker.trouble)
        assert "gone" in run.worker.trouble
        assert run.worker.waiting == 2
        assert run.broker.settled == []
        await run.settled(2)
        await asyncio.sleep(0.01)
        assert run.worker.trouble == ""
    assert [len(asked) for asked in store.asked] == [2, 2, 2, 2]


@in_virtual_time()
async def test_an_event_goes_to_a_lane_that_sleeps_and_not_to_one_that_waits_for_the_world() -> None:
    store = ToldStore()
    store.enter.extend([Contention("a lock")] * 8)
    async with Run(Doing(), store=store, lanes=2, size=1) as run:
        run.give(*batch("a1"))
        await asyncio.sleep(0)
        await until(lambda: run.worker.trouble)
        store.enter.clear()
        run.give(*batch("b2"))
        await asyncio.sleep(0.02)  # less than the first pause of the other lane
        assert len(run.broker.settled) == 2


@in_virtual_time()
async def test_P9_a_stop_does_not_wait_for_the_world() -> None:
    store = ToldStore()
    store.enter.extend([StoreUnavailable("gone")] * 1000)
    async with Run(Doing(), store=store) as run:
        run.give(*batch("a1"))
        await asyncio.sleep(0.4)
        async with asyncio.timeout(0.5):
            await run.worker.stop(5.0)
    assert run.broker.verdicts() == [("a1", Release(0.0))]


# ── stop ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time()
async def test_P9_a_stop_finishes_what_runs_and_gives_the_rest_back_once() -> None:
    finish = asyncio.Event()

    async def slow(event: Placed) -> None:
        await finish.wait()

    run = Run(slow, ordered=True)
    await run.worker.start()
    run.give(*batch("a1", "b2", "c3"))
    await asyncio.sleep(0.01)
    run.give(*batch("d4"))
    stop = asyncio.create_task(run.worker.stop(5.0))
    await asyncio.sleep(0.01)
    assert run.broker.settled == []
    finish.set()
    await stop
    assert run.broker.verdicts() == [
        ("a1", ACK),
        ("b2", Release(0.0)),
        ("c3", Release(0.0)),
        (run.broker.settled[3][0].event_id, Release(0.0)),
    ]
    assert run.broker.calls == ["stop", "close"]
    assert run.worker.waiting == 0


@in_virtual_time()
async def test_P9_without_order_what_is_not_begun_is_given_back_before_what_runs_has_ended() -> None:
    run = Run(Doing(a1=0.2), size=1)
    await run.worker.start()
    run.give(*batch("a1", "b2"))
    await asyncio.sleep(0.01)
    stop = asyncio.create_task(run.worker.stop(5.0))
    await asyncio.sleep(0.05)
    assert [verdict for _, verdict in run.broker.settled] == [Release(0.0)]
    await stop
    assert [verdict for _, verdict in run.broker.settled] == [Release(0.0), ACK]


@in_virtual_time()
async def test_P9_a_handler_that_does_not_end_in_time_is_cancelled_and_its_event_given_back() -> None:
    run = Run(Doing(a1=FOREVER))
    await run.worker.start()
    run.give(*batch("a1", "b2"))
    await asyncio.sleep(0.01)
    await run.worker.stop(0.01)
    assert run.broker.verdicts() == [("a1", Release(0.0)), ("b2", Release(0.0))]
    assert run.broker.published == []


@in_virtual_time()
async def test_P8_P9_what_is_held_is_given_back_before_what_came_behind_it() -> None:
    doing = Doing(a1=ValueError("x"))
    run = Run(doing, ordered=True, retry=Retry(first=50.0), size=2)
    await run.worker.start()
    run.give(*batch("a1", "a2"))
    await asyncio.sleep(0.02)
    assert run.worker.waiting == 2
    run.worker._lanes[0].queue.extend(batch("a3"))  # arrived, and its lane has not seen it yet
    await run.worker.stop(1.0)
    assert [one.origin_text for one, _ in run.broker.settled] == ["order@1", "order@2", "order@3"]
    assert {verdict for _, verdict in run.broker.settled} == {Release(0.0)}


@in_virtual_time()
async def test_P9_a_stop_does_not_end_the_feed_before_the_acknowledgements_on_their_way() -> None:
    """What is done is acknowledged beside the next events, so the last lane may end before they are through."""
    finish, gate = asyncio.Event(), asyncio.Event()

    async def slow(event: Placed) -> None:
        await finish.wait()

    run = Run(slow, ordered=True, size=1)
    await run.worker.start()
    settle = run.broker.settle

    async def late(verdicts: Any) -> Any:
        if any(verdict == ACK for _, verdict in verdicts):
            await gate.wait()
        return await settle(verdicts)

    run.broker.settle = late  # type: ignore[method-assign]  # a slow network
    run.give(*batch("a1", "b2"))
    await asyncio.sleep(0.01)
    stop = asyncio.create_task(run.worker.stop(5.0))
    await asyncio.sleep(0.01)
    finish.set()
    await asyncio.sleep(0.05)
    assert "close" not in run.broker.calls
    gate.set()
    await stop
    assert run.broker.calls[-1] == "close"
    assert [verdict for _, verdict in run.broker.settled] == [ACK, Release(0.0)]


async def test_P9_a_second_stop_changes_nothing() -> None:
    run = Run(Doing())
    await run.worker.start()
    run.give(*batch("a1"))
    await run.settled(1)
    await run.worker.stop(1.0)
    await run.worker.stop(1.0)
    assert run.broker.verdicts() == [("a1", ACK)]


async def test_a_worker_that_never_started_can_be_stopped() -> None:
    run = Run(Doing())
    await run.worker.stop(1.0)
    assert await run.worker.backlog() is None


@in_virtual_time()
async def test_P9_a_feed_that_cannot_end_properly_does_not_keep_its_deliveries() -> None:
    run = Run(Doing(a1=FOREVER))
    await run.worker.start()
    run.give(*batch("a1"))
    await asyncio.sleep(0.01)

    async def broken() -> None:
        raise ConnectionError("gone")

    run.broker.stop = run.broker.close = broken  # type: ignore[method-assign]  # a broken adapter
    await run.worker.stop(0.01)
    assert run.broker.verdicts() == [("a1", Release(0.0))]


# ── what must not end a lane ────────────────────────────────────────────────────────────────────────────────────────


async def test_P2_an_observer_that_raises_costs_no_event() -> None:
    run = Run(Doing())
    run.bench.watcher.raises = ValueError("observer")
    async with run:
        run.give(*batch("a1"))
        await run.settled(1)
    assert run.worker.failures == {}


@in_virtual_time()
async def test_P12_a_lane_goes_on_after_a_mistake_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Doing())
    original, calls = run.bench.pipeline.process, 0

    async def process(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("a mistake of our own")
        return await original(*args, **options)

    monkeypatch.setattr(run.bench.pipeline, "process", process)
    async with run:
        run.give(*batch("a1"))
        await asyncio.sleep(0.01)
        run.give(*batch("b2"))
        await run.settled(1)
    assert run.worker.busy == 0


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ValueError("x"), BaseException("b"), SystemExit(3)])
async def test_P12_nothing_that_a_handler_raises_ends_a_lane(error: BaseException) -> None:
    async with Run(Doing(a1=error)) as run:
        run.give(*batch("a1"))
        await run.settled(1)
        run.give(delivery("b", 2))
        await run.settled(2)
    assert ids([one for one, _ in run.broker.settled]) == ["a1", "b2"]
    assert isinstance(run.bench.watcher, Watcher)
