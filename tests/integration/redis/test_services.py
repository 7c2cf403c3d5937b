"""Whole services with TIDINGS_STORE=redis://…, on the memory broker and on an embedded nats-server."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.integration.shop import Placed, Reserved
from tests.unit.parts import until
from tidings import Delivery, Retry, Service
from tidings.brokers import broker_from
from tidings.dead_letters import find, list_letters, redrive
from tidings.delivery import Message
from tidings.ports import Broker
from tidings.stores.redis import Fence
from tidings.testing import MemoryBroker
from tidings.worker import Worker

pytestmark = pytest.mark.proves(store="redis")

SOON = Retry(attempts=2, first=0.05, most=0.05)
EVENTS = 60


class Shop:
    """Two services that follow each other, and what they did."""

    def __init__(self, folder: Path) -> None:
        name = f"stock-{os.urandom(4).hex()}"
        self.stock = Service(name, publishes=[Placed])
        self.effects: Counter[tuple[str, str, int]] = Counter()
        self.calls: Counter[int] = Counter()
        self.fences: list[int] = []
        self.mended = False

        @self.stock.on(Placed, once="number", retry=SOON)
        async def reserve(placed: Placed, fence: Fence, about: Delivery) -> Reserved:
            self.calls[placed.number] += 1
            self.fences.append(fence.number)
            if placed.number % 10 == 3 and self.calls[placed.number] == 1:
                raise ValueError("a bad day")
            if placed.number < 0 and not self.mended:
                raise ValueError("no such shelf")
            self.effects["reserve", placed.order_id, placed.number] += 1
            return Reserved(order_id=placed.order_id, number=placed.number)

        @self.stock.on(Reserved, retry=SOON)
        def count(reserved: Reserved, fence: Fence) -> None:
            assert int(fence) > 0
            self.effects["count", reserved.order_id, reserved.number] += 1

    def done(self, *numbers: int) -> bool:
        return all(self.times(handler, number) for handler in ("reserve", "count") for number in numbers)

    def times(self, handler: str, number: int) -> int:
        return self.effects[handler, f"k{number % 5}", number]


def placed(number: int) -> Placed:
    return Placed(order_id=f"k{number % 5}", number=number)


@pytest.fixture(params=["memory", "nats"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Broker:
    return MemoryBroker() if request.param == "memory" else broker_from(f"embedded:{tmp_path / 'nats'}")


@pytest.fixture
async def shop(broker: Broker, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
    monkeypatch.setenv("TIDINGS_STORE", redis_url)
    shop = Shop(tmp_path)
    async with shop.stock.running(broker=broker):
        yield shop


async def idle(shop: Shop) -> None:
    """Wait until nothing is pending and nothing is unsettled."""
    for worker in shop.stock.active.workers:
        async with asyncio.timeout(20):
            while not await at_rest(worker):  # noqa: ASYNC110  # the broker is asked; nothing tells of it
                await asyncio.sleep(0.01)


async def at_rest(worker: Worker) -> bool:
    backlog = await worker.backlog()
    assert backlog is not None
    return not (backlog.pending or backlog.in_flight or backlog.scheduled or worker.waiting or worker.busy)


async def test_P5_on_a_day_of_failures_and_repeats_each_effect_is_made_once(shop: Shop, broker: Broker) -> None:
    events = [placed(number) for number in range(EVENTS)]
    for _ in range(2):  # the second time under other event ids: repeats by the business key
        assert not any(await shop.stock.publish_many([placed(event.number) for event in events]))
    await until(lambda: shop.done(*range(EVENTS)), 30)
    await idle(shop)
    assert set(shop.effects.values()) == {1}
    assert len(shop.effects) == 2 * EVENTS
    assert shop.fences == sorted(shop.fences)
    assert await list_letters(broker) == []


async def test_P3_P7_what_fails_for_good_becomes_a_letter_and_is_applied_once_when_redriven(
    shop: Shop, broker: Broker
) -> None:
    await shop.stock.publish(placed(-1))
    async with asyncio.timeout(20):
        while not (letters := await list_letters(broker)):  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)
    (letter,) = await find(broker, [letters[0].id])
    assert letter.position == f"{shop.stock.name}.reserve"
    assert "no such shelf" in letter.reason
    assert not shop.effects
    shop.mended = True
    for _ in range(2):
        (letter,) = await find(broker, [letter.id])  # which says how often it was redriven
        await redrive(broker, letter)
    await until(lambda: shop.done(-1), 30)
    await idle(shop)
    assert (shop.times("reserve", -1), shop.times("count", -1)) == (1, 1)


async def test_P2_P3_P13_what_cannot_be_read_becomes_a_letter_and_keeps_no_key(shop: Shop, broker: Broker) -> None:
    good, later = placed(1), placed(2)
    broken = [
        Message(id=f"bad-{number}", stream="order", type="order.placed", key="k1", body=body)
        for number, body in enumerate([b"\xff\x00", b"", b'{"specversion":"1.0"}', b"[1]"])
    ]
    unknown = Message(id="other", stream="order", type="order.unheard", key="k1", body=msgspec.json.encode({}))
    await shop.stock.publish(good)
    assert not any(await broker.publish([*broken, unknown], timeout=10))
    await shop.stock.publish(later)
    await until(lambda: shop.done(1, 2), 30)
    await idle(shop)
    assert set(shop.effects.values()) == {1}
    assert len(await list_letters(broker)) == len(broken)


@pytest.mark.parametrize("where", ["memory", "embedded"])
async def test_P5_keys_are_known_for_as_long_as_their_events_may_come_and_their_handlers_say(
    where: str, redis_url: str, client: Any, tmp_path: Path
) -> None:
    service = Service(f"keep-{os.urandom(4).hex()}", store=redis_url, publishes=[Placed], keep=timedelta(days=3))
    applied: Counter[str] = Counter()

    async def step(placed: Placed) -> None:
        applied[placed.order_id] += 1

    service.on(Placed, name="ids")(step)
    service.on(Placed, once="order_id", name="ever")(step)
    service.on(Placed, once="order_id", name="hour", forget_after=timedelta(hours=1))(step)

    def stored(handler: str) -> list[Any]:
        return list(client.scan_iter(match=f"tidings:{service.name}.{handler}:*"))

    async with service.running(broker=MemoryBroker() if where == "memory" else f"embedded:{tmp_path}/nats"):
        await service.publish(Placed(order_id="a", number=1))
        await until(lambda: all(client.pttl(key) != -2 for name in ("ids", "ever", "hour") for key in stored(name)), 30)
        await until(lambda: applied["a"] == 3, 30)
        await until(
            lambda: all(client.get(key).startswith(b"D") for key in client.scan_iter(f"tidings:{service.name}.*")), 30
        )
        (by_id,), (ever,), (hour,) = stored("ids"), stored("ever"), stored("hour")
        day = 86400
        assert 4 * day - 60 < client.ttl(by_id) <= 4 * day, "what its stream keeps, and a day"
        assert client.ttl(ever) == -1
        assert 3600 - 60 < client.ttl(hour) <= 3600
        client.pexpire(hour, 1)
        await until(lambda: not client.exists(hour))
        await service.publish(Placed(order_id="a", number=2))
        await until(lambda: applied["a"] == 5, 30)
