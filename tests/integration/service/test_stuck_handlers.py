"""A call that does not end, although its time is long over, is left behind; what it does later counts for nothing."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec
import pytest

from tests.unit.parts import envelope, until
from tidings import Delivery, Event, Retry, Service
from tidings.delivery import Message
from tidings.envelope import to_structured
from tidings.leaving import Leftovers
from tidings.ports import Key
from tidings.stores.memory import MemoryClaim, MemoryStore
from tidings.testing import MemoryBroker

pytestmark = pytest.mark.proves("P12", broker="memory")

TWICE = Retry(attempts=2, first=0.02, most=0.02)
SOON: dict[str, Any] = {"timeout": 0.1, "abandon_after": 0.1, "retry": TWICE}


class Placed(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    number: int


def placed(*names: str) -> list[Placed]:
    return [Placed(order_id=name[:-1], number=int(name[-1])) for name in names]


class Hands:
    """What handlers wait for without listening to anybody: until the end of the test."""

    def __init__(self) -> None:
        self._released = asyncio.Event()
        self._thread_released = threading.Event()

    async def hold(self) -> None:
        while not self._released.is_set():
            try:
                await self._released.wait()
            except asyncio.CancelledError:
                pass

    def hold_thread(self) -> None:
        self._thread_released.wait(60)

    def release(self) -> None:
        self._released.set()
        self._thread_released.set()


@pytest.fixture
async def hands() -> AsyncIterator[Hands]:
    hands = Hands()
    yield hands
    hands.release()
    await asyncio.sleep(0.05)


@pytest.fixture(autouse=True)
def quick_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidings.running.GRACE", 0.1)
    monkeypatch.setattr("tidings.turn.LAST_PATIENCE", 0.1)


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_P7_P12_a_call_that_never_ends_stops_nobody_and_its_event_dies(
    kind: str, hands: Hands, caplog: pytest.LogCaptureFixture
) -> None:
    broker, seen = MemoryBroker(), list[int]()
    stock = Service("stock", publishes=[Placed])

    async def wait(event: Placed) -> None:
        if event.order_id == "bad":
            await hands.hold()
        seen.append(event.number)

    def block(event: Placed) -> None:
        if event.order_id == "bad":
            hands.hold_thread()
        seen.append(event.number)

    stock.on(Placed, name="reserve", idempotent=True, order=None, **SOON)(wait if kind == "async" else block)
    with caplog.at_level(logging.ERROR, logger="tidings.leaving"):
        async with stock.running(broker=broker):
            assert not any(await stock.publish_many(placed("a1", "bad2", "b3", "c4")))
            await until(lambda: len(broker.dead_letters) == 1, 10.0)
            await broker.idle()
            assert sorted(seen) == [1, 3, 4], "those beside it are handled, once"
            (worker,) = stock.active.workers
            assert worker.left_behind == (2, 2)
            assert len(stock.active.leftovers) == 2
            assert not worker.stuck
            hands.release()
            await until(lambda: worker.left_behind == (0, 2))
            assert not stock.active.leftovers
    letter = broker.dead_letters[0]
    assert "Abandoned: the handler did not end, 0.1 s after its 0.1 s were over" in letter.headers["tidings-reason"]
    told = caplog.records[0]
    assert "is left behind, and its event has failed" in told.getMessage()
    assert ("hold_thread" if kind == "thread" else "_released.wait()") in (told.stack_info or "")
    assert ("hold_thread" if kind == "thread" else "_released.wait()") in letter.headers["tidings-traceback"]


@pytest.mark.parametrize("kind", ["async", "thread"])
@pytest.mark.proves("P8", broker="memory")
async def test_P8_P12_in_order_what_follows_waits_for_a_call_whose_effect_cannot_be_undone_and_others_go_on(
    kind: str, hands: Hands
) -> None:
    broker, seen, begun = MemoryBroker(), list[str](), list[str]()
    stock = Service("stock", publishes=[Placed])

    async def wait(event: Placed) -> None:
        name = f"{event.order_id}{event.number}"
        begun.append(name)
        if name == "a1":
            await hands.hold()
        seen.append(name)

    def block(event: Placed) -> None:
        name = f"{event.order_id}{event.number}"
        begun.append(name)
        if name == "a1":
            hands.hold_thread()
        seen.append(name)

    stock.on(Placed, name="reserve", idempotent=True, **SOON)(wait if kind == "async" else block)
    async with stock.running(broker=broker):
        (worker,) = stock.active.workers
        assert not any(await stock.publish_many(placed("a1", "b1", "a2", "b2")))
        await until(lambda: seen == ["b1", "b2"])
        assert "a call for order@1 does not end" in worker.stuck
        await asyncio.sleep(0.3)
        assert begun == ["a1", "b1", "b2"], "neither it nor what follows it begins beside it"
        assert not any(await stock.publish_many(placed("b3", "a3")))
        await until(lambda: "b3" in seen)
        hands.release()
        await broker.idle()
        assert not worker.stuck
    assert seen == ["b1", "b2", "b3", "a1", "a2", "a3"], "what it returned at last counts"
    assert begun.count("a1") == 1
    assert not broker.dead_letters


@pytest.mark.parametrize("kind", ["async", "thread"])
@pytest.mark.proves("P7", broker="memory")
async def test_P7_P12_a_call_that_panics_stops_nobody_and_its_event_dies(kind: str) -> None:
    class Panic(BaseException):
        """As drivers raise that are written in Rust."""

    broker, seen = MemoryBroker(), list[int]()
    stock = Service("stock", publishes=[Placed])

    def block(event: Placed) -> None:
        if event.order_id == "bad":
            raise Panic("index out of bounds")
        seen.append(event.number)

    async def wait(event: Placed) -> None:
        block(event)

    stock.on(Placed, name="reserve", idempotent=True, **SOON)(wait if kind == "async" else block)
    async with stock.running(broker=broker):
        assert not any(await stock.publish_many(placed("a1", "bad2", "b3")))
        await until(lambda: broker.dead_letters)
        await broker.idle()
    assert seen == [1, 3]
    assert "Panic: index out of bounds" in broker.dead_letters[0].headers["tidings-reason"]


async def test_P7_P8_what_does_not_end_in_any_process_dies_and_what_follows_goes_on(hands: Hands) -> None:
    broker, seen = MemoryBroker(), list[str]()
    stock = Service("stock", publishes=[Placed])

    @stock.on(Placed, idempotent=True, **SOON)
    async def reserve(event: Placed) -> None:
        name = f"{event.order_id}{event.number}"
        seen.append(name)
        if name == "a1":
            await hands.hold()

    for _ in range(2):
        async with stock.running(broker=broker):
            if not seen:
                assert not any(await stock.publish_many(placed("a1", "a2")))
            await until(lambda: stock.active.workers[0].stuck)
            assert "a2" not in seen
    assert seen == ["a1", "a1"]
    assert len(broker.dead_letters) == 1, "the stop of the second process made it: nothing runs beside it any more"
    async with stock.running(broker=broker):
        await broker.idle()
    assert seen == ["a1", "a1", "a2"]


@pytest.mark.proves("P6", broker="memory")
async def test_P6_the_failure_of_a_call_that_does_not_end_counts_also_when_its_process_dies(hands: Hands) -> None:
    broker, attempts = MemoryBroker(ack_wait=0.3), list[int]()

    def service() -> Service:
        stock = Service("stock", publishes=[Placed])

        @stock.on(Placed, idempotent=True, **{**SOON, "retry": Retry(attempts=5)})
        async def reserve(event: Placed, delivery: Delivery) -> None:
            attempts.append(delivery.attempt)
            if len(attempts) == 1:
                await hands.hold()

        return stock

    dying, living = service(), service()
    process = broker.client()
    async with dying.running(broker=process):
        await dying.publish(*placed("a1"))
        await until(lambda: dying.active.workers[0].stuck)
        await asyncio.sleep(0.05)
        process.crash()
        async with living.running(broker=broker):
            await until(lambda: len(attempts) == 2)
            await broker.idle()
    assert attempts == [1, 2]


@pytest.mark.parametrize("order", ["key", None])
@pytest.mark.proves("P4", broker="memory", store="memory")
async def test_P5_P12_what_is_applied_once_by_a_lease_is_not_begun_beside_a_call_that_does_not_end(
    order: Literal["key"] | None, hands: Hands
) -> None:
    broker, effects = MemoryBroker(), list[str]()
    stock = Service("stock", store=MemoryStore(), publishes=[Placed])

    @stock.on(Placed, order=order, **SOON)
    def reserve(event: Placed) -> None:
        if event.number == 1:
            hands.hold_thread()
        effects.append(f"{event.order_id}{event.number}")

    async with stock.running(broker=broker):
        (worker,) = stock.active.workers
        assert not any(await stock.publish_many(placed("a1", "b2")))
        await until(lambda: effects == ["b2"] and worker.stuck)
        await asyncio.sleep(0.3)
        hands.release()
        await broker.idle()
    assert effects == ["b2", "a1"]
    assert not broker.dead_letters


class Slow(MemoryStore):
    """A store that closes no claim until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.closes = asyncio.Event()

    @asynccontextmanager
    async def _claim(self, keys: Sequence[Key]) -> AsyncIterator[MemoryClaim]:
        async with super()._claim(keys) as claim:
            yield claim
            await self.closes.wait()


