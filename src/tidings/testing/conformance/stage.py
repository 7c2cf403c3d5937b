"""What the tests of the policy work with: services over the broker, and effects that a database or a list keeps."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from tidings import dead_letters
from tidings.dead_letters import Letter
from tidings.delivery import Delivery, Message
from tidings.envelope import envelope_of, to_structured
from tidings.event import Event
from tidings.policy import Retry
from tidings.ports import Broker, Settled
from tidings.service import Service
from tidings.testing._child import QUICK, Job
from tidings.testing._effects import ROW, TABLE, Effect, effect_of, event_class
from tidings.testing.conformance.bench import Bench, Make
from tidings.testing.conformance.load import Load
from tidings.testing.conformance.process import Process

Act = Callable[[Event, Delivery], Awaitable[Any]]
"""What a handler does after its effect: it may fail, or return what it causes."""


class Outcomes:
    """An observer that counts what became of the deliveries of each handler."""

    def __init__(self) -> None:
        self.of: dict[str, Counter[str]] = {}

    def received(self, position: str, count: int) -> None:
        """What was taken up is counted when it has ended."""

    def settled(self, position: str, batch: Sequence[Settled], seconds: float) -> None:
        self.of.setdefault(position, Counter()).update(one.outcome.kind for one in batch)


class Seen(NamedTuple):
    """A handler was called."""

    position: str
    id: str
    attempt: int
    worker: str
    at: float


async def nothing(event: Event, delivery: Delivery) -> None:
    """What a handler does besides its effect: nothing."""


class Stage:
    """Services of one test. `store` is ``sqlite``, where effects are applied once, or ``none``: they may repeat."""

    def __init__(self, bench: Bench, store: str, folder: Path) -> None:
        self.bench = bench
        self.store = store
        self.seen: list[Seen] = []
        """Every call of a handler, whatever became of it."""
        self.deliveries: list[Delivery] = []
        """Those of the calls, in the same order."""
        self.outcomes = Outcomes()
        self.Happened = event_class(bench.stream)
        self.path = folder / f"{bench.name}.db"
        self._notes = folder / f"{bench.name}.notes"
        self._noted = 0
        bench.more.append(self._outcomes)
        if store == "sqlite":
            with closing(sqlite3.connect(self.path)) as connection:
                connection.execute(TABLE)

    def service(self, name: str = "", *, also: Sequence[type[Event]] = (), **options: Any) -> Service:
        """A service of this test, which may publish `also`; the same `name` twice stands for two processes of one."""
        url = f"sqlite:///{self.path}" if self.store == "sqlite" else None
        full = f"{self.bench.name}-{name}" if name else self.bench.name
        service = Service(full, store=url, publishes=[self.Happened, *also], **options)
        service.observers.append(self.outcomes)
        return service

    def handle(
        self,
        service: Service,
        act: Act = nothing,
        *,
        name: str = "handle",
        events: Sequence[type[Event]] = (),
        worker: str = "",
        retry: Retry = QUICK,
        **rules: Any,
    ) -> str:
        """Register a handler whose effect is a row of the ledger, and return its position."""
        position = f"{service.name}.{name}"
        on = service.on(*(events or [self.Happened]), name=name, retry=retry, idempotent=self.store == "none", **rules)

        def row(event: Any, delivery: Delivery) -> Effect:
            self.seen.append(Seen(position, event.id, delivery.attempt, worker, time.time()))
            self.deliveries.append(delivery)
            self.bench.ledger.delivered(position, event.id)
            return effect_of(position, event, delivery, worker)

        if self.store == "sqlite":

            @on
            async def in_transaction(event: Event, db: AsyncConnection, delivery: Delivery) -> Any:
                await db.execute(ROW, row(event, delivery)._asdict())
                return await act(event, delivery)

        else:

            @on
            async def directly(event: Event, delivery: Delivery) -> Any:
                effect = row(event, delivery)
                result = await act(event, delivery)
                self.bench.ledger.effect(effect)
                return result

        return position

    @asynccontextmanager
    async def running(self, *services: Service, make: Make | None = None) -> AsyncIterator[None]:
        """Run services, each with a client of its own, from `make` if that is given."""
        async with AsyncExitStack() as stack:
            for service in services:
                broker = await self.bench.unopened(make)
                await stack.enter_async_context(service.running(broker=broker))
            yield

    @asynccontextmanager
    async def process(self, handler: str = "handle", **more: Any) -> AsyncIterator[Process]:
        """A process with that handler of this test's service, killed at the end; `more` goes to its `Job`."""
        job = Job(
            broker=self.bench.processes.url,
            service=self.bench.name,
            handler=handler,
            stream=self.bench.stream,
            notes=str(self._notes),
            store=f"sqlite:///{self.path}" if self.store == "sqlite" else None,
            **more,
        )
        process = await Process(job, self._notes.with_suffix(".log"), self.bench.patience).start()
        try:
            yield process
        finally:
            await process.kill()

    async def load(self, *, per_second: float = 200.0, make: Make | None = None) -> Load:
        """Events that are published all the time, by a client of their own."""

        def message(id: str, key: str) -> Message:
            return self.message(self.Happened, id=id, key=key)

        return Load(self.bench, await self.bench.client(make=make), message, per_second=per_second)

    async def publish(self, service: Service, ids: Collection[object], keys: int = 3) -> list[Event]:
        """Publish events with these ids, and enter them."""
        events: list[Any] = [self.Happened(id=str(id), key=f"k{place % keys}") for place, id in enumerate(ids)]
        for event, error in zip(events, await service.publish_many(events), strict=True):
            assert error is None, f"publishing {event.id} failed: {error!r}"
            self.bench.ledger.accepted(event.id)
        return events

    def message(self, event_class: type[Event], **fields: str) -> Message:
        """An event as a stranger publishes it: without a service."""
        event = event_class(**fields)
        spec = event_class.__tidings__
        return self.bench.message(
            fields["id"],
            key=fields["key"],
            body=to_structured(envelope_of(event, "elsewhere")),
            headers={"x-id": fields["id"]},
            type=spec.type,
        )

    # ── what came of it ─────────────────────────────────────────────────────────────────────────────────────────────

    def effects(self, position: str) -> list[Effect]:
        """The rows of the ledger of one handler, as they are durable now."""
        if self.store == "none":
            return [row for row in self.bench.ledger.effects if row.position == position]
        with closing(sqlite3.connect(self.path, timeout=5)) as connection:
            rows = connection.execute("SELECT * FROM ledger WHERE position = ? ORDER BY rowid", (position,)).fetchall()
        return [Effect(*row) for row in rows]

    def count(self, position: str) -> int:
        """How many rows of the ledger one handler has."""
        if self.store == "none":
            return len(self.effects(position))
        with closing(sqlite3.connect(self.path, timeout=5)) as connection:
            found = connection.execute("SELECT count(*) FROM ledger WHERE position = ?", (position,)).fetchone()
        return int(found[0])

    def ids(self, position: str) -> list[str]:
        return [row.id for row in self.effects(position)]

    def delivery(self, position: str, id: str) -> Delivery:
        """The first one of an event to a handler."""
        calls = zip(self.seen, self.deliveries, strict=True)
        return next(one for seen, one in calls if (seen.position, seen.id) == (position, id))

    def check_order(self, position: str) -> None:
        """The effects of each key came in the order in which its events were stored; ids are rising numbers."""
        numbers: dict[str, list[int]] = {}
        for row in self.effects(position):
            numbers.setdefault(row.key or "", []).append(int(row.id))
        for key, found in numbers.items():
            first_time = list(dict.fromkeys(found))  # without a store what is given again may be applied again
            assert first_time == sorted(first_time), f"{key} is out of order: {first_time}"

    def attempts(self, position: str, id: str) -> list[int]:
        """How often the handler saw an event, as it was told each time."""
        return [one.attempt for one in self.seen if (one.position, one.id) == (position, id)]

    async def until_applied(self, position: str, ids: Collection[object]) -> None:
        """Wait until each of these has its effect."""
        wanted = {str(id) for id in ids}
        what = f"{position} has applied all"
        # Reading the whole table at each change would cost more than all that is tested, in the loop that does it.
        while not wanted <= set(found := self.ids(position)):
            # More than was found, not more than there is: the last ones may have come since.
            await self._until_count(position, max(len(wanted), len(found) + 1), what)

    async def _until_count(self, position: str, least: int, what: str) -> None:
        await self.bench.until(lambda: self.count(position) >= least, what, 0.1)

    def judge(self, position: str, ids: Collection[object]) -> None:
        """Compare the ledger with what was accepted: lost and, with a store, applied twice are 0."""
        self._take_notes()
        found = self.effects(position)
        ledger = self.bench.ledger
        if self.store == "sqlite":
            ledger.effects = [row for row in ledger.effects if row.position != position]
            for row in found:
                ledger.effect(row)
            ledger.check(position, [str(id) for id in ids], faults=True)
        else:
            lost = {str(id) for id in ids} - {row.id for row in found}
            assert not lost, f"{position}: lost={len(lost)}; {ledger}"

    def _take_notes(self) -> None:
        """Enter what processes noted since the last time."""
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        for line in lines[self._noted :]:
            position, _, id = line.partition(" ")
            self.bench.ledger.delivered(position, id)
        self._noted = len(lines)

    def _outcomes(self) -> str:
        """What became of deliveries besides that they were done: a redelivery that `once` knew is no call."""
        found = sum(self.outcomes.of.values(), Counter())
        return " ".join(f"{kind}={count}" for kind, count in sorted(found.items()) if kind != "done")

    async def letters(self, position: str, count: int, reader: Broker) -> list[Letter]:
        """The dead letters of a handler, whole, once there are so many."""
        found: list[Letter] = []

        async def counted() -> int:
            found[:] = await dead_letters.list_letters(reader, state=None, where=lambda one: one.position == position)
            return len(found)

        await self.bench.until_equal(counted, count)
        return await dead_letters.find(reader, [letter.id for letter in found]) if found else []

    async def open_at_the_broker(self, service: Service) -> int:
        """How much of a service is pending, in flight or waiting for its next attempt."""
        backlogs = [await worker.backlog() for worker in service.active.workers]
        return sum(one.pending + one.in_flight + one.scheduled for one in backlogs if one is not None)

    async def quiet(self, service: Service) -> None:
        """Wait until nothing of a service is open at the broker."""
        await self.bench.until_equal(lambda: self.open_at_the_broker(service), 0)

    def workers(self) -> set[str]:
        """Those whose handlers were called."""
        return {one.worker for one in self.seen}

    def noted(self) -> int:
        """How many deliveries the processes noted."""
        return self._notes.read_text().count("\n") if self._notes.exists() else 0

    async def until_seen(self, count: int) -> None:
        await self.bench.until_many(self.seen, count, f"handlers were called {count} times")

    async def pause(self, seconds: float = 0.3) -> None:
        """Give what should not come the time to come."""
        await asyncio.sleep(seconds)
