"""Rounds: one without a fault to learn the result, then one for every fault, each compared with the first."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from tidings.event import Event, event_id
from tidings.ports import Plan, Store
from tidings.publisher import Wrapper
from tidings.running import Running
from tidings.service import Service
from tidings.stores.sqlalchemy import SqlAlchemyStore
from tidings.testing.memory import MemoryBroker
from tidings.testing.prover.account import Evidence, Result, account, dead, published
from tidings.testing.prover.database import Database, Setup, State
from tidings.testing.prover.life import Life
from tidings.testing.prover.line import Doubled, Line

POLL = 0.003
"""Seconds between two looks at whether a life has nothing to do any more."""

OpenStore = Callable[[str], Store]


class Differs(AssertionError):
    """A round came to another end than the one without a fault; the message says which, how, and what is likely."""


class Proof(NamedTuple):
    """What was proved."""

    rounds: int
    crashes: int
    """Rounds in which a life ended at a point."""
    points: Counter[str]
    """The points at which one did, and how many times each."""

    def __str__(self) -> str:
        return f"{self.rounds} rounds, {self.crashes} of them with a crash, all with the same end"


class _Fault(NamedTuple):
    """What a round is to meet."""

    where: str
    point: str = ""
    crash_at: tuple[str, int] | None = None
    doubled: Doubled = ""
    workers: int = 1


class _Round(NamedTuple):
    result: Result
    passed: Sequence[str]
    evidence: Evidence
    crashed: bool


class Prover:
    """Proves services on the memory broker and SQLite. Everything it makes is below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._database = Database(folder)

    @property
    def path(self) -> Path:
        """The database file, the same path throughout: for handlers that open it themselves, and `state` functions."""
        return self._database.path

    async def prove(
        self,
        service: Service,
        events: Sequence[Event],
        *,
        state: State,
        setup: Setup = "",
        ignore: Collection[str] = (),
        store: OpenStore | None = None,
    ) -> Proof:
        """Run the handlers over the events without a fault, then once for each fault; see that all end alike.

        The faults: a crash at each point that the first run passed (around claims, statements, commits and
        acknowledgements, and in the outbox), each delivery twice, at once and later, and two workers that both get
        each delivery. After a crash a fresh life goes on, with what the database and the broker had by then.

        It promises that these were tried with these events, and nothing about others. What the program keeps in
        globals outlives its lives, unlike in a real crash; `setup` may be a function that puts it back.

        Args:
            events: published in this order before the handlers see the first.
            state: a query that reads what the handlers did, or a function of the database's path that returns it.
            setup: SQL, or a function of the database's path: called before each round, on an empty database.
            ignore: fields of published events that differ from run to run, such as times.
            store: opens the store for a URL, where it is not to be the SQL store that the URL names.

        Raises:
            Differs: a round came to another end. Only the first one is told.
            MisuseError: the service runs.
        """
        case = _Case(self._database, service, tuple(events), state, setup, frozenset(ignore), store or _sql)
        first = await case.round(_Fault("the run without a fault"))
        rounds, met = 1, Counter[str]()
        for fault in _faults(first.passed):
            found = await case.round(fault)
            rounds += 1
            met[fault.point] += found.crashed
            if text := account(fault.where, first.result, found.result, fault.point, found.evidence):
                raise Differs(f"{service.name}: {text}")
        met += Counter()
        return Proof(rounds, met.total(), met)


def _faults(passed: Sequence[str]) -> Sequence[_Fault]:
    faults = [_Fault("a second run without a fault")]
    seen = Counter[str]()
    for point in passed:
        seen[point] += 1
        where = f"a crash at {point}, the {_ordinal(seen[point])} time that it is passed"
        faults.append(_Fault(where, point, (point, seen[point])))
    return [
        *faults,
        _Fault("each delivery comes twice at once", "doubled", doubled="at once"),
        _Fault("each delivery comes again after its acknowledgement", "doubled", doubled="later"),
        _Fault("two workers get each delivery at once", "workers", workers=2),
    ]