@pytest.mark.parametrize("order", ["key", None])
@pytest.mark.proves("P4", broker="memory", store="memory")
async def test_P8_P12_a_call_that_ends_while_its_claim_is_closed_counts_and_what_follows_goes_on(
    order: Literal["key"] | None, hands: Hands
) -> None:
    broker, begun, left = MemoryBroker(), list[str](), list[int]()
    store = Slow()
    stock = Service("stock", store=store, publishes=[Placed])

    @stock.on(Placed, order=order, **SOON)
    async def reserve(event: Placed) -> None:
        begun.append(f"{event.order_id}{event.number}")
        if event.number == 1:
            await hands.hold()

    async with stock.running(broker=broker):
        (worker,) = stock.active.workers
        assert not any(await stock.publish_many(placed("a1", "a2")))
        await until(lambda: worker.left_behind == (1, 1))
        hands.release()
        await until(lambda: worker.left_behind == (0, 1))
        left.append(worker.busy)
        store.closes.set()
        await broker.idle()
    assert left == [1], "the claim was not closed yet"
    assert sorted(begun) == ["a1", "a2"]
    assert not broker.dead_letters


@pytest.mark.proves("P4", broker="memory", store="memory")
async def test_P4_P12_a_call_that_does_not_end_is_not_made_again_for_a_bad_event_of_its_key(hands: Hands) -> None:
    broker, begun = MemoryBroker(), list[str]()
    stock = Service("stock", store=MemoryStore(), publishes=[Placed])

    @stock.on(Placed, **SOON)
    async def reserve(event: Placed) -> None:
        begun.append(f"{event.order_id}{event.number}")
        await hands.hold()

    bad = msgspec.structs.replace(envelope("a", 2), data=msgspec.Raw(b"{}"))
    async with stock.running(broker=broker):
        (worker,) = stock.active.workers
        await stock.publish(*placed("a1"))
        await until(lambda: worker.stuck)
        message = Message(id="a2", stream="order", type="order.placed", key="a", body=to_structured(bad))
        assert await broker.publish([message], timeout=5.0) == [None]
        await until(lambda: len(broker.dead_letters) == 1)
        await asyncio.sleep(0.3)
        hands.release()
        await broker.idle()
    assert begun == ["a1"]


