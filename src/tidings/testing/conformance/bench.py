"""What a test of the suite works with: clients, consumers, messages of its own, sizes, and a ledger."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Sized
from contextlib import asynccontextmanager
from typing import Any, Literal, NoReturn, TypeAlias

import msgspec
import pytest

from tidings.delivery import Header, Message, Route
from tidings.errors import BrokerUnavailable
from tidings.ports import Broker, Features, Plan, StreamPlan, Subscription
from tidings.testing.conformance.consumer import Consumer, Judge, id_of
from tidings.testing.conformance.ledger import Ledger
from tidings.testing.conformance.plugin import APART, NOT_SUPPORTED
from tidings.testing.conformance.rig import Cluster, Impatient, Network, Operator, Processes, Rig

SHORTER = 50
"""By how much the short mode divides the sizes, down to what keeps a test meaningful."""

PUBLISH_TIMEOUT = 30.0
"""Seconds that a publish may take; nothing is judged by how long it took."""

NOTHING: Mapping[str, str] = {}

Feature = Literal["restart", "durable", "history", "ordered", "delayed", "positions"]

Make: TypeAlias = Callable[[], Awaitable[Broker]]
"""Makes a client that nobody has opened."""


class Bench:
    """One test's place at a rig. Its streams and positions carry the test's name and a unique end.

    Parameters:
        patience: seconds that a wait may take; nothing is judged by how long it took.
        gaps: what this run allows to be missing, with the reason; anything else that is not there fails its tests.
        apart: parts of the suite that this run has no place for, with the reason or where else they run.
    """

    def __init__(
        self,
        rig: Rig,
        test: str,
        *,
        full: bool = False,
        patience: float = 60.0,
        gaps: Mapping[str, str] = NOTHING,
        apart: Mapping[str, str] = NOTHING,
    ) -> None:
        self.rig = rig
        self._gaps, self._apart = gaps, apart
        self.full = full
        self.patience = patience * (2 if full else 1)
        self.ledger = Ledger()
        self.sizes: dict[str, tuple[int, int]] = {}
        self.more: list[Callable[[], str]] = []
        """Who has something to add to the report."""
        words = re.sub(r"[^a-z0-9]+", "-", re.sub(r"^test_(P\d+_)*", "", test).lower()).strip("-")
        self.name = f"c-{words[:36].strip('-')}-{uuid.uuid4().hex[:8]}"
        self._clients: list[Broker] = []
        self._consumers: list[Consumer] = []

    @property
    def features(self) -> Features:
        return self.rig.features

    @property
    def stream(self) -> str:
        return self.name

    @property
    def type(self) -> str:
        return f"{self.stream}.happened"

    def needs(self, *features: Feature) -> None:
        """Go on only where the adapter claims these; else the test fails, or is reported where the run allows that."""
        for feature in features:
            if not getattr(self.features, feature):
                why = f"gaps = {{{feature!r}: 'the reason'}}, or --gap {feature}='the reason'"
                self._not_there(feature, f"name it in `gaps` of its class or on the command line: {why}")

    def _not_staged(self, what: str, protocol: str) -> NoReturn:
        """The rig lacks what a part of the suite is staged with, which says nothing of the broker."""
        self._not_there(
            what,
            f"give the rig the methods of tidings.testing.conformance.{protocol}, or say in `apart` of its class why"
            f" this run has no place for them: apart = {{{what!r}: 'the reason'}}",
        )

    def _not_there(self, what: str, remedy: str) -> NoReturn:
        if what in self._apart:
            pytest.skip(f"{APART}{what} ({self.features.name}: {self._apart[what]})")
        if what in self._gaps:
            pytest.skip(f"{NOT_SUPPORTED}{what} ({self.features.name}: {self._gaps[what]})")
        pytest.fail(
            f"{NOT_SUPPORTED}{what} ({self.features.name}), which this run does not allow. If that is right, {remedy}",
            pytrace=False,
        )

    @property
    def cluster(self) -> Cluster:
        """The rig, which has several servers; else as with `needs`, here and below."""
        return self.rig if isinstance(self.rig, Cluster) else self._not_staged("cluster", "Cluster")

    @property
    def network(self) -> Network:
        return self.rig if isinstance(self.rig, Network) else self._not_staged("network", "Network")

    @property
    def impatient(self) -> Impatient:
        return self.rig if isinstance(self.rig, Impatient) else self._not_staged("ack wait", "Impatient")

    @property
    def processes(self) -> Processes:
        return self.rig if isinstance(self.rig, Processes) else self._not_staged("processes", "Processes")

    async def widen(self, plan: Plan) -> None:
        """See that the positions of a plan take its types, also where the broker leaves that to an operator."""
        if not self.features.widens:
            operator = self.rig if isinstance(self.rig, Operator) else self._not_staged("operator", "Operator")
            await operator.widen(plan)

    def size(self, what: str, full: int, least: int) -> int:
        """How many of something: all of them in full mode, a fiftieth in short mode but never less than `least`."""
        used = full if self.full else max(min(least, full), full // SHORTER)
        self.sizes[what] = (used, full)
        return used

    def report(self) -> str:
        """The sizes and the numbers of the ledger, in a line."""
        sizes = [f"{what}={used}" + (f"/{full}" if used != full else "") for what, (used, full) in self.sizes.items()]
        numbers = [str(self.ledger)] if self.ledger.deliveries or self.ledger.effects else []
        return " ".join(filter(None, [*sizes, *numbers, *(tell() for tell in self.more)]))

    # ── plans and clients ───────────────────────────────────────────────────────────────────────────────────────────

    def subscription(self, handler: str = "handler", **more: Any) -> Subscription:
        """The position `handler` of this test's service on its stream; `more` goes to `Subscription`."""
        return Subscription(
            **{"position": f"{self.name}.{handler}", "stream": self.stream, "types": (self.type,), **more}
        )

    def plan(self, *subscriptions: Subscription, streams: Sequence[str] = ()) -> Plan:
        names = {self.stream, *streams, *(one.stream for one in subscriptions)}
        return Plan(
            service=self.name,
            streams=tuple(StreamPlan(name=name) for name in sorted(names)),
            subscriptions=subscriptions,
        )

    async def unopened(self, make: Make | None = None) -> Broker:
        """A client that nobody has opened, for a service to do so; closed at the end of the test."""
        client = await (make or self.rig.broker)()
        self._clients.append(client)
        return client

    async def client(self, *subscriptions: Subscription, plan: Plan | None = None, make: Make | None = None) -> Broker:
        """A client as another process would have, opened with the plan; closed at the end of the test."""
        client = await self.unopened(make)
        async with self.in_time("a client is open"):
            await client.open(self.plan(*subscriptions) if plan is None else plan)
        return client

    async def consumer(
        self, subscription: Subscription, judge: Judge | None = None, *, client: Broker | None = None, pace: float = 0.0
    ) -> Consumer:
        """A running consumer; without `client` as a process of its own."""
        if client is None:
            client = await self.client(subscription)
        consumer = Consumer(f"consumer-{len(self._consumers)}", client, subscription, self.ledger, judge, pace)
        self._consumers.append(consumer)
        await consumer.start()
        return consumer

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────

    def message(self, id: str, *, key: str | None = None, size: int = 0, **more: Any) -> Message:
        """A message whose body begins with its id, padded to `size` bytes."""
        body = id.encode().ljust(size, b" ") if size else id.encode()
        headers = {} if key is None else {"x-key": key}
        wanted = {"id": f"{self.name}-{id}", "stream": self.stream, "type": self.type, "body": body, "key": key}
        return Message(**{**wanted, "headers": headers, **more})

    def copy(self, message: Message, route: Route, position: str, due: float | None = None) -> Message:
        """A message as the core sends it to the retry route of a position, or to the dead letters."""
        headers = {**message.headers, Header.STREAM: message.stream, Header.HANDLER: position}
        if message.key is not None:
            headers[Header.KEY] = message.key
        if route is Route.DEAD:
            headers[Header.LETTER] = message.id
        return msgspec.structs.replace(
            message, id=f"{message.id}-{route.value}", route=route, position=position, due=due, headers=headers
        )

    async def publish(self, client: Broker, messages: Sequence[Message]) -> None:
        """Publish what has to be accepted, and enter it."""
        for message, error in zip(messages, await self.try_publish(client, messages), strict=True):
            assert error is None, f"publishing {message.id} failed: {error!r}"

    async def try_publish(
        self, client: Broker, messages: Sequence[Message], timeout: float = PUBLISH_TIMEOUT
    ) -> Sequence[Exception | None]:
        """Publish, and enter what was accepted and what was not."""
        errors = await client.publish(messages, timeout=timeout)
        assert len(errors) == len(messages), "publish answers for each message, in order"
        for message, error in zip(messages, errors, strict=True):
            id = id_of(message)
            if error is None:
                self.ledger.accepted(id)
            else:
                self.ledger.refused[id] = error
        return errors

    async def publish_until_stored(self, client: Broker, messages: Sequence[Message]) -> Counter[str]:
        """Publish again and again, under the same ids, until all are accepted; how often each more than once, by id.

        Where a broker does not look at ids, it may be stored as often.
        """
        deadline = time.monotonic() + self.patience
        waiting, again = list(messages), Counter[str]()
        while waiting:
            errors = await self.try_publish(client, waiting, timeout=2.0)
            waiting = [message for message, error in zip(waiting, errors, strict=True) if error is not None]
            if waiting:
                again.update(message.id for message in waiting)
                last = next(error for error in errors if error is not None)
                assert time.monotonic() < deadline, f"{len(waiting)} messages were never accepted: {last!r}"
                await asyncio.sleep(0.1)
        return again

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def until(self, condition: Callable[[], bool], what: str, pause: float = 0.0) -> None:
        """Wait for something that has to come true; `pause` seconds lie between two looks where looking is dear.

        Raises:
            AssertionError: it did not, with the numbers.
        """
        deadline = time.monotonic() + self.patience
        while not condition():
            for consumer in self._consumers:
                consumer.check()
            if time.monotonic() > deadline:
                raise AssertionError(f"after {self.patience:g} s still not: {what}; {self.ledger}")
            await (asyncio.sleep(pause) if pause else self.ledger.changed(0.05))

    @asynccontextmanager
    async def in_time(self, what: str) -> AsyncIterator[None]:
        """What is inside has to end in time.

        Raises:
            AssertionError: it did not.
        """
        limit = asyncio.timeout(self.patience)
        try:
            async with limit:
                yield
        except TimeoutError:
            if limit.expired():
                raise AssertionError(f"after {self.patience:g} s still not: {what}; {self.ledger}") from None
            raise

    async def until_many(self, found: Sized, count: int, what: str) -> None:
        """Wait until there are so many of something."""
        await self.until(lambda: len(found) >= count, what)

    async def until_equal(self, ask: Callable[[], Awaitable[object]], wanted: object) -> None:
        """Ask until the answer is the wanted one: brokers count with a delay, and some of the time cannot be asked."""
        deadline = time.monotonic() + self.patience
        found: object = None
        while found != wanted:
            assert time.monotonic() < deadline, f"after {self.patience:g} s it is {found}, not {wanted}; {self.ledger}"
            try:
                found = await ask()
            except BrokerUnavailable as error:
                found = error
            for consumer in self._consumers:
                consumer.check()
            if found != wanted:
                await asyncio.sleep(0.1)

    async def until_settled(self, position: str, ids: Sequence[str] | None = None) -> None:
        """Wait until each of these, or of all that was accepted, took effect here and was confirmed."""
        wanted = list(self.ledger.published) if ids is None else ids
        try:
            await self.until(lambda: self.ledger.is_settled(position, wanted), f"{position} has all")
        except AssertionError:
            self.ledger.check(position, ids)  # says what is missing, if something is
            raise

    async def until_over(self, consumer: Consumer) -> None:
        """Wait until all that was accepted took effect at a position and the broker has nothing of it open.

        After a fault that is all there is to wait for: an acknowledgement may count although its confirmation was lost.
        """

        async def left() -> tuple[int, int]:
            if lost := self.ledger.lost(consumer.position):
                return len(lost), 0
            backlog = await consumer.feed.backlog()
            return 0, backlog.pending + backlog.in_flight

        await self.until_equal(left, (0, 0))

    async def nothing_more(self, seconds: float = 0.3) -> None:
        """Give what should not come the time to come."""
        await asyncio.sleep(seconds)
        for consumer in self._consumers:
            consumer.check()

    async def close(self) -> None:
        """End the consumers and clients of this test."""
        problems = []
        closing: list[Consumer | Broker] = [*self._consumers, *self._clients]
        for one in closing:
            try:
                async with asyncio.timeout(15):
                    await one.close()
            except Exception as error:
                problems.append(error)
        if problems:
            raise ExceptionGroup(f"closing after {self.name}", problems)
