"""A handler is paused: by an operator, in all processes; or by itself, when most of what it does fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Literal

import pytest

from tests.unit.parts import until
from tidings import Event, KillSwitch, Retry, Service, control
from tidings.ports import Plan
from tidings.testing import MemoryBroker

pytestmark = pytest.mark.proves("P12", broker="memory")

SOON = KillSwitch(least=10, first=0.1, most=0.2)


class Placed(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    number: int


def events(count: int) -> list[Placed]:
    return [Placed(order_id=f"k{number % 5}", number=number) for number in range(count)]


@pytest.mark.parametrize("order", ["key", None])
async def test_P7_P12_a_handler_whose_world_is_down_pauses_instead_of_filling_the_dead_letters(
    order: Literal["key"] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidings.policy.LENIENT_PAUSE", 0.2)
    broker, down = MemoryBroker(), True
    calls, applied, beside = list[int](), Counter[int](), list[int]()
    stock = Service("stock", publishes=[Placed])

    @stock.on(Placed, idempotent=True, order=order, retry=Retry(attempts=3, first=0.02, most=0.02), kill_switch=SOON)
    async def reserve(event: Placed) -> None:
        calls.append(event.number)
        if event.order_id == "bad":
            raise ValueError("never")
        if down:
            raise ConnectionError("the warehouse does not answer")
        applied[event.number] += 1

    @stock.on(Placed, idempotent=True, order=None)
    async def look(event: Placed) -> None:
        beside.append(event.number)

    async with stock.running(broker=broker):
        reserving, looking = stock.active.workers
        assert not any(await stock.publish_many(events(300)))
        await until(lambda: reserving.off)
        assert "failed" in reserving.trouble
        called = len(calls)
        await until(lambda: len(calls) > called + 3, 5.0)  # it tries, one at a time
        assert len(calls) - called < 50
        await until(lambda: len(beside) == 300 and reserving.off)  # another handler has nothing to do with it
        assert not looking.trouble
        down = False
        await until(lambda: len(applied) == 300, 10.0)
        assert not reserving.off
        await broker.idle()
        assert not broker.dead_letters
        assert set(applied.values()) == {1}
        await stock.publish(Placed(order_id="bad", number=1000))
        await until(lambda: len(broker.dead_letters) == 1)  # failures count again


async def test_P7_what_is_bad_for_good_still_dies_while_the_handler_works() -> None:
    broker = MemoryBroker()
    stock = Service("stock", publishes=[Placed])

    @stock.on(Placed, idempotent=True, order=None, retry=Retry(attempts=2, first=0.0, most=0.0), kill_switch=SOON)
    async def reserve(event: Placed) -> None:
        if event.number % 10 == 0:
            raise ValueError("never")

    async with stock.running(broker=broker):
        assert not any(await stock.publish_many(events(100)))
        await broker.idle()
        assert not stock.active.workers[0].off
    assert len(broker.dead_letters) == 10


async def test_P7_two_bad_events_that_are_tried_again_and_again_pause_nobody() -> None:
    broker = MemoryBroker()
    stock = Service("stock", publishes=[Placed])

    @stock.on(Placed, idempotent=True, order=None, retry=Retry(attempts=15, first=0.0, most=0.0), kill_switch=SOON)
    async def reserve(event: Placed) -> None:
        if event.number < 2:
            raise ValueError("never")

    async with stock.running(broker=broker):
        assert not any(await stock.publish_many(events(6)))
        await until(lambda: len(broker.dead_letters) == 2)
        assert not stock.active.workers[0].off, "they failed thirty times, and are two of six"
        await broker.idle()


@pytest.mark.parametrize("order", ["key", None])
async def test_P9_an_order_finishes_the_event_that_runs_and_gives_the_rest_back(order: Literal["key"] | None) -> None:
    broker, seen, begun, go_on = MemoryBroker(), list[int](), asyncio.Event(), asyncio.Event()
    stock = Service("stock", publishes=[Placed])

    @stock.on(Placed, idempotent=True, order=order)
    async def reserve(event: Placed) -> None:
        if not seen:
            begun.set()
            await go_on.wait()
        seen.append(event.number)

    async with stock.running(broker=broker):
        (worker,) = stock.active.workers
        assert not any(await stock.publish_many(events(20)))
        await begun.wait()
        pausing = asyncio.create_task(worker.pause("by a test"))
        await asyncio.sleep(0.1)
        assert not pausing.done()
        go_on.set()
        await pausing
        await asyncio.sleep(0.1)
        assert len(seen) == 1, "of its batch the rest goes back too"
        backlog = await worker.backlog()
        assert backlog is not None
        assert (backlog.pending, backlog.in_flight, worker.waiting) == (19, 0, 0)
        await worker.resume()
        await until(lambda: sorted(seen) == list(range(20)))
        await broker.idle()
    assert seen == list(range(20)), "what comes back comes in its order"
    assert not broker.dead_letters


async def heard(operator: MemoryBroker, order: control.Order, count: int) -> None:
    """Wait until so many processes say that they obey."""
    async with asyncio.timeout(30):
        while len(await control.heard(operator, "stock.reserve", order)) != count:  # noqa: ASYNC110  # notes tell nobody
            await asyncio.sleep(0.01)


async def test_P9_P12_an_order_pauses_a_handler_in_all_processes_and_in_those_that_start_later() -> None:
    broker, seen, begun, go_on = MemoryBroker(), list[int](), asyncio.Event(), asyncio.Event()

    def process() -> Service:
        stock = Service("stock", publishes=[Placed])

        @stock.on(Placed, idempotent=True, order=None, batch=1)
        async def reserve(event: Placed) -> None:
            if event.number == 0 and not begun.is_set():
                begun.set()
                await go_on.wait()
            seen.append(event.number)

        return stock

    one, two, three = process(), process(), process()
    operator = broker.client()
    await operator.open(Plan(service="ops"))
    async with one.running(broker=broker.client()), two.running(broker=broker.client()):
        await one.publish(events(1)[0])
        await begun.wait()
        order = await control.pause(operator, "stock.reserve", reason="the warehouse is counted")
        await until(lambda: all(service.active.workers[0].paused for service in (one, two)))
        assert "the warehouse is counted" in one.active.workers[0].paused
        assert not seen, "what runs is not cut off"
        go_on.set()
        await until(lambda: seen == [0])
        assert not any(await one.publish_many(events(20)[1:]))
        async with three.running(broker=broker.client()):
            assert three.active.workers[0].paused
            await asyncio.sleep(0.3)
            assert seen == [0]
            assert not three.active.workers[0].trouble
            backlog = await one.active.workers[0].backlog()
            assert backlog is not None
            assert (backlog.pending, backlog.in_flight) == (19, 0)
            await heard(operator, order, 3)
            assert await control.resume(operator, "stock.reserve") == order
            await until(lambda: sorted(seen) == list(range(20)))
            await until(lambda: not any(service.active.workers[0].paused for service in (one, two, three)))
        await heard(operator, order, 0)
        assert await control.resume(operator, "stock.reserve") is None
    await operator.close()
    assert not broker.dead_letters


async def test_P9_a_service_that_is_stopped_while_its_handler_is_being_paused_gives_everything_back() -> None:
    broker, seen = MemoryBroker(), list[int]()
    slow, stock = Service("stock", publishes=[Placed]), Service("stock", publishes=[Placed])

    @slow.on(Placed, idempotent=True, order=None, batch=1, name="reserve")
    async def never(event: Placed) -> None:
        await asyncio.sleep(0.5)
        seen.append(event.number)

    @stock.on(Placed, idempotent=True, order=None)
    async def reserve(event: Placed) -> None:
        seen.append(event.number)

    async with slow.running(broker=broker):
        assert not any(await slow.publish_many(events(3)))
        await until(lambda: slow.active.workers[0].busy == 1)
        pausing = asyncio.create_task(slow.active.workers[0].pause("now"))
        await asyncio.sleep(0.05)
    await pausing
    async with stock.running(broker=broker):
        await until(lambda: sorted(seen) == [0, 1, 2])
        await broker.idle()
    assert not broker.dead_letters
