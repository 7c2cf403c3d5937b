"""One store's part of the proof: its servers, its workers, and what was published to them."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tidings import Service
from tidings.delivery import Message
from tidings.publisher import Wrapper
from tools.proof.ledger import Ledger
from tools.proof.shop import CARTS, SKUS, OrderPlaced
from tools.proof.stores import EFFECTS, Kind
from tools.proof.worker import Job, work
from tools.services.nats import Nats
from tools.services.program import Program

ACK_WAIT = "1500ms"
"""Until a delivery whose process is gone comes again; 15 s in production."""
LIMIT = 30.0

MEMORY, RELAY, FIRST = "from memory", "by the relay", "before the mark"
"""How caused events leave: after the commit from memory, or by the relay alone; without an outbox before all else."""

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tools.proof.worker", "tools.proof.__main__"])


class Manner(NamedTuple):
    """How the handlers of a round are written, and how what they cause leaves."""

    variant: str = ""
    way: str = MEMORY


_ONE_AT_A_TIME = threading.Lock()
"""A worker's status can be read once, and whoever starts another one reads that of all. Two at once, and one of them
reads the end of a pipe, which counts as status 255."""


class Worker:
    """A process that can be killed."""

    def __init__(self, job: Job) -> None:
        self.process: ForkServerProcess = FORKS.Process(target=work, args=(job,), daemon=True)
        self._job = job
        with _ONE_AT_A_TIME:
            self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def status(self) -> int | None:
        """How it has ended; None: it lives."""
        with _ONE_AT_A_TIME:
            return self.process.exitcode

    @property
    def alive(self) -> bool:
        return self.status is None

    async def _ended(self, seconds: float) -> int | None:
        """Wait for its end, and say how it was."""
        ends = time.monotonic() + seconds
        while (status := self.status) is None and time.monotonic() < ends:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.02)
        return status

    async def ready(self) -> bool:
        """Wait until it works; False: it has ended, or says nothing."""
        wanted = f"R {self.pid}\n"
        ends = time.monotonic() + LIMIT
        while wanted not in _text(self._job.notes):
            if not self.alive or time.monotonic() > ends:
                return False
            await asyncio.sleep(0.02)
        return True

    def kill(self) -> bool:
        """SIGKILL, unless it has ended by itself."""
        if not self.alive:
            return False
        os.kill(self.pid, signal.SIGKILL)
        ends = time.monotonic() + 10
        while self.alive and time.monotonic() < ends:
            time.sleep(0.005)
        return self.status == -signal.SIGKILL

    async def died(self, seconds: float) -> bool:
        """Wait for its end; whether it was killed."""
        return await self._ended(seconds) == -signal.SIGKILL

    async def stop(self) -> int | None:
        """SIGTERM, and the exit status it ended with."""
        if self.alive:
            os.kill(self.pid, signal.SIGTERM)
            await self._ended(30)
        if self.alive:
            self.kill()
        return self.status


class World:
    """Servers that live as long as the proof of one store, and the shop on them."""

    def __init__(self, name: str, kind: Kind, folder: Path, seed: str = "") -> None:
        self.name, self.kind, self.folder, self.seed = name, kind, folder, seed
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        self.broker = Nats(folder / "broker")
        self.server: Program | None = kind.server(folder / "server") if kind.server else None
        self.url = ""
        self.workers: list[Worker] = []
        self._stack = AsyncExitStack()
        self._wrapper = Wrapper("front", [OrderPlaced], "structured")
        self._store: Any = None
        self.manner = Manner()
        """Of the workers that are started from now on."""

    async def __aenter__(self) -> World:
        try:
            await self._open()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _open(self) -> None:
        for server in self.servers:
            self._stack.callback(server.stop)
            await asyncio.to_thread(server.start)
        self.url = self.kind.url(self.server, self.folder)
        self.ledger = Ledger(self.kind.ledger(self.url, self.folder))
        await asyncio.to_thread(self.ledger.prepare)
        self._front = Service("front", publishes=[OrderPlaced])
        await self._stack.enter_async_context(self._front.running(broker=self.broker_url))
        if self.kind.late is not None:
            self._store = self.kind.store(self.url)
            await self._store.open()
            self._stack.push_async_callback(self._store.close)

    async def __aexit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()
        await self._stack.aclose()

    @property
    def servers(self) -> list[Program]:
        return [self.broker, *([self.server] if self.server else [])]

    @property
    def broker_url(self) -> str:
        return f"{self.broker.url}?ack_wait={ACK_WAIT}"

    # ── workers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self, notes: Path, *, kill_at: str = "", only: str = "") -> Worker:
        ledger = str(self.folder / EFFECTS) if self.kind.effects_elsewhere else ""
        log = self.folder / "workers.log"
        variant, way = self.manner
        job = Job(
            self.name, self.url, self.broker_url, ledger, notes, log, only, variant, way == RELAY, kill_at, self.seed
        )
        ends = time.monotonic() + 2 * LIMIT
        while True:
            worker = await asyncio.to_thread(Worker, job)
            self.workers.append(worker)
            if await worker.ready() or worker.status == -signal.SIGKILL:
                return worker
            # It could not reach a server that was killed as well; whoever runs it starts it again.
            self.workers.remove(worker)
            if time.monotonic() > ends:
                raise AssertionError(f"no worker becomes ready; the last said {_text(log)[-300:]}")
            await asyncio.sleep(0.3)

    async def stop(self) -> list[str]:
        """Stop the workers with SIGTERM; what was wrong with how they ended."""
        workers, self.workers = self.workers, []
        ended = await asyncio.gather(*(worker.stop() for worker in workers))
        return [f"a worker ended with status {status}" for status in ended if status not in (0, -signal.SIGKILL)]

    # ── what goes in ────────────────────────────────────────────────────────────────────────────────────────────────

    def orders(self, prefix: str, count: int) -> list[Message]:
        return [
            self._wrapper.message(
                OrderPlaced(
                    cart=f"cart-{number % CARTS}",
                    order_id=f"{prefix}{number:03}",
                    sku=f"sku-{number % SKUS}",
                    flaky=number % 23 == 7,
                )
            )
            for number in range(count)
        ]

    async def publish(self, messages: Sequence[Message]) -> None:
        """Return once each is stored, whatever happens to the broker meanwhile."""
        left = list(messages)
        async with asyncio.timeout(2 * LIMIT):
            while left:
                errors = await self._front.active.broker.publish(left, timeout=3.0)
                left = [message for message, error in zip(left, errors, strict=True) if error is not None]
                if left:
                    await asyncio.sleep(0.1)

    async def publish_late(self, message: Message, written: asyncio.Event, late: Callable[[], Awaitable[None]]) -> None:
        """Write it into a transaction of our own that stays open until it is late; return once it has committed."""
        assert self.kind.late is not None
        async with asyncio.timeout(2 * LIMIT):
            while True:
                try:
                    async with self.kind.late(self.url) as tx:
                        await self._store.emit(tx, [message])
                        written.set()
                        await late()
                    return
                except Exception:
                    await asyncio.sleep(0.2)  # the database was killed: nobody knows, so once more under its id


def again(message: Message) -> Message:
    """The same event, published a second time where the broker does not recognize it."""
    return msgspec.structs.replace(message, id=f"{message.id}-again")


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
