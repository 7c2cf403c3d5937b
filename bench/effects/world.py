"""The servers, the events in their stream, the tables, and a contestant's run from its first event to its last."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

import asyncpg

from bench.effects import by_hand
from bench.effects.contestant import ACK_WAIT
from bench.effects.events import ROWS, Taken, make_events, sums
from tidings import Service
from tidings.brokers.nats.embedded import EmbeddedServer
from tools.services.postgres import Postgres

TX, GROUP, HAND_MANY = "hand-tx", "hand-group", "hand-many"
AWAITED, QUEUED, MANY = "ours-awaited", "ours-queued", "ours-many"
TITLES = {
    TX: "by hand: a transaction per event",
    GROUP: "by hand: group commit",
    HAND_MANY: "by hand: group commit, executemany",
    AWAITED: "service: each statement awaited",
    QUEUED: "service: statements queued",
    MANY: "service: batch handler, executemany",
}
LIMIT = 300.0
"""Seconds that one run may take."""


class Run:
    """What the processes of a contestant have said."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self.done = self.dead = 0
        self.began: float | None = None
        self.last = 0.0
        self.commits: dict[int, float] = {}
        self.shares: list[int] = []
        """How many events each process applied."""
        self.ready = asyncio.Event()
        self.all_there = asyncio.Event()

    def hear(self, process: int, line: str) -> None:
        what, *rest = line.split()
        if what == "ready":
            self.ready.set()
        elif what == "began":
            self.began = min(self.began or float(rest[0]), float(rest[0]))
        elif what == "commit":
            self.commits[int(rest[0])] = float(rest[1])
        elif what == "ended":
            self.done += int(rest[0])
            self.dead += int(rest[1])
            self.shares[process] += int(rest[0])
            self.last = max(self.last, float(rest[2]))
            if self.done + self.dead >= self._wanted:
                self.all_there.set()

    @property
    def rate(self) -> float:
        """Events a second, from the first delivery to the last confirmed acknowledgement."""
        assert self.began is not None
        return (self.done + self.dead) / (self.last - self.began)


