"""A service on PostgreSQL that kills itself with SIGKILL at a named point: run by the tests as a process of its own.

    python -m tests.integration.postgres.worker URL BROKER PUBLISHED EVENTS KIND POINT COUNT

BROKER is ``memory``, whose events it is given anew each time it starts, or the URL of a real one, which has them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from tests.integration.postgres.ledger import INSERT, eventually, notes, waiting
from tests.integration.stores.worker import Killer, OrderPlaced, StockReserved, messages
from tidings import Service
from tidings.brokers import broker_from
from tidings.delivery import Message
from tidings.ports import Broker, Key
from tidings.stores.postgres import PostgresStore, Statements
from tidings.testing import MemoryBroker


class KillingStore(PostgresStore):
    killer: Killer

    @asynccontextmanager
    async def claim(self, keys: Sequence[Key], *, resource: type | None, sync: bool) -> AsyncIterator[Any]:
        self.killer.passes("before the claim")
        async with super().claim(keys, resource=resource, sync=sync) as claim:
            self.killer.passes("after the claim")
            yield claim
            self.killer.passes("before the commit")
        self.killer.passes("after the commit")


def killing(broker: Broker, killer: Killer, record: Path) -> Broker:
    """The same broker, which passes the relay's two points and keeps a record of what it stored."""
    publish = broker.publish

    async def passing(messages: Sequence[Message], *, timeout: float) -> Sequence[Exception | None]:
        caused = [message for message in messages if message.type == "stock.reserved"]
        if caused:
            killer.passes("before the relay publishes")
        errors = await publish(messages, timeout=timeout)
        if caused:
            with record.open("a") as file:
                file.writelines(f"{message.id} {message.key}\n" for message in caused)
            killer.passes("after the relay published")
        return errors

    broker.publish = passing  # type: ignore[method-assign]  # the rest of it stays as it is
    return broker


def service(store: PostgresStore, killer: Killer, kind: str) -> Service:
    stock = Service("stock", store=store, publishes=[OrderPlaced])

    async def connection(order: OrderPlaced, db: asyncpg.Connection) -> StockReserved:
        await db.execute(INSERT, order.order_id)
        killer.passes("inside the transaction")
        return StockReserved(order_id=order.order_id)

    async def statements(order: OrderPlaced, db: Statements) -> StockReserved:
        db.execute(INSERT, order.order_id)
        killer.passes("inside the transaction")
        return StockReserved(order_id=order.order_id)

    stock.on(OrderPlaced, name="reserve", batch=16)(connection if kind == "connection" else statements)
    return stock


async def main(url: str, named: str, record: Path, events: int, kind: str, point: str, count: int) -> None:
    killer = Killer(point, count)
    store = KillingStore(url, poll=0.05, lease=0.5)
    store.killer = killer
    memory = named == "memory"
    broker = killing(MemoryBroker() if memory else broker_from(named), killer, record)
    async with service(store, killer, kind).running(broker=broker):
        if memory:
            assert not any(await broker.publish(messages(events), timeout=10))
        await eventually(lambda: len(set(notes(url))) == events and not waiting(url), 40)
        await asyncio.sleep(0.3)  # whatever would be applied twice


if __name__ == "__main__":
    url, named, record, *rest = sys.argv[1:]
    asyncio.run(main(url, named, Path(record), int(rest[0]), rest[1], rest[2], int(rest[3])))
