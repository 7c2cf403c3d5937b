"""A worker process of the proof: both services of the shop, and a note of everything that a kill must not hide.

Notes go by one `write` each to a file that all workers of a round share, so whatever was noted before a SIGKILL stays:
`R` ready, `D` a delivery that arrived, `P` a message that the broker has stored, `E` a key that was marked as done,
`K` the point at which the process ends itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tidings.brokers.nats import consumers
from tidings.brokers.nats.broker import NatsBroker
from tidings.brokers.nats.feed import NatsFeed
from tidings.delivery import Delivery, Message
from tidings.outbox.direct import Direct
from tidings.ports import Claim, Key, Recalls, Sink, State, Subscription
from tidings.testing import kills
from tools.proof import seeds
from tools.proof.every import STORES

PIN_TIMEOUT = 1.0
"""Seconds until a standby takes over; five in production, which would be most of a round."""


class Job(NamedTuple):
    """What a worker is to do; it crosses into another process."""

    store: str
    """Its name in `STORES`."""
    url: str
    broker: str
    ledger: str
    """The file of the ledger, where the effects do not go into the store."""
    notes: Path
    log: Path
    only: str = ""
    """One service alone, or both."""
    variant: str = ""
    """The kind of its handlers."""
    relayed: bool = False
    """What it causes leaves by the relay alone, and not from memory."""
    kill_at: str = ""
    seed: str = ""


class Notes:
    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, *words: object) -> None:
        kind, *rest = words
        os.write(self._file, f"{' '.join(map(str, (kind, os.getpid(), *rest)))}\n".encode())


class NotingSink:
    """Notes what arrives, and gives back what the sink behind it gives back."""

    def __init__(self, position: str, sink: Sink, notes: Notes, *, blind: bool) -> None:
        self._position, self._sink, self._notes, self._blind = position, sink, notes, blind

    def __call__(self, delivery: Delivery, /) -> None:
        delivered = 1 if self._blind else delivery.delivered
        self._notes.write("D", self._position, delivery.origin_text, delivered)
        self._sink(delivery)

    async def give_up(self, deliveries: Sequence[Delivery], patience: float) -> Sequence[Delivery]:
        return await self._sink.give_up(deliveries, patience) if isinstance(self._sink, Recalls) else deliveries


class NotingBroker(NatsBroker):
    """Notes what arrives before anybody else sees it, and what the server has stored."""

    def __init__(self, url: str, notes: Notes, *, blind: bool = False) -> None:
        super().__init__(url)
        self._notes, self._blind = notes, blind

    async def subscribe(self, subscription: Subscription, sink: Sink) -> NatsFeed:
        sink = NotingSink(subscription.position, sink, self._notes, blind=self._blind)
        return await super().subscribe(subscription, sink)

    async def publish(self, messages: Sequence[Message], *, timeout: float) -> Sequence[Exception | None]:
        errors = await super().publish(messages, timeout=timeout)
        for message, error in zip(messages, errors, strict=True):
            if error is None:
                self._notes.write("P", message.route.value, message.id)
        return errors

    async def publish_batch(self, messages: Sequence[Message], *, timeout: float) -> bool:
        stored = await super().publish_batch(messages, timeout=timeout)
        for message in messages if stored else ():
            self._notes.write("P", message.route.value, message.id)
        return stored


class NotingStore:
    """A store whose effects are elsewhere; what its claims have marked as done is noted once they have closed."""

    def __init__(self, store: Any, notes: Notes) -> None:
        self._store, self._notes = store, notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @asynccontextmanager
    async def claim(self, keys: Sequence[Key], *, resource: type | None, sync: bool) -> AsyncIterator[Claim]:
        given_back: set[int] = set()
        async with self._store.claim(keys, resource=resource, sync=sync) as claim:
            fail = claim.fail

            def noted(index: int) -> None:
                given_back.add(index)
                fail(index)

            claim.fail = noted
            yield claim
        for index, (key, claimed) in enumerate(zip(keys, claim.states, strict=True)):
            if claimed.state is State.NEW and index not in given_back:
                self._notes.write("E", key.position, key.event_id)


def work(job: Job) -> None:
    """What the process does, from its start to its end."""
    log = os.open(job.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")
    consumers.PIN_TIMEOUT = PIN_TIMEOUT  # type: ignore[misc]  # rounds that kill need not wait so long
    notes = Notes(job.notes)
    if job.relayed:
        Direct.takes = _never  # type: ignore[method-assign, assignment]  # all is left to the relay
    os.environ[kills.VARIABLE] = job.kill_at
    kills.install(last=lambda point: notes.write("K", point))
    asyncio.run(_work(job, notes))


def _never(_: Direct) -> bool:
    return False


async def _work(job: Job, notes: Notes) -> None:
    kind = STORES[job.store]
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    seeds.plant(job.seed)
    async with AsyncExitStack() as stack:
        for service in kind.variants[job.variant].shop(job.ledger or job.url):
            if job.only in ("", service.name):
                store = seeds.around(job.seed, kind.store(job.url))
                if kind.effects_elsewhere:
                    store = NotingStore(store, notes)
                broker = NotingBroker(job.broker, notes, blind=job.seed == seeds.BLIND)
                await stack.enter_async_context(service.running(broker=broker, store=store))
        notes.write("R")
        parent = os.getppid()
        while not stopped.is_set() and os.getppid() == parent:  # nobody else would end it
            try:
                async with asyncio.timeout(1.0):
                    await stopped.wait()
            except TimeoutError:
                pass