async def test_P6_a_call_that_ends_late_with_an_error_has_failed_once(hands: Hands) -> None:
    broker, attempts = MemoryBroker(), list[int]()
    stock = Service("stock", publishes=[Placed])

    @stock.on(Placed, idempotent=True, **{**SOON, "retry": Retry(attempts=3, first=0.02, most=0.02)})
    async def reserve(event: Placed) -> None:
        attempts.append(len(attempts) + 1)
        if len(attempts) == 1:
            await hands.hold()
        raise ValueError("never")

    async with stock.running(broker=broker):
        await stock.publish(*placed("a1"))
        await until(lambda: stock.active.workers[0].stuck)
        hands.release()
        await until(lambda: broker.dead_letters)
    assert attempts == [1, 2, 3]
    assert broker.dead_letters[0].headers["tidings-failures"] == "3"


async def test_P12_at_most_so_many_are_left_behind_then_the_process_says_that_it_must_be_replaced(
    hands: Hands, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidings.running.Leftovers", lambda: Leftovers(2))
    broker, begun = MemoryBroker(), list[int]()
    stock = Service("stock", publishes=[Placed])

    @stock.on(Placed, idempotent=True, order=None, **{**SOON, "retry": Retry(attempts=1)})
    async def reserve(event: Placed) -> None:
        begun.append(event.number)
        await hands.hold()

    async with stock.running(broker=broker):
        assert not any(await stock.publish_many(placed("a1", "b2", "c3", "d4")))
        await until(lambda: "no more can be in this process" in stock.active.workers[0].stuck)
        await until(lambda: len(begun) == 3)
        await until(lambda: "its lane waits" in caplog.text)
        await asyncio.sleep(0.2)
        assert begun == [1, 2, 3]
        hands.release()
        await broker.idle()
        assert not stock.active.workers[0].stuck
    assert sorted(begun) == [1, 2, 3, 4]


async def test_without_a_limit_a_call_is_waited_for(hands: Hands) -> None:
    broker, seen = MemoryBroker(), list[int]()
    stock = Service("stock", publishes=[Placed])

    @stock.on(Placed, idempotent=True, order=None, **{**SOON, "abandon_after": None})
    def reserve(event: Placed) -> None:
        if event.number == 1:
            hands.hold_thread()
        seen.append(event.number)

    async with stock.running(broker=broker):
        assert not any(await stock.publish_many(placed("a1", "b2")))
        await asyncio.sleep(0.5)
        assert not seen
        assert stock.active.workers[0].left_behind == (0, 0)
        hands.release()
        await broker.idle()
    assert seen == [1, 2]


@pytest.mark.parametrize("order", ["key", None])
@pytest.mark.parametrize("kind", ["async", "thread"])
@pytest.mark.proves("P9", broker="memory")
async def test_P9_a_stop_leaves_a_call_behind_that_does_not_end_and_gives_its_event_back(
    order: Literal["key"] | None, kind: str, hands: Hands
) -> None:
    broker, begun = MemoryBroker(), list[int]()
    stock = Service("stock", publishes=[Placed])

    async def wait(event: Placed) -> None:
        begun.append(event.number)
        if len(begun) == 1:
            await hands.hold()

    def block(event: Placed) -> None:
        begun.append(event.number)
        if len(begun) == 1:
            hands.hold_thread()

    stock.on(Placed, name="reserve", idempotent=True, order=order)(wait if kind == "async" else block)
    async with asyncio.timeout(30), stock.running(broker=broker):
        assert not any(await stock.publish_many(placed("a1", "a2")))
        await until(lambda: begun)
    assert begun == [1]
    async with stock.running(broker=broker):
        await broker.idle()
    assert begun == [1, 1, 2], "at once, in order, and as no failure"
    assert not broker.dead_letters


@pytest.mark.parametrize("attempts", [1, 2])
@pytest.mark.parametrize("order", ["key", None])
async def test_P8_P12_of_a_batch_that_does_not_end_each_is_tried_alone_and_one_dies(
    order: Literal["key"] | None, attempts: int, hands: Hands
) -> None:
    broker, calls, applied = MemoryBroker(), list[list[int]](), list[int]()
    stock = Service("stock", publishes=[Placed])

    rules = {**SOON, "retry": Retry(attempts=attempts, first=0.02, most=0.02)}

    @stock.on_batch(Placed, idempotent=True, order=order, batch=16, **rules)
    async def reserve(events: list[Placed]) -> None:
        calls.append([event.number for event in events])
        if any(event.order_id == "bad" for event in events):
            await hands.hold()
        applied.extend(event.number for event in events)

    async def live() -> None:
        async with stock.running(broker=broker):
            await until(lambda: broker.dead_letters or stock.active.workers[0].stuck, 10.0)
            if not stock.active.workers[0].stuck:
                await broker.idle()

    async with stock.running(broker=broker):
        assert not any(await stock.publish_many(placed("a1", "bad2", "b3", "c4")))
        await until(lambda: broker.dead_letters or stock.active.workers[0].stuck, 10.0)
    while not broker.dead_letters or len(applied) < 3:
        await live()
    assert sorted(applied) == [1, 3, 4]
    assert len(broker.dead_letters) == 1
    assert {len(call) for call in calls[1:]} == {1}, "each part that does not end would leave a call behind"


async def test_a_handler_that_cancels_its_own_task_has_failed_and_its_lane_goes_on() -> None:
    broker, seen = MemoryBroker(), list[int]()
    stock = Service("stock", publishes=[Placed])

    @stock.on(Placed, idempotent=True, order=None, retry=TWICE)
    async def reserve(event: Placed) -> None:
        if event.order_id == "bad":
            own = asyncio.current_task()
            assert own is not None
            own.cancel()
            await asyncio.sleep(1)
        seen.append(event.number)

    async with stock.running(broker=broker):
        assert not any(await stock.publish_many(placed("a1", "bad2", "c3")))
        await broker.idle()
    assert sorted(seen) == [1, 3]
    assert "cancelled the task" in broker.dead_letters[0].headers["tidings-reason"]
