"""What the tests of the NATS adapter stand on: a server each, brokers that are closed, and a sink that collects."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from tests.integration.nats.server import NatsServer, Proxy
from tidings.brokers._assignment import assign
from tidings.brokers.nats.broker import NatsBroker
from tidings.brokers.nats.feed import NatsFeed
from tidings.brokers.nats.names import SHARES
from tidings.brokers.nats.ordered import OrderedFeed
from tidings.brokers.nats.tokens import Token
from tidings.delivery import ACK, Delivery, Message, Route
from tidings.partition import slot_of
from tidings.ports import Plan, StreamPlan, Subscription


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path / "server") as made:
        yield made


@pytest.fixture
async def bare(server: NatsServer) -> AsyncIterator[Client]:
    """A plain client, for what only strangers do."""
    client = await nats.connect(server.url)
    yield client
    await client.close()


@pytest.fixture
async def proxy(server: NatsServer) -> AsyncIterator[Proxy]:
    made = await Proxy(server.port).start()
    yield made
    await made.stop()


Connect = Callable[..., Awaitable["Rig"]]


class Rig:
    """A broker with one position, and what it was handed."""

    def __init__(self, broker: NatsBroker, subscription: Subscription) -> None:
        self.broker = broker
        self.subscription = subscription
        self.got: list[Delivery] = []
        self._feed: NatsFeed | None = None
        self._ids = count(1)

    @property
    def feed(self) -> NatsFeed:
        assert self._feed is not None
        return self._feed

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.got]

    @property
    def open(self) -> list[Delivery]:
        """What was handed over and is still ours to settle."""
        return [one for one in self.got if isinstance(one.token, Token) and one.token.is_open]

    async def subscribe(self, subscription: Subscription | None = None) -> NatsFeed:
        self._feed = await self.broker.subscribe(subscription or self.subscription, self.got.append)
        return self._feed

    def has(self, count: int) -> bool:
        return len(self.got) >= count

    def message(self, body: bytes = b"{}", *, id: str = "", key: str | None = "k", **more: Any) -> Message:
        given = {"stream": "order", "type": "order.placed", **more}
        return Message(id=id or f"id-{next(self._ids)}", body=body, key=key, **given)

    def copy(self, body: bytes = b"copy", *, due: float | None = None, id: str = "") -> Message:
        position = self.subscription.position
        headers = {"tidings-key": "k", "tidings-stream": "order"}
        return self.message(body, id=id, route=Route.RETRY, position=position, due=due, headers=headers)

    async def publish(self, *bodies: bytes, key: str | None = "k", timeout: float = 20.0) -> None:
        results = await self.broker.publish([self.message(body, key=key) for body in bodies], timeout=timeout)
        assert results == [None] * len(bodies)

    async def settled(self, count: int, timeout: float = 30.0) -> list[Delivery]:
        """Wait for so many deliveries, acknowledging all of them."""
        async with asyncio.timeout(timeout):
            while True:
                if todo := self.open:
                    assert await self.broker.settle([(one, ACK) for one in todo]) == [None] * len(todo)
                if len(self.got) >= count and not todo:
                    return self.got
                await asyncio.sleep(0.01)


async def until(condition: Callable[[], object], timeout: float = 30.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(timeout):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def divided(*rigs: Rig) -> None:
    """Wait until each of these processes has its part of an ordered position, and none is about to change hands."""
    feeds = [rig.feed for rig in rigs]

    def done() -> bool:
        parts: list[set[int]] = []
        for feed in feeds:
            assert isinstance(feed, OrderedFeed)
            if any(share.leaving for share in feed.shares):
                return False
            parts.append({share.number for share in feed.shares if share.wanted})
        return all(parts) and sum(map(len, parts)) == len(set().union(*parts)) == SHARES

    await until(done)


async def another(connect: Connect, url: str, first: Rig, *, preferred: bool) -> Rig:
    """A second process, which is to have the share of the key `k`, or is not: their names decide that."""
    async with asyncio.timeout(60):
        while True:
            rig = await connect(url, first.subscription)
            names = [one.feed._members.id for one in (first, rig) if isinstance(one.feed, OrderedFeed)]
            if (assign(names, SHARES)[slot_of("k") // 8] == names[1]) is preferred:
                return rig
            await rig.broker.close()


def position(name: str = "stock.reserve", **more: Any) -> Subscription:
    given = {"stream": "order", "types": ("order.placed",), **more}
    return Subscription(position=name, **given)


def plan(*subscriptions: Subscription) -> Plan:
    service = subscriptions[0].position.split(".")[0] if subscriptions else "shop"
    streams = {one.stream for one in subscriptions} or {"order"}
    return Plan(service=service, streams=tuple(StreamPlan(name=one) for one in streams), subscriptions=subscriptions)


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes an open broker with a position; `subscribe=False` leaves it at that."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(url: str, subscription: Subscription | None = None, *, subscribe: bool = True) -> Rig:
            broker = NatsBroker(url)
            rig = Rig(broker, subscription or position())
            await broker.open(plan(rig.subscription))
            stack.push_async_callback(broker.close)
            if subscribe:
                await rig.subscribe()
            return rig

        yield make
