"""What the tests of the RabbitMQ adapter stand on: a server, brokers that are closed, and a sink that collects."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest

from tests.proxy import Proxy
from tidings.brokers.rabbitmq.broker import RabbitBroker
from tidings.brokers.rabbitmq.feed import RabbitFeed
from tidings.brokers.rabbitmq.source import Token
from tidings.delivery import ACK, Delivery, Header, Message, Route
from tidings.ports import Plan, StreamPlan, Subscription
from tools.services.rabbitmq import RabbitMQ

Connect = Callable[..., Awaitable["Rig"]]


@pytest.fixture(scope="session")
def rabbitmq_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that serves many tests, each with names of its own."""
    if given := os.environ.get("TIDINGS_TEST_RABBITMQ"):
        yield given
        return
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server.url


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RabbitMQ]:
    """One that a test may kill."""
    with RabbitMQ(tmp_path / "server") as made:
        yield made


@pytest.fixture
async def proxy(rabbitmq_url: str) -> AsyncIterator[Proxy]:
    made = await Proxy(int(rabbitmq_url.rpartition(":")[2])).start()
    yield made
    await made.stop()


class Rig:
    """A broker with one position, and what it was handed."""

    def __init__(self, broker: RabbitBroker, subscription: Subscription) -> None:
        self.broker = broker
        self.subscription = subscription
        self.stream = subscription.stream
        self.got: list[Delivery] = []
        self._feed: RabbitFeed | None = None
        self._ids = count(1)

    @property
    def feed(self) -> RabbitFeed:
        assert self._feed is not None
        return self._feed

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.got]

    @property
    def open(self) -> list[Delivery]:
        """What was handed over and is still ours to settle."""
        return [one for one in self.got if isinstance(one.token, Token) and one.token.lives]

    async def subscribe(self, subscription: Subscription | None = None) -> RabbitFeed:
        self._feed = await self.broker.subscribe(subscription or self.subscription, self.got.append)
        return self._feed

    def message(self, body: bytes = b"{}", *, id: str = "", key: str | None = "k", **more: object) -> Message:
        given = {"stream": self.stream, "type": f"{self.stream}.placed", **more}
        return Message(id=id or f"id-{next(self._ids)}", body=body, key=key, **given)  # type: ignore[arg-type]

    def copy(self, body: bytes = b"copy", *, due: float | None = None, key: str = "k", position: str = "") -> Message:
        headers = {Header.KEY: key, Header.STREAM: self.stream}
        position = position or self.subscription.position
        return self.message(body, key=key, route=Route.RETRY, position=position, due=due, headers=headers)

    async def publish(self, *bodies: bytes, key: str | None = "k", timeout: float = 20.0) -> None:
        results = await self.broker.publish([self.message(body, key=key) for body in bodies], timeout=timeout)
        assert results == [None] * len(bodies)

    async def settled(self, count: int, timeout: float = 40.0) -> Sequence[Delivery]:
        """Wait for so many deliveries, acknowledging all of them."""
        async with asyncio.timeout(timeout):
            while True:
                if todo := self.open:
                    assert await self.broker.settle([(one, ACK) for one in todo]) == [None] * len(todo)
                if len(self.got) >= count and not todo:
                    return self.got
                await asyncio.sleep(0.01)


async def until(condition: Callable[[], object], timeout: float = 40.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(timeout):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


def position(handler: str = "reserve", **more: object) -> Subscription:
    """A position, and a stream, that no other test has."""
    name = f"s{uuid.uuid4().hex[:10]}"
    given = {"stream": name, "types": (f"{name}.placed",), **more}
    return Subscription(position=f"{name}.{handler}", **given)  # type: ignore[arg-type]


def plan(*subscriptions: Subscription, service: str = "") -> Plan:
    name = service or subscriptions[0].position.split(".")[0]
    streams = {one.stream for one in subscriptions}
    return Plan(service=name, streams=tuple(StreamPlan(name=one) for one in streams), subscriptions=subscriptions)


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes an open broker with a position; `subscribe=False` leaves it at that."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(url: str, subscription: Subscription | None = None, *, subscribe: bool = True) -> Rig:
            broker = RabbitBroker(url)
            rig = Rig(broker, subscription or position())
            await broker.open(plan(rig.subscription))
            for _ in range(2):  # a test may have opened it once more
                stack.push_async_callback(broker.close)
            if subscribe:
                await rig.subscribe()
            return rig

        yield make
