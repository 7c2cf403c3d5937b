"""What the tests of the Kafka adapter stand on: a node for all of them, and brokers with a position of their own."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from itertools import count
from typing import Any

import pytest

from tidings.brokers.kafka.admin import AdminClient
from tidings.brokers.kafka.broker import KafkaBroker
from tidings.brokers.kafka.feed import KafkaFeed
from tidings.delivery import ACK, Delivery, Header, Message, Route
from tidings.ports import Plan, StreamPlan, Subscription
from tools.services.kafka import Kafka

QUICK = "session_timeout=6s&join=10s&heartbeat.interval.ms=100&partitions=4"


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """One node, which creates topics that somebody mentions: nobody here may."""
    with Kafka(tmp_path_factory.mktemp("kafka")) as server:
        yield server


class Rig:
    """One process: a broker with one position, and what it was handed."""

    def __init__(self, broker: KafkaBroker, subscription: Subscription) -> None:
        self.broker = broker
        self.subscription = subscription
        self.got: list[Delivery] = []
        self._feed: KafkaFeed | None = None
        self._ids = count(1)

    @property
    def feed(self) -> KafkaFeed:
        assert self._feed is not None
        return self._feed

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.got]

    async def subscribe(self) -> None:
        self._feed = await self.broker.subscribe(self.subscription, self.got.append)

    def message(self, body: bytes, key: str | None = "k", **more: object) -> Message:
        stream = self.subscription.stream
        given = {"id": f"{stream}-{next(self._ids)}", "stream": stream, "type": f"{stream}.placed", **more}
        return Message(body=body, key=key, **given)  # type: ignore[arg-type]

    def copy(self, body: bytes, due: float | None = None, key: str | None = "k") -> Message:
        headers = {Header.STREAM: self.subscription.stream, Header.HANDLER: self.subscription.position}
        position = self.subscription.position
        return self.message(body, key, route=Route.RETRY, position=position, due=due, headers=headers)

    async def publish(self, *messages: Message) -> None:
        assert await self.broker.publish(messages, timeout=30) == [None] * len(messages)

    async def ack(self, *deliveries: Delivery) -> None:
        assert await self.broker.settle([(one, ACK) for one in deliveries]) == [None] * len(deliveries)


async def remove(server: Kafka, topic: str, group: str = "") -> None:
    """Delete a topic, and wait until it is gone; before that a group with its offsets."""
    admin = AdminClient({"bootstrap.servers": server.address})
    if group:
        await asyncio.wrap_future(admin.delete_consumer_groups([group])[group])
    await asyncio.wrap_future(admin.delete_topics([topic])[topic])
    async with asyncio.timeout(40):
        while topic in (await asyncio.to_thread(admin.list_topics, timeout=5)).topics:  # noqa: ASYNC110  # limited
            await asyncio.sleep(0.05)


async def until(condition: Callable[[], object], seconds: float = 40.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def until_equal(ask: Callable[[], Awaitable[object]], wanted: object, seconds: float = 30.0) -> None:
    """Ask until the answer is the wanted one."""
    async with asyncio.timeout(seconds):
        while True:
            if await ask() == wanted:
                return
            await asyncio.sleep(0.05)


def position(**more: object) -> Subscription:
    """A position of a stream of its own."""
    stream = f"order-{uuid.uuid4().hex[:8]}"
    given = {"position": f"{stream}.reserve", "stream": stream, "types": (f"{stream}.placed",), **more}
    return Subscription(**given)  # type: ignore[arg-type]


def plan(*subscriptions: Subscription) -> Plan:
    service = subscriptions[0].position.split(".")[0]
    streams = sorted({one.stream for one in subscriptions})
    return Plan(service=service, streams=tuple(StreamPlan(name=one) for one in streams), subscriptions=subscriptions)


Connect = Callable[..., Coroutine[Any, Any, Rig]]


@pytest.fixture
async def connect(kafka: Kafka) -> AsyncIterator[Connect]:
    """Makes an open broker with a position; `subscribe=False` leaves it at that."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(subscription: Subscription | None = None, *, subscribe: bool = True, url: str = "") -> Rig:
            rig = Rig(KafkaBroker(url or f"{kafka.url}?{QUICK}"), subscription or position())
            stack.push_async_callback(rig.broker.close)
            await rig.broker.open(plan(rig.subscription))
            if subscribe:
                await rig.subscribe()
            return rig

        yield make
