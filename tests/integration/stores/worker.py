"""A service that kills itself with SIGKILL at a named point: run by the tests of kills, as a process of its own.

    python -m tests.integration.stores.worker DATABASE PUBLISHED EVENTS KIND POINT COUNT

It is given all events anew each time it starts, as a broker does that got no acknowledgement. Each handled event writes
one row into the ledger and causes one event; what the relay published stands in the file PUBLISHED.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from tests.integration.stores.ledger import INSERT, Entry, Where, create, eventually, notes, url_of, waiting
from tidings import Event, Service
from tidings.delivery import Message
from tidings.envelope import envelope_of, to_structured
from tidings.ports import Key
from tidings.stores.sqlalchemy import SqlAlchemyStore
from tidings.testing import MemoryBroker

POINTS = {
    "before the claim": 1,
    "after the claim": 1,
    "inside the transaction": 20,
    "before the commit": 1,
    "after the commit": 1,
    "before the relay publishes": 0,
    "after the relay published": 0,
}
"""Where it may be killed, and how often it passes there before: there are batches of sixteen."""


class OrderPlaced(Event, type="order.placed", version=1, key="order_id"):
    order_id: str


class StockReserved(Event, type="stock.reserved", version=1, key="order_id"):
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


class KillingStore(SqlAlchemyStore):
    killer: Killer

    async def open(self) -> None:
        await super().open()
        assert self._desk is not None
        self._desk.direct.hold = 0.5  # what the dead one held is the next one's sooner

    @asynccontextmanager
    async def claim(self, keys: Sequence[Key], *, resource: type | None, sync: bool) -> AsyncIterator[Any]:
        self.killer.passes("before the claim")
        async with super().claim(keys, resource=resource, sync=sync) as claim:
            self.killer.passes("after the claim")
            yield claim
            self.killer.passes("before the commit")
        self.killer.passes("after the commit")


class KillingBroker(MemoryBroker):
    killer: Killer
    published: Path  # type: ignore[assignment]  # this one keeps its record in a file, which survives

    async def publish(self, messages: Sequence[Message], *, timeout: float) -> Sequence[Exception | None]:
        caused = [message for message in messages if message.type == "stock.reserved"]
        if caused:
            self.killer.passes("before the relay publishes")
        errors = await super().publish(messages, timeout=timeout)
        if caused:
            with self.published.open("a") as file:
                file.writelines(f"{message.id} {message.key}\n" for message in caused)
            self.killer.passes("after the relay published")
        return errors


def service(store: SqlAlchemyStore, killer: Killer, kind: str) -> Service:
    """One handler, of the kind that is asked for."""
    stock = Service("stock", store=store, publishes=[OrderPlaced])

    async def with_connection(order: OrderPlaced, db: AsyncConnection) -> StockReserved:
        await db.execute(INSERT, {"note": order.order_id})
        killer.passes("inside the transaction")
        return StockReserved(order_id=order.order_id)

    async def with_session(order: OrderPlaced, db: AsyncSession) -> StockReserved:
        db.add(Entry(note=order.order_id))
        killer.passes("inside the transaction")
        return StockReserved(order_id=order.order_id)

    def with_sync_connection(order: OrderPlaced, db: sa.Connection) -> StockReserved:
        db.execute(INSERT, {"note": order.order_id})
        killer.passes("inside the transaction")
        return StockReserved(order_id=order.order_id)

    def with_sync_session(order: OrderPlaced, db: Session) -> StockReserved:
        db.add(Entry(note=order.order_id))
        killer.passes("inside the transaction")
        return StockReserved(order_id=order.order_id)

    handlers = (with_connection, with_session, with_sync_connection, with_sync_session)
    chosen = next(one for one in handlers if one.__name__ == kind)
    stock.on(OrderPlaced, name="reserve", batch=16)(chosen)
    return stock


def messages(count: int) -> list[Message]:
    found = []
    for number in range(count):
        event = OrderPlaced(order_id=f"{number:03}")
        envelope = envelope_of(event, "shop", id=f"order-{number:03}")
        body = to_structured(envelope)
        found.append(Message(id=envelope.id, stream="order", type="order.placed", key=event.order_id, body=body))
    return found


async def main(database: Where, published: Path, events: int, kind: str, point: str, count: int) -> None:
    killer = Killer(point, count)
    store = KillingStore(url_of(database), poll=0.05, lease=0.5)
    broker = KillingBroker()
    store.killer = broker.killer = killer
    broker.published = published
    await store.open()
    create(database)
    await store.close()
    async with service(store, killer, kind).running(broker=broker):
        assert not any(await broker.publish(messages(events), timeout=10))
        async with asyncio.timeout(30):
            await broker.idle(timeout=30)
            await eventually(lambda: len(set(notes(database))) == events and not waiting(database))


if __name__ == "__main__":
    path, log, *rest = sys.argv[1:]
    asyncio.run(main(path if "://" in path else Path(path), Path(log), int(rest[0]), rest[1], rest[2], int(rest[3])))
