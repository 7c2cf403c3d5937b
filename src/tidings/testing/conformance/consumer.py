"""A consumer at the level of the port: a client with one feed, and a judge that says what becomes of each delivery."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from tidings.delivery import ACK, Ack, Delivery, Message, Verdict
from tidings.ports import Broker, Feed, Subscription
from tidings.testing._effects import Effect
from tidings.testing.conformance.ledger import Ledger

Judge: TypeAlias = Callable[[Delivery], Verdict | None]
"""None leaves a delivery unsettled, until `Consumer.settle`."""


def id_of(one: Delivery | Message) -> str:
    """The id of a test's event: a header says it, or its body begins with it."""
    return one.headers.get("x-id") or one.body.partition(b" ")[0].decode("ascii", "replace")


class Consumer:
    """Takes whatever waits, has it judged, and settles it in one wave.

    What is acknowledged took effect: once for each id, as behind `once` in a service.
    """

    def __init__(
        self,
        name: str,
        client: Broker,
        subscription: Subscription,
        ledger: Ledger,
        judge: Judge | None = None,
        pace: float = 0.0,
    ) -> None:
        self.name = name
        self.client = client
        self.position = subscription.position
        self.taken: list[Delivery] = []
        """All that was handed over, with `at` beside it."""
        self.at: list[float] = []
        """When each was handed over: Unix seconds."""
        self.subscription = subscription
        self._ledger = ledger
        self._judge: Judge = judge if judge is not None else lambda delivery: ACK
        self._pace = pace
        self._queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self._feed: Feed | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def feed(self) -> Feed:
        assert self._feed is not None
        return self._feed

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.taken]

    @property
    def ids(self) -> list[str]:
        return [id_of(delivery) for delivery in self.taken]

    async def start(self) -> None:
        self._feed = await self.client.subscribe(self.subscription, self._take)
        self._task = asyncio.create_task(self._run(), name=self.name)

    def check(self) -> None:
        """Raise whatever ended it before its time."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def settle(self, verdicts: Sequence[tuple[Delivery, Verdict]]) -> None:
        """Tell the broker; what was acknowledged took effect before. Once begun it is not cut off, as in a service."""
        settling = asyncio.ensure_future(self._settle(verdicts))
        try:
            await asyncio.shield(settling)
        except asyncio.CancelledError:
            await asyncio.wait([settling])
            raise

    async def _settle(self, verdicts: Sequence[tuple[Delivery, Verdict]]) -> None:
        for delivery, verdict in verdicts:
            if isinstance(verdict, Ack):
                self._apply(delivery)
        errors = await self.client.settle(verdicts)
        assert len(errors) == len(verdicts), "settle answers for each delivery, in order"
        for (delivery, verdict), error in zip(verdicts, errors, strict=True):
            if error is not None:
                self._ledger.unsettled.append(error)
            elif isinstance(verdict, Ack):
                self._ledger.confirmed(self.position, id_of(delivery))

    async def close(self) -> None:
        """End at once: what is not settled goes back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        if self._feed is not None:
            feed, self._feed = self._feed, None
            await feed.close()

    def _take(self, delivery: Delivery) -> None:
        self.taken.append(delivery)
        self.at.append(time.time())
        self._queue.put_nowait(delivery)
        self._ledger.delivered(self.position, id_of(delivery))

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            if self._pace:
                await asyncio.sleep(self._pace)
            judged = [(delivery, self._judge(delivery)) for delivery in batch]
            if verdicts := [(delivery, verdict) for delivery, verdict in judged if verdict is not None]:
                await self.settle(verdicts)

    def _apply(self, delivery: Delivery) -> None:
        id = id_of(delivery)
        if id not in self._ledger.applied(self.position):
            self._ledger.effect(
                Effect(self.position, id, delivery.headers.get("x-key"), delivery.delivered, self.name, time.time())
            )