def _ordinal(number: int) -> str:
    ends = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if 10 < number % 100 < 14 else ends.get(number % 10, 'th')}"


def _sql(url: str) -> Store:
    return SqlAlchemyStore(url, poll=0.02)


class _Case(NamedTuple):
    """What is proved."""

    database: Database
    service: Service
    events: tuple[Event, ...]
    state: State
    setup: Setup
    ignore: frozenset[str]
    open_store: OpenStore

    async def round(self, fault: _Fault) -> _Round:
        """Live until everything is handled, in two lives if the first crashes."""
        self.database.begin(self.setup)
        server = MemoryBroker(ack_wait=0.0)
        lives: list[Life] = []
        lines: list[Line] = []
        try:
            first = await self._live(server, fault, lives, lines)
            evidence = Evidence(first.passed, (), sum(line.acknowledged for line in lines))
            if first.crashed:
                self.database.let_time_pass()
                after = await self._live(server, _Fault(fault.where, workers=fault.workers), lives, lines)
                evidence = evidence._replace(after=after.passed)
            stored = published(server.messages(), {event_id(event) for event in self.events}, self.ignore)
            result = Result(self.database.read(self.state), stored, dead(server.dead_letters))
            return _Round(result, first.passed, evidence, first.crashed)
        finally:
            for life in lives:
                await life.let_go()
            self.database.forget()

    async def _live(self, server: MemoryBroker, fault: _Fault, lives: list[Life], lines: list[Line]) -> Life:
        """One life; `lives` and `lines` are those before it, to which it adds its own."""
        dying, url = list(lines), self.database.url

        async def main(life: Life) -> None:
            for line in dying:
                line.client.crash()
            async with AsyncExitStack() as stack:
                workers = [await stack.enter_async_context(self._worker(line, url, n)) for n, line in enumerate(ours)]
                if not dying:
                    await self._publish(server)
                while not life.crashed and await _busy(server, ours, workers):  # noqa: ASYNC110  # a database tells nobody
                    await asyncio.sleep(POLL)

        def crash() -> None:
            for line in ours:
                line.cut = True
            self.database.crash()
            self.service._begun = self.service._running = None

        second = [Line(server.client()) for _ in range(fault.workers - 1)]
        ours = [Line(server.client(), fault.doubled, second), *second]
        lines += ours
        life = Life(main, fault.crash_at)
        life.at_the_crash = crash
        lives.append(life)
        try:
            await life.run()
        except TimeoutError as error:
            raise Differs(f"{self.service.name}: {fault.where}: {error}") from None
        if life.error is not None:
            raise life.error
        return life

    @asynccontextmanager
    async def _worker(self, line: Line, url: str, number: int) -> AsyncIterator[Running]:
        service = self.service
        if number:  # another process of the same service
            service = copy.copy(service)
            service._begun = service._running = None
        async with service.running(broker=line, store=self.open_store(url)):
            yield service.active

    async def _publish(self, server: MemoryBroker) -> None:
        types = {type(event) for event in self.events}
        wrapper = Wrapper("prover", types, "structured")
        await server.open(Plan(service="prover"))
        for error in await server.publish([wrapper.message(event) for event in self.events], timeout=5):
            if error is not None:
                raise error


async def _busy(server: MemoryBroker, lines: Sequence[Line], processes: Sequence[Running]) -> bool:
    """Whether anything is still to be delivered, handled or published."""

    def at_work() -> bool:
        workers = [worker for process in processes for worker in process.workers]
        return bool(server._busy(float("inf"))) or any(one.busy or one.waiting for one in workers)

    if at_work() or any(line.copies for line in lines):
        return True
    for store in [process.store for process in processes]:
        if isinstance(store, SqlAlchemyStore):
            backlog = await store.outbox_backlog()
            if backlog.waiting > backlog.parked:
                return True
    return at_work()
