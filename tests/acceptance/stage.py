"""What the acceptance tests stand on: a real server, real processes, and a ledger that judges."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from tests.integration.nats.server import NatsServer
from tidings import Event, Service
from tools.drill_kit import ROOT, Kit, Process, until
from tools.drill_shop import backlog

_CREATE = """CREATE TABLE IF NOT EXISTS ledger (handler TEXT NOT NULL, event_id TEXT NOT NULL, key TEXT,
    number INTEGER NOT NULL, attempt INTEGER NOT NULL, worker INTEGER NOT NULL, at REAL NOT NULL)"""

LIMIT = 60.0


class Row(NamedTuple):
    """One effect."""

    handler: str
    event_id: str
    key: str
    number: int
    attempt: int
    worker: int
    at: float


def note(handler: str, key: str, number: int, attempt: int) -> None:
    """A row of a handler that has no connection: it stays, whatever becomes of the event."""
    with closing(sqlite3.connect(os.environ["NOTES"], timeout=20, isolation_level=None)) as connection:
        row = (handler, "", key, number, attempt, os.getpid(), time.time())
        connection.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def create(path: Path) -> Path:
    with closing(sqlite3.connect(path, timeout=20, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(_CREATE)
    return path


class Stage:
    """One test's server, processes and ledger."""

    def __init__(self, folder: Path) -> None:
        self.kit = Kit(folder / "stage")
        self.server = NatsServer(folder / "server").start()
        self.broker = f"{self.server.url}?ack_wait=3s"
        self.database = create(self.kit.folder / "shop.db")
        self.notes = create(self.kit.folder / "notes.db")

    def close(self) -> None:
        try:
            self.kit.__exit__()
        finally:
            self.server.stop()

    # ── processes ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, service: str, *more: str, broker: str | None = None) -> Process:
        """Start a service of `services.py` and wait until it is ready."""
        arguments = [f"tests.acceptance.services:{service}", "--store", f"sqlite:///{self.database}", *more]
        if broker != "":
            arguments += ["--broker", broker or self.broker]
        env = {"STAGE": str(self.kit.folder), "NOTES": str(self.notes), "DYING_BROKER": self.broker}
        process = self.kit.start("run", *arguments, "--port", "0", "--json", name=service, cwd=ROOT, env=env)
        await asyncio.to_thread(process.ready)
        return process

    async def tidings(self, *arguments: str) -> list[dict[str, Any]]:
        """Run a command to its end; the records that it printed."""
        done = await asyncio.to_thread(self.kit.tidings, *arguments, "--json", "--broker", self.broker)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    async def letters(self) -> list[dict[str, Any]]:
        return await self.tidings("dead", "list")

    # ── what goes in ────────────────────────────────────────────────────────────────────────────────────────────────

    async def publish(self, events: Iterable[Event], *, per_second: float = 0.0, broker: str = "") -> None:
        """Publish until each is stored, the same object under the same id, whatever happens meanwhile."""
        events = list(events)
        front = Service("front", broker=broker or self.broker, publishes={type(event) for event in events})
        wave = 25
        async with front.running():
            for at in range(0, len(events), wave):
                left: Sequence[Event] = events[at : at + wave]
                async with asyncio.timeout(LIMIT):
                    while left:
                        errors = await front.publish_many(left, timeout=3)
                        left = [event for event, error in zip(left, errors, strict=True) if error is not None]
                        await asyncio.sleep(0.2 if left else wave / per_second if per_second else 0)

    # ── what comes of it ────────────────────────────────────────────────────────────────────────────────────────────

    def rows(self, handler: str) -> list[Row]:
        """The effects of a handler, in the order in which they were applied."""
        return self._read(self.database, handler)

    def noted(self, handler: str) -> list[Row]:
        """What a handler without a connection noted."""
        return self._read(self.notes, handler)

    def _read(self, path: Path, handler: str) -> list[Row]:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20)) as connection:
            found = connection.execute("SELECT * FROM ledger WHERE handler = ? ORDER BY rowid", (handler,))
            return [Row(*row) for row in found]

    async def wait(self, condition: Callable[[], object], seconds: float = LIMIT) -> None:
        """Wait until it holds; a test that waits in vain fails here."""
        assert await asyncio.to_thread(until, condition, seconds), f"waited {seconds:.0f} s in vain"

    async def applied(self, handler: str, count: int) -> None:
        """Wait for so many effects."""
        await self.wait(lambda: len(self.rows(handler)) >= count)

    async def drained(self) -> None:
        """Wait until nothing waits at, or is open at, any position of the server."""
        await self.wait(lambda: not backlog(self.server.url))

    async def outbox_empty(self) -> None:
        """Wait until all that handlers caused is published; a stop leaves to the next process what is held still."""

        def left() -> int:
            with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=20)) as connection:
                return int(connection.execute("SELECT count(*) FROM tidings_outbox").fetchone()[0])

        await self.wait(lambda: not left())

    async def judge(self, handler: str, events: Iterable[Any]) -> None:
        """Nothing is lost and nothing was applied twice."""
        wanted = {(event.order_id, event.number) for event in events}
        await self.wait(lambda: wanted <= {(row.key, row.number) for row in self.rows(handler)})
        await self.drained()
        effects = Counter((row.key, row.number) for row in self.rows(handler))
        twice = {effect: count for effect, count in effects.items() if count > 1}
        assert not twice, f"applied twice: {twice}"
        assert set(effects) == wanted


def peak_memory(pid: int) -> int:
    """The most that a process ever had in memory, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{sys.platform} does not tell the memory of a process")
