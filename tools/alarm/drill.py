"""The drill itself. Every alert that fires meanwhile is written down, so that one too many is seen."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from nats.aio.client import Client

from tidings import Service, TidingsError
from tidings.observe.alerts import rules
from tools.alarm.process import Process
from tools.alarm.shop import RELEASE, OrderPlaced, StockReserved
from tools.services.nats import Nats
from tools.services.prometheus import Prometheus

WINDOWS = 0.05
"""Of the windows of the rules: a minute is three seconds."""
QUIET = 12.0
"""Seconds of healthy load in which nothing may fire."""
FIRES_WITHIN = 60.0
CLEARS_WITHIN = 120.0
FIGURES = (
    "tidings_broker_connected",
    "tidings_loop_lag_seconds",
    "tidings_outbox_waiting",
    "tidings_outbox_oldest_seconds",
    "tidings_call_overdue_seconds",
    "tidings_published_total",
    "tidings_backlog_oldest_seconds",
    "up",
)
"""What explains an alert that nobody wanted."""
EVERY = 0.1
"""Seconds between two orders."""


@dataclass(frozen=True)
class Incident:
    what: str
    alert: str
    breaks: Callable[[], Awaitable[None]]
    mends: Callable[[], Awaitable[None]]


@dataclass
class Told:
    """What Prometheus told of one incident."""

    what: str
    alert: str
    fired: set[str]
    fired_after: float
    cleared_after: float

    @property
    def right(self) -> bool:
        return self.fired == {self.alert}


class Drill:
    """A server, a service and Prometheus, and a shop front that publishes all the time."""

    def __init__(self, folder: Path, say: Callable[[str], object] = print) -> None:
        self.folder, self._say = folder, say
        self.database = folder / "stock.db"
        self.release = folder / "release"
        self.nats = Nats(folder / "nats")
        self.worker = Process(
            "tools.alarm.shop:stock",
            folder,
            broker=self.nats.url,
            store=f"sqlite:///{self.database}",
            environment={RELEASE: str(self.release)},
        )
        self.prometheus = Prometheus(folder / "prometheus", {"shop": self.worker.address}, rules(windows=WINDOWS))
        self.front = Service("front", publishes=[OrderPlaced])
        self.accepted: set[str] = set()
        self.poisoned: set[str] = set()
        self._numbers = itertools.count()

    # ── what breaks ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def incidents(self) -> Sequence[Incident]:
        return (
            Incident("a call that does not end", "TidingsHandlerStuck", self._stick, self._unstick),
            Incident("a burst of poison", "TidingsDeadLetters", self._poison, _nothing),
            Incident("the broker is down", "TidingsBrokerDown", self._stop_broker, self._start_broker),
            Incident("the outbox is blocked", "TidingsOutboxStuck", self._block_outbox, self._unblock_outbox),
            Incident("the process is killed", "TidingsScrapeMissing", self._kill, self._start),
        )

    async def _stick(self) -> None:
        await self._place("stuck")

    async def _unstick(self) -> None:
        self.release.touch()

    async def _poison(self) -> None:
        for _ in range(30):
            self.poisoned.add(await self._place("poison"))

    async def _stop_broker(self) -> None:
        await asyncio.to_thread(self.nats.stop, signal.SIGKILL)

    async def _start_broker(self) -> None:
        await asyncio.to_thread(self.nats.start)

    async def _block_outbox(self) -> None:
        """Somebody removes the stream that the events of the outbox belong to."""
        client = Client()
        await client.connect(self.nats.url)
        await client.jetstream().delete_stream("stock")
        await client.close()

    async def _unblock_outbox(self) -> None:
        """Whoever publishes these events makes their stream, when it starts."""
        async with Service("mender", broker=self.nats.url, publishes=[StockReserved]).running():
            pass

    async def _kill(self) -> None:
        await asyncio.to_thread(self.worker.stop, signal.SIGKILL)

    async def _start(self) -> None:
        await asyncio.to_thread(self.worker.start)

    # ── the course of it ────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> list[Told]:
        with sqlite3.connect(self.database) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS applied (id TEXT)")
        connection.close()
        async with AsyncExitStack() as stack:
            for program in (self.nats, self.worker, self.prometheus):
                await asyncio.to_thread(program.start)
                stack.push_async_callback(asyncio.to_thread, program.stop, signal.SIGTERM)
            await stack.enter_async_context(self.front.running(broker=self.nats.url))
            load = asyncio.create_task(self._load())
            stack.callback(load.cancel)
            fired = await self._watch(QUIET, lambda now: False)
            assert not fired, f"it fires while all is well: {fired}"
            told = [await self._incident(one) for one in self.incidents]
            load.cancel()
            await self._settle_down()
        return told

    async def _incident(self, incident: Incident) -> Told:
        began = start = time.monotonic()
        await incident.breaks()
        fired = await self._watch(FIRES_WITHIN, lambda now: incident.alert in now, incident.alert)
        fired_after = time.monotonic() - began
        fired |= await self._watch(4.0, lambda now: False, incident.alert)  # another one may be slower
        began = time.monotonic()
        await incident.mends()
        fired |= await self._watch(CLEARS_WITHIN, lambda now: not now, incident.alert)
        await asyncio.to_thread(self._near_misses, incident.alert, time.monotonic() - start)
        told = Told(incident.what, incident.alert, fired, fired_after, time.monotonic() - began)
        left = await asyncio.to_thread(self.prometheus.firing)
        assert not left, f"{incident.what}: does not clear: {set(left)}"
        self._say(
            f"{'right' if told.right else 'WRONG'}  {told.what}: {', '.join(sorted(fired)) or 'nothing'} after"
            f" {told.fired_after:.0f} s, clear {told.cleared_after:.0f} s after it was mended"
        )
        return told

    async def _watch(self, seconds: float, enough: Callable[[set[str]], bool], wanted: str = "") -> set[str]:
        """All that fires, until it is enough or the time is over."""
        fired: set[str] = set()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            now = set(await asyncio.to_thread(self.prometheus.firing))
            for name in now - fired - {wanted}:
                await asyncio.to_thread(self._explain, name)
            fired |= now
            if enough(now):
                break
            await asyncio.sleep(0.5)
        return fired

    def _explain(self, name: str) -> None:
        """Say of an alert that nobody wanted what its figures were in the last half minute."""
        told = [one for one in self.prometheus.ask("alerts")["alerts"] if one["labels"]["alertname"] == name]
        self._say(f"  {name} fires, which was not wanted: {[(one['activeAt'], one['value']) for one in told]}")
        for figure in FIGURES:
            for one in self.prometheus.query(f"{figure}[30s]"):
                values = " ".join(f"{float(value):.3g}" for _, value in one["values"])
                self._say(f"    {figure} {values}")

    def _near_misses(self, wanted: str, seconds: float) -> None:
        """Say what nearly fired as well: were it often so, one of them would some day."""
        for one in self.prometheus.query(f'count_over_time(ALERTS{{alertstate="pending"}}[{seconds:.0f}s])'):
            if (name := one["metric"]["alertname"]) != wanted:
                self._say(f"  nearly: {name} was pending for {one['value'][1]} s")

    # ── the load and the ledger ─────────────────────────────────────────────────────────────────────────────────────

    async def _load(self) -> None:
        while True:
            try:
                await self._place("done")
            except TidingsError:
                pass  # the broker is away, which is part of the drill
            await asyncio.sleep(EVERY)

    async def _place(self, wanted: str) -> str:
        order = OrderPlaced(order_id=f"{wanted}-{next(self._numbers)}", wanted=wanted)
        await self.front.publish(order)
        self.accepted.add(order.order_id)
        return order.order_id

    def applied(self) -> Counter[str]:
        connection = sqlite3.connect(self.database, timeout=10)
        try:
            return Counter(dict(connection.execute("SELECT id, count(*) FROM applied GROUP BY id").fetchall()))
        finally:
            connection.close()

    async def _settle_down(self) -> None:
        end = time.monotonic() + 60
        while self.lost and time.monotonic() < end:  # noqa: ASYNC110  # another process writes the ledger
            await asyncio.sleep(0.2)

    @property
    def lost(self) -> int:
        return len(self.accepted - self.poisoned - set(self.applied()))

    @property
    def twice(self) -> int:
        return sum(count > 1 for count in self.applied().values())


async def _nothing() -> None:
    """It passes by itself."""