class World:
    """A PostgreSQL and a nats-server, both syncing to disk, with a stream of events."""

    def __init__(self, postgres: Postgres, nats: str, batch: int) -> None:
        self._postgres, self.nats, self.batch = postgres, nats, batch
        self.events: list[Taken] = []
        self.rows = ROWS
        self._load = os.getloadavg()[0]

    def settings(self, events: int = 0) -> str:
        """What is the same on both sides."""
        return "\n".join(
            (
                f"both sides: {events or len(self.events):,} events from one JetStream stream (sync_interval always);",
                "  for each run a process and an explicit-ack durable consumer of its own, ack wait"
                f" {ACK_WAIT:g} s, batches of {self.batch}, {4 * self.batch} in flight,",
                "  each event acknowledged, the last of a batch with an answer that is awaited beside the next batch;",
                "  asyncpg, one connection, READ COMMITTED, fsync and synchronous_commit on;",
                f"  {self.rows:,} rows in random order, whose sums are checked after each run",
                f"load of the machine at the start: {self._load:.2f}, {os.cpu_count()} processors",
            )
        )

    async def database(self, name: str) -> str:
        """Make a database with the tables that effects and rivals need."""
        url = await asyncio.to_thread(self._postgres.create, name)
        async with _connected(url) as connection:
            await connection.execute(
                f"CREATE TABLE stock (sku int PRIMARY KEY, taken bigint NOT NULL); {by_hand.TABLE}"
            )
        service = Service("bench-tables", broker=self.nats, store=url)
        async with service.running():
            pass  # now Tidings' own tables are there
        return url

    async def fill(self, count: int, rows: int = ROWS) -> None:
        """Store the events."""
        self.events, self.rows = list(make_events(count, rows)), rows
        filler = Service("bench-filler", broker=self.nats, publishes=[Taken])
        async with filler.running():
            for at in range(0, count, 1000):
                for error in await filler.publish_many(self.events[at : at + 1000], timeout=30):
                    if error is not None:
                        raise error

    async def prepare(self, database: str, *, keep_inbox: bool = False) -> None:
        """All rows there and untouched, the inboxes empty."""
        async with _connected(database) as connection:
            await connection.execute(
                f"TRUNCATE stock; INSERT INTO stock SELECT n, 0 FROM generate_series(0, {self.rows - 1}) n"
            )
            if not keep_inbox:
                await connection.execute("TRUNCATE by_hand, tidings_inbox")
            await connection.execute("VACUUM ANALYZE stock")

    async def run(
        self,
        contestant: str,
        database: str,
        *options: str,
        events: Sequence[Taken] | None = None,
        processes: int = 1,
        name: str = "",
        keep_inbox: bool = False,
        beside: Callable[[], Awaitable[Any]] | None = None,
    ) -> Run:
        """Let a contestant apply all events, and see that each was applied exactly once.

        `beside` is awaited once it has started, for what publishes meanwhile.

        Raises:
            RuntimeError: it failed, or the table says something else than each event once.
        """
        await self.prepare(database, keep_inbox=keep_inbox)
        wanted = self.events if events is None else events
        run = Run(len(wanted))
        name = name or f"b{uuid.uuid4().hex[:12]}"
        command = [sys.executable, "-m", "bench.effects.contestant", contestant, "--nats", self.nats]
        command += ["--postgres", database, "--name", name, "--batch", str(self.batch), *options]
        with tempfile.TemporaryFile() as log:
            children = [await _start(command, log) for _ in range(processes)]
            try:
                await self._hear_all(run, children, beside)
                if not run.all_there.is_set():
                    log.seek(0)
                    text = log.read()[-3000:].decode(errors="replace")
                    raise RuntimeError(f"{contestant} ended with {run.done} applied and {run.dead} dead:\n{text}")
            finally:
                await _end(children)
        await self._check(run, contestant, database, wanted, failing="--failing" in options)
        return run

    async def _hear_all(
        self, run: Run, children: Sequence[asyncio.subprocess.Process], beside: Callable[[], Awaitable[Any]] | None
    ) -> None:
        """Until all events are applied, one of them ends, or the time is over."""
        run.shares = [0] * len(children)
        hearing = [asyncio.create_task(_hear(run, number, child)) for number, child in enumerate(children)]
        over = asyncio.create_task(run.all_there.wait())
        try:
            if beside is not None:
                async with asyncio.timeout(30):
                    await run.ready.wait()
                await beside()
            await asyncio.wait({over, *hearing}, timeout=LIMIT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (over, *hearing):
                task.cancel()
            await asyncio.gather(*hearing, over, return_exceptions=True)

    async def _check(self, run: Run, contestant: str, database: str, events: Sequence[Taken], *, failing: bool) -> None:
        good = [event for event in events if not (failing and event.bad)]
        async with _connected(database) as connection:
            found = dict(await connection.fetch("SELECT sku, taken FROM stock WHERE taken <> 0"))
        if found != sums(good) or (run.done, run.dead) != (len(good), len(events) - len(good)):
            raise RuntimeError(
                f"{contestant} is wrong: {run.done} applied and {run.dead} dead of {len(events)} events, and the sums"
                f" are {'right' if found == sums(good) else 'not those of each event once'}"
            )


@asynccontextmanager
async def world(batch: int) -> AsyncIterator[World]:
    """Start the servers, and stop them."""
    with tempfile.TemporaryDirectory(prefix="tidings-bench-") as folder:
        server = EmbeddedServer(Path(folder) / "nats")
        try:
            nats = await server.start()
            with Postgres(Path(folder) / "postgres") as postgres:
                yield World(postgres, nats, batch)
        finally:
            await server.stop()


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def _start(command: Sequence[str], said: IO[bytes]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=said, limit=2**20
    )


async def _hear(run: Run, number: int, child: asyncio.subprocess.Process) -> None:
    assert child.stdout is not None
    async for line in child.stdout:
        run.hear(number, line.decode())


async def _end(children: Sequence[asyncio.subprocess.Process]) -> None:
    """They end with their input."""
    for child in children:
        if child.stdin is not None:
            child.stdin.close()
    for child in children:
        try:
            async with asyncio.timeout(30):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()
