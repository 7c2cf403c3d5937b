"""A broker or a database that is away for long, under load: who waits, who raises, and that all of it comes back.

Whole services on NATS with PostgreSQL; the server is killed and started again. The judge is a table without unique key.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import psycopg
import pytest

from tests.integration.nats.conftest import until
from tests.integration.nats.server import NatsServer
from tests.integration.shop import Placed, Reserved
from tests.servers import folder_for
from tidings import BrokerUnavailable, Delivery, Service
from tidings.dead_letters import list_letters
from tidings.errors import StoreUnavailable
from tools.services.postgres import Postgres

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="nats", store="postgres")]

OUTAGES = [8.0, pytest.param(120.0, marks=[pytest.mark.long, pytest.mark.timeout(480)])]
BACK = 90.0
"""Seconds in which everything has to go on by itself, once the server is there again."""
SOON = 6.0
"""Seconds in which whoever is at work has noticed that a server is gone."""
PER_SECOND, KEYS = 100, 16


INSERT = "INSERT INTO ledger (handler, key, number) VALUES ($1, $2, $3)"


class Day:
    """Two services, a publisher, and what becomes of what it publishes."""

    def __init__(self, broker: str, store: str) -> None:
        self.url = store
        self.calls: list[float] = []
        """When a handler was called."""
        self.stored: list[int] = []
        self.raised: list[Exception] = []
        self.patience = 3.0
        """Seconds that a publish may take."""
        self.front = Service("front", broker=broker, store=store, publishes=[Placed])
        self.stock = Service("stock", broker=broker, store=store)
        self.money = Service("money", broker=broker, store=store)
        self._publishing: asyncio.Task[None] | None = None
        self._stopping = False

        @self.stock.on(Placed, order="key")
        async def reserve(placed: Placed, db: asyncpg.Connection) -> Reserved:
            self.calls.append(time.monotonic())
            await db.execute(INSERT, "reserve", placed.order_id, placed.number)
            return Reserved(order_id=placed.order_id, number=placed.number)

        @self.money.on(Reserved, order=None)
        async def charge(reserved: Reserved, db: asyncpg.Connection, delivery: Delivery) -> None:
            self.calls.append(time.monotonic())
            await db.execute(INSERT, "charge", reserved.order_id, reserved.number)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for service in (self.money, self.stock, self.front):
                await stack.enter_async_context(service.running())
            self._publishing = asyncio.create_task(self._publish())
            try:
                yield
            finally:
                self._publishing.cancel()
                await asyncio.wait([self._publishing])

    async def _publish(self) -> None:
        """Publish wave after wave, each event until it is stored, under its id."""
        while not self._stopping:
            begin = len(self.stored)
            wave = [Placed(order_id=f"order-{n % KEYS:02}", number=n) for n in range(begin, begin + KEYS)]
            left = wave
            while left:
                errors = await self.front.publish_many(left, timeout=self.patience)
                self.raised += [error for error in errors if error is not None]
                left = [event for event, error in zip(left, errors, strict=True) if error is not None]
                await asyncio.sleep(0.2 if left else KEYS / PER_SECOND)
            self.stored += [event.number for event in wave]

    async def more(self, count: int) -> None:
        wanted = len(self.stored) + count
        await until(lambda: len(self.stored) >= wanted, BACK)

    def quiet_since(self, moment: float) -> bool:
        return not any(at > moment for at in self.calls)

    def rows(self, handler: str) -> list[tuple[str, int]]:
        """The effects of a handler, in the order in which they were applied."""
        with psycopg.connect(self.url, connect_timeout=10) as connection:
            found = connection.execute("SELECT key, number FROM ledger WHERE handler = %s ORDER BY place", (handler,))
            return [(str(key), int(number)) for key, number in found]

    async def finish(self, *late: Placed) -> None:
        """Publish no more, wait for all effects, and judge them."""
        self._stopping = True
        assert self._publishing is not None
        await self._publishing
        wanted = Counter([*self.stored, *(event.number for event in late)])
        for handler in ("reserve", "charge"):
            end = time.monotonic() + BACK
            while len(set(rows := await asyncio.to_thread(self.rows, handler))) < len(wanted):
                assert time.monotonic() < end, f"{handler}: {len(wanted) - len(set(rows))} are not applied"
                await asyncio.sleep(0.2)
            assert Counter(number for _, number in rows) == wanted, f"{handler}: lost or applied twice"
        self._check_order()
        assert await list_letters(self.front.active.broker) == []

    def _check_order(self) -> None:
        numbers: dict[str, list[int]] = {}
        for key, number in self.rows("reserve"):
            numbers.setdefault(key, []).append(number)
        for key, found in numbers.items():
            assert found == sorted(found), f"{key} is out of order"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path / "nats").start()
    yield made
    made.stop()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with folder_for("postgres") as folder, Postgres(folder) as made:
        with psycopg.connect(made.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE ledger (place bigserial, handler text, key text, number int)")
        yield made


@pytest.fixture
def day(server: NatsServer, postgres: Postgres) -> Day:
    return Day(server.url, postgres.url)


@pytest.mark.parametrize("seconds", OUTAGES)
async def test_P1_P10_without_a_broker_publishers_wait_or_raise_as_they_are_told_and_nothing_is_lost(
    server: NatsServer, day: Day, seconds: float
) -> None:
    waits = Placed(order_id="waits", number=-1)
    kept = Placed(order_id="kept", number=-2)
    async with day.running():
        await until(lambda: len(day.calls) >= 100, BACK)
        await asyncio.to_thread(server.stop)
        went = time.monotonic()
        waiting = asyncio.create_task(day.front.publish(waits, timeout=seconds + BACK))
        with pytest.raises(BrokerUnavailable):
            await day.front.publish(Placed(order_id="impatient", number=-3), timeout=1.0)
        async with day.front.transaction(asyncpg.Connection) as db:
            await day.front.publish(kept, tx=db)  # leaves through the outbox, once there is a broker
        await asyncio.sleep(seconds - (time.monotonic() - went))
        assert day.quiet_since(went + SOON), "a handler went on without a broker"
        assert not waiting.done(), "it did not wait"
        assert all("no connection to" in service.active.broker.trouble for service in (day.front, day.stock, day.money))
        await asyncio.to_thread(server.start)
        await waiting
        await day.more(100)
        await day.finish(waits, kept)
    assert day.raised, "nobody was told"
    assert {type(error) for error in day.raised} == {BrokerUnavailable}


@pytest.mark.parametrize("seconds", OUTAGES)
async def test_P3_P10_without_a_database_handlers_stop_claiming_and_nothing_is_blamed_on_an_event(
    postgres: Postgres, day: Day, seconds: float
) -> None:
    day.patience = 30.0  # the broker is there all the time, and the machine may be slow
    async with day.running():
        await until(lambda: len(day.calls) >= 100, BACK)
        await asyncio.to_thread(postgres.stop)
        went, stored = time.monotonic(), len(day.stored)
        with pytest.raises(StoreUnavailable):
            async with asyncio.timeout(BACK):
                async with day.front.transaction(asyncpg.Connection) as db:
                    await day.front.publish(Placed(order_id="nowhere", number=-4), tx=db)
        await asyncio.sleep(seconds - (time.monotonic() - went))
        assert day.quiet_since(went + SOON), "a handler was called without a database"
        for service in (day.stock, day.money):
            (worker,) = service.active.workers
            # Whoever had nothing more to do when the database went has nothing to say.
            assert worker.trouble or not worker.waiting, f"{worker.position} does not say that it cannot work"
        assert day.stock.active.workers[0].trouble
        assert len(day.stored) > stored, "the broker is there, and nothing is stored"
        await asyncio.to_thread(postgres.start)
        await day.more(100)
        await day.finish()
    assert day.raised == []
