"""Calls that do not end, on a real server: each event is applied once and in order, also with a second process."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.integration.nats.server import NatsServer
from tests.integration.shop import Placed
from tests.unit.parts import until
from tidings import Retry, Service
from tidings.brokers import broker_from

KEYS, EACH = 12, 12
RULES: dict[str, Any] = {"timeout": 0.3, "abandon_after": 0.3, "retry": Retry(attempts=4, first=0.05, most=0.2)}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "nats").start()
    yield server
    server.stop()


class Hold:
    """Calls that listen to nobody, until the end of the test."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.held: set[str] = set()

    async def once(self, name: str) -> bool:
        """Hold the first attempt of this event; whether it was held."""
        if name in self.held:
            return False
        self.held.add(name)
        while not self.free.is_set():
            try:
                await self.free.wait()
            except asyncio.CancelledError:
                pass
        return True


@pytest.fixture
async def hold() -> AsyncIterator[Hold]:
    hold = Hold()
    yield hold
    hold.free.set()
    await asyncio.sleep(0.1)


def is_bad(event: Placed) -> bool:
    return event.number % EACH == 5 and event.order_id in ("k1", "k4", "k7")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("sqlite", marks=pytest.mark.proves(broker="nats", store="sqlite")),
        pytest.param("postgres", marks=pytest.mark.proves(broker="nats", store="postgres")),
    ],
)
async def test_P4_P8_P12_calls_that_do_not_end_cost_no_event_no_order_and_no_double(
    kind: str, server: NatsServer, hold: Hold, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Two services of one name, each with a connection of its own to the server: as two processes are."""
    url = f"sqlite:///{tmp_path}/shop.db" if kind == "sqlite" else str(request.getfixturevalue("postgres_url"))
    engine = sa.create_engine(url if kind == "sqlite" else sa.make_url(url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        serial = "INTEGER PRIMARY KEY" if kind == "sqlite" else "BIGSERIAL PRIMARY KEY"
        connection.execute(sa.text(f"CREATE TABLE ledger (at {serial}, key TEXT, number INTEGER)"))

    async def take_async(event: Placed, db: AsyncConnection) -> None:
        row = {"k": event.order_id, "n": event.number}
        if is_bad(event):
            await hold.once(f"{event.order_id}-{event.number}")
        await db.execute(sa.text("INSERT INTO ledger (key, number) VALUES (:k, :n)"), row)

    async def take_asyncpg(event: Placed, db: asyncpg.Connection) -> None:
        if is_bad(event):
            await hold.once(f"{event.order_id}-{event.number}")
        await db.execute("INSERT INTO ledger (key, number) VALUES ($1, $2)", event.order_id, event.number)

    services = []
    async with AsyncExitStack() as stack:
        for _ in range(2):
            one = Service("stock", store=url, publishes=[Placed])
            one.on(Placed, name="take", **RULES)(take_async if kind == "sqlite" else take_asyncpg)
            services.append(one)
            await stack.enter_async_context(one.running(broker=broker_from(f"{server.url}?ack_wait=2s")))
        events = [Placed(order_id=f"k{key}", number=number) for number in range(EACH) for key in range(KEYS)]
        assert not any(await services[0].publish_many(events))

        def rows() -> list[tuple[str, int]]:
            with engine.connect() as connection:
                found = connection.execute(sa.text("SELECT key, number FROM ledger ORDER BY at")).all()
            return [(key, number) for key, number in found]

        await until(lambda: len(rows()) >= len(events), 60.0)
        assert len(hold.held) == 3
        workers = [one.active.workers[0] for one in services]
        assert sum(worker.left_behind[1] for worker in workers) == 3
        hold.free.set()
        await until(lambda: sum(worker.left_behind[0] for worker in workers) == 0)
        await asyncio.sleep(0.3)
    by_key: dict[str, list[int]] = defaultdict(list)
    for key, number in rows():
        by_key[key].append(number)
    assert by_key == {f"k{key}": list(range(EACH)) for key in range(KEYS)}, "once, and in order"
    engine.dispose()


@pytest.mark.proves(broker="nats", store="none")
async def test_P8_P12_a_process_keeps_the_key_of_a_call_that_does_not_end_also_when_another_process_comes(
    server: NatsServer, hold: Hold
) -> None:
    begun: dict[str, list[int]] = defaultdict(list)

    def service() -> Service:
        stock = Service("stock", publishes=[Placed])

        @stock.on(Placed, name="take", idempotent=True, **RULES)
        async def take(event: Placed) -> None:
            begun[event.order_id].append(event.number)
            if event.order_id == "k1" and event.number == 1:
                await hold.once("k1-1")

        return stock

    url = f"{server.url}?ack_wait=2s"
    first, second = service(), service()
    async with first.running(broker=broker_from(url)):
        (worker,) = first.active.workers
        events = [Placed(order_id=f"k{key}", number=number) for number in range(4) for key in range(KEYS)]
        assert not any(await first.publish_many(events))
        await until(lambda: worker.stuck and sum(map(len, begun.values())) == len(events) - 2, 20.0)
        async with second.running(broker=broker_from(url)):
            more = [Placed(order_id=f"k{key}", number=4) for key in range(KEYS)]
            assert not any(await first.publish_many(more))
            await until(lambda: sum(4 in numbers for numbers in begun.values()) == KEYS - 1, 30.0)
            await asyncio.sleep(3.0)  # longer than the ack wait
            assert begun["k1"] == [0, 1], "nobody begins what follows, or it once more, beside the call"
            hold.free.set()
            await until(lambda: len(begun["k1"]) == 5, 30.0)
            assert not worker.stuck
    assert dict(begun) == {f"k{key}": list(range(5)) for key in range(KEYS)}
