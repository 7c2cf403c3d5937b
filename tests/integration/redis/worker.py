"""A service on Redis that kills itself at a named point, or waits: run by the tests as a process of its own.

    python -m tests.integration.redis.worker REDIS LEDGER EVENTS POINT COUNT BROKER

On the broker `memory` it is given all events anew each time it starts, as by a broker that got no acknowledgement, and
ends when all are done; elsewhere it runs until it is told to stop. Every effect is a row of the ledger, which has no
unique key, and a write to a resource that keeps the greatest fencing number it has seen.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from tests.unit.parts import until
from tidings import Event, Service
from tidings.delivery import Message
from tidings.envelope import envelope_of, to_structured
from tidings.ports import Key
from tidings.stores.redis import Fence, RedisStore
from tidings.testing import MemoryBroker


class OrderPlaced(Event, type="order.placed", version=1, key="order_id"):
    order_id: str


class Killer:
    """Counts how often a point is passed, and ends the process there in the middle of whatever it does."""

    def __init__(self, point: str, count: int) -> None:
        self._point, self._left = point, count

    def passes(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)


class KillingStore(RedisStore):
    killer: Killer

    @asynccontextmanager
    async def claim(self, keys: Sequence[Key], *, resource: type | None, sync: bool) -> AsyncIterator[Any]:
        self.killer.passes("before the claim")
        async with super().claim(keys, resource=resource, sync=sync) as claim:
            self.killer.passes("after the claim")
            yield claim
            self.killer.passes("before it is done")
        self.killer.passes("after it is done")


def create(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger, isolation_level=None)) as connection:
        connection.execute(
            "PRAGMA journal_mode=WAL"
        )  # a worker that is stopped while it writes keeps nobody from reading
        connection.execute("CREATE TABLE ledger (id TEXT, worker INTEGER, fence INTEGER, accepted INTEGER)")
        connection.execute("CREATE TABLE resource (id TEXT PRIMARY KEY, fence INTEGER)")


def write(ledger: Path, id: str, fence: int) -> None:
    """An effect, and a write to a resource that is fenced."""
    with closing(sqlite3.connect(ledger, timeout=20, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        changed = connection.execute(
            "INSERT INTO resource VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET fence = excluded.fence"
            " WHERE excluded.fence > resource.fence",
            (id, fence),
        ).rowcount
        connection.execute("INSERT INTO ledger VALUES (?, ?, ?, ?)", (id, os.getpid(), fence, changed))
        connection.execute("COMMIT")


def rows(ledger: Path) -> list[tuple[str, int, int, int]]:
    """The effects: what, by whom, under which number, and whether the resource took it."""
    with closing(sqlite3.connect(ledger, timeout=20)) as connection:
        return connection.execute("SELECT * FROM ledger ORDER BY rowid").fetchall()


def ids(count: int) -> list[str]:
    return [f"{number:03}" for number in range(count)]


def messages(count: int) -> list[Message]:
    found = []
    for id in ids(count):
        envelope = envelope_of(OrderPlaced(order_id=id), "shop", id=f"event-{id}")
        body = to_structured(envelope)
        found.append(Message(id=envelope.id, stream="order", type="order.placed", key=id, body=body))
    return found


def service(store: RedisStore, ledger: Path, killer: Killer, *, waits: bool) -> Service:
    stock = Service("stock", store=store, publishes=[OrderPlaced])

    @stock.on(OrderPlaced, batch=16)
    async def reserve(order: OrderPlaced, fence: Fence) -> None:
        if waits:
            ledger.with_suffix(".began").touch()
            await until(ledger.with_suffix(".go").exists, 60)
        write(ledger, order.order_id, fence.number)
        killer.passes("after the effect")

    return stock


async def main(url: str, ledger: Path, events: int, point: str, count: int, broker: str) -> None:
    killer = Killer(point, count)
    store = KillingStore(url)
    store.killer = killer
    stock = service(store, ledger, killer, waits=point == "waits")
    if broker == "memory":
        memory = MemoryBroker()
        async with stock.running(broker=memory):
            assert not any(await memory.publish(messages(events), timeout=10))
            await memory.idle(40)
        return
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with stock.running(broker=broker):
        await stopped.wait()


if __name__ == "__main__":
    redis, ledger, *rest = sys.argv[1:]
    asyncio.run(main(redis, Path(ledger), int(rest[0]), rest[1], int(rest[2]), rest[3]))
