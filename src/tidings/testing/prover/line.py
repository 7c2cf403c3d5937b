"""The way of one worker to the broker: it can be cut, and it can bring each delivery twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from tidings.delivery import Ack, Delivery, Message, Route, Verdict
from tidings.errors import BrokerUnavailable
from tidings.ports import Drift, Features, Plan, Sink, Subscription
from tidings.testing._feed import MemoryFeed
from tidings.testing.memory import MemoryBroker

Doubled = Literal["", "at once", "later"]


class _Copy:
    """The token of a delivery that the broker brings once more; the broker forgets it whatever is answered."""


class Line:
    """A client of the memory broker (`ports.Broker`).

    `doubled` says when each delivery comes a second time: right behind the first, as after a lost connection, or when
    the first was acknowledged, as after an acknowledgement that got lost. `others` get each delivery as well.
    """

    def __init__(self, client: MemoryBroker, doubled: Doubled = "", others: Sequence[Line] = ()) -> None:
        self.client = client
        self.cut = False
        """Nothing comes through any more, in neither direction."""
        self.acknowledged = 0
        self.copies = 0
        """Second deliveries that are not answered yet."""
        self._doubled = doubled
        self._others = others
        self._sinks: dict[str, Sink] = {}
        self._sink_of: dict[tuple[str | int, ...], Sink] = {}

    @property
    def features(self) -> Features:
        return self.client.features

    @property
    def trouble(self) -> str:
        return "this process has crashed" if self.cut else self.client.trouble

    async def open(self, plan: Plan) -> Sequence[Drift]:
        return await self.client.open(plan)

    async def publish(self, messages: Sequence[Message], *, timeout: float) -> Sequence[Exception | None]:
        if self.cut:
            return [BrokerUnavailable(self.trouble)] * len(messages)
        return await self.client.publish(messages, timeout=timeout)

    async def subscribe(self, subscription: Subscription, sink: Sink) -> MemoryFeed:
        self._sinks[subscription.position] = sink

        def deliver(delivery: Delivery) -> None:
            if self.cut:
                return
            sink(delivery)
            self._sink_of[delivery.origin] = sink
            if self._doubled == "at once":
                self._again(sink, delivery)
            for other in self._others:
                if there := other._sinks.get(subscription.position):
                    other._again(there, delivery)

        return await self.client.subscribe(subscription, deliver)

    async def settle(self, verdicts: Sequence[tuple[Delivery, Verdict]]) -> Sequence[Exception | None]:
        if self.cut:
            return [BrokerUnavailable(self.trouble)] * len(verdicts)
        real = [one for one in verdicts if not isinstance(one[0].token, _Copy)]
        self.copies -= len(verdicts) - len(real)
        answers = iter(await self.client.settle(real))
        told = [None if isinstance(delivery.token, _Copy) else next(answers) for delivery, _ in verdicts]
        for (delivery, verdict), answer in zip(verdicts, told, strict=True):
            if answer is None and isinstance(verdict, Ack) and not isinstance(delivery.token, _Copy):
                self.acknowledged += 1
                if self._doubled == "later" and (sink := self._sink_of.get(delivery.origin)):
                    self._again(sink, delivery)
        return told

    def read(
        self, route: Route, stream: str = "", *, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[Delivery]:
        return self.client.read(route, stream, since=since, follow=follow)

    async def close(self) -> None:
        await self.client.close()

    def _again(self, sink: Sink, delivery: Delivery) -> None:
        self.copies += 1
        copy = msgspec.structs.replace(delivery, token=_Copy(), envelope=None, delivered=delivery.delivered + 1)
        copy.headers = dict(delivery.headers)
        copy.failures, copy.first_failed = 0, 0.0
        sink(copy)
