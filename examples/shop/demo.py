"""The demo: a shop of three services on a bad day, and a table at the end that says what became of every order.

It publishes some thousands of orders. Meanwhile it repeats some of them, kills workers and the server with SIGKILL,
and sends garbage, an unknown version, orders whose handler fails twice, and orders whose handler never succeeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from examples.shop import ledger, trouble
from examples.shop.events import OrderPlaced
from examples.shop.report import Report, Screen, Stage
from examples.shop.workers import Workers
from tidings import Service, WorldError
from tidings.brokers.nats.embedded import EmbeddedServer
from tidings.dead_letters import Letter, list_letters
from tidings.delivery import Message

PROCESSES = {"stock": 2, "payments": 2, "orders": 1}
STAGES = (("stock", "stock.reserve"), ("payments", "payments.take"), ("orders", "orders.close"))
WAVE = 25
QUIET = 25.0
"""Seconds without any progress after which the demo stops waiting and reports what is there."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    orders: int = 3000
    per_second: float = 400.0
    seed: int = 7
    folder: Path | None = None
    broker: str = ""
    """A broker that runs already, which is not killed; otherwise a nats-server of the demo's own, which is."""
    forgetful: bool = False
    """Turn `once` off in the stock, to see the comparison fail."""


class Demo:
    """One run."""

    def __init__(self, options: Options, folder: Path, screen: Screen) -> None:
        self.options, self.folder, self.screen = options, folder, screen
        self.rng = random.Random(options.seed)
        self.broker = options.broker or f"embedded:{folder / 'nats'}?ack_wait=5s"
        self.server = None if options.broker else EmbeddedServer(folder / "nats")
        self.databases = {name: folder / f"{name}.db" for name in PROCESSES}
        env = {"SHOP_FORGETFUL": "1"} if options.forgetful else {}
        stores = {name: f"sqlite:///{path}" for name, path in self.databases.items()}
        self.workers = Workers(self.broker, stores, folder, env)
        self.front = Service("orders-front", broker=self.broker, publishes=[OrderPlaced])
        self.accepted: set[str] = set()
        self.older: set[str] = set()
        """The dead letters that were there before."""
        self.repeated = self.refused = self.server_kills = self.dead = 0

    async def run(self) -> Report:
        """Start everything, do the damage, wait until all is quiet, compare."""
        for path in self.databases.values():
            ledger.create(path)
        self.screen.say("starting the workers …" if self.server is None else "starting nats-server and the workers …")
        async with self._own_server(), self.front.running():
            self.older = {letter.id for letter in await list_letters(self.front.active.broker, state=None)}
            try:
                for name, count in PROCESSES.items():
                    self.workers.start(name, count)
                await self.workers.wait_ready(sum(PROCESSES.values()), 60)
                orders, broken = trouble.make_orders(self.options.orders, self.rng)
                await self._publish(orders)
                await self._wait_until_quiet(broken)
                return await self._compare(broken)
            finally:
                await self.workers.stop()

    @contextlib.asynccontextmanager
    async def _own_server(self) -> AsyncIterator[None]:
        if self.server is None:
            yield
            return
        await self.server.start()
        watching = asyncio.create_task(self.server.watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await self.server.stop()

    # ── the load and the damage ─────────────────────────────────────────────────────────────────────────────────────

    async def _publish(self, orders: Sequence[OrderPlaced]) -> None:
        damage = trouble.schedule(
            [
                self._send_garbage,
                lambda: self._kill_worker("stock"),
                self._kill_server,
                lambda: self._kill_worker("payments"),
                self._send_unknown_versions,
                lambda: self._kill_worker("orders"),
                lambda: self._kill_worker("stock"),
                self._kill_server,
                lambda: self._kill_worker("payments"),
            ],
            len(orders),
        )
        began = time.monotonic()
        for at in range(0, len(orders), WAVE):
            while damage and damage[0][0] <= at:
                what = damage.pop(0)[1]()
                self.screen.say(await what if inspect.isawaitable(what) else what)
            wave = orders[at : at + WAVE]
            await self._until_stored(wave)
            await self._repeat([order for order in wave if self._is_repeated(order)])
            self._show()
            ahead = (at + len(wave)) / self.options.per_second - (time.monotonic() - began)
            await asyncio.sleep(max(0.0, ahead))

    async def _until_stored(self, wave: Sequence[OrderPlaced]) -> None:
        """What was not stored is published again, the same object under the same id, until it is."""
        left = list(wave)
        while left:
            errors = await self.front.publish_many(left, timeout=5)
            self.accepted |= {order.order_id for order, error in zip(left, errors, strict=True) if error is None}
            left = [order for order, error in zip(left, errors, strict=True) if error is not None]
            if left:
                self.refused += len(left)
                await asyncio.sleep(0.2)

    def _is_repeated(self, order: OrderPlaced) -> bool:
        """Not those that are meant to die: each of their copies would be a letter of its own."""
        return order.sku != "broken" and self.rng.random() < trouble.DUPLICATE_SHARE

    async def _repeat(self, orders: Sequence[OrderPlaced]) -> None:
        if orders:
            await self._send([trouble.duplicate(order, self.repeated + n) for n, order in enumerate(orders)])
            self.repeated += len(orders)

    async def _send(self, messages: Sequence[Message]) -> None:
        left = list(messages)
        while left:
            errors = await self.front.active.broker.publish(left, timeout=5)
            left = [message for message, error in zip(left, errors, strict=True) if error is not None]
            if left:
                await asyncio.sleep(0.2)

    async def _send_garbage(self) -> str:
        await self._send(trouble.garbage(self.rng))
        return f"sent {trouble.GARBAGE} messages of garbage"

    async def _send_unknown_versions(self) -> str:
        await self._send(trouble.unknown_versions())
        return f"sent {trouble.UNKNOWN_VERSIONS} events of a version nobody knows"

    def _kill_worker(self, service: str) -> str:
        pid = self.workers.kill_one(service, self.rng)
        return f"no worker of {service} to kill" if pid is None else f"killed a worker of {service} (SIGKILL {pid})"

    def _kill_server(self) -> str:
        if self.server is None:
            return "left the broker alone: it is not the demo's own"
        pid = self.server.pid
        if pid is None:
            return "nats-server was not there to kill"
        os.kill(pid, signal.SIGKILL)
        self.server_kills += 1
        return f"killed nats-server (SIGKILL {pid})"

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _stages(self, broken: set[str]) -> list[Stage]:
        wanted = self.accepted - broken
        return [
            Stage.compare(handler, wanted, ledger.effects(self.databases[service], handler))
            for service, handler in STAGES
        ]

    async def _wait_until_quiet(self, broken: set[str]) -> None:
        meant = trouble.GARBAGE + trouble.UNKNOWN_VERSIONS + trouble.BROKEN
        last: object = None
        since = time.monotonic()
        while time.monotonic() - since < QUIET:
            stages = self._stages(broken)
            self.dead = len(await self._letters())
            now = ([(stage.applied, stage.twice) for stage in stages], self.dead, self.workers.outcomes["duplicate"])
            if now != last:
                last, since = now, time.monotonic()
            done = all(stage.lost == 0 for stage in stages) and self.dead >= meant
            if done and time.monotonic() - since > 2.0:
                return
            self._show()
            await asyncio.sleep(0.5)

    async def _letters(self) -> list[Letter]:
        return await list_letters(self.front.active.broker, state=None, where=lambda one: one.id not in self.older)

    async def _compare(self, broken: set[str]) -> Report:
        letters = await self._letters()
        meant = [one for one in letters if one.code in ("not-json", "unknown-version") or (one.key or "") in broken]
        return Report(
            stages=self._stages(broken),
            published=len(self.accepted - broken),
            refused=self.refused,
            repeated=self.repeated,
            retried=self.workers.outcomes["retry"],
            redelivered=self.workers.outcomes["duplicate"],
            dead=len(letters),
            dead_expected=trouble.GARBAGE + trouble.UNKNOWN_VERSIONS + len(broken),
            dead_unmeant=len(letters) - len(meant),
            worker_kills=self.workers.killed,
            server_kills=self.server_kills,
        )

    def _show(self) -> None:
        applied = [sum(ledger.effects(self.databases[service], handler).values()) for service, handler in STAGES]
        self.screen.show(
            published=len(self.accepted),
            total=self.options.orders + trouble.BROKEN,
            applied=applied,
            retried=self.workers.outcomes["retry"],
            redelivered=self.workers.outcomes["duplicate"],
            dead=self.dead,
        )


async def run(options: Options) -> int:
    """Run the demo; 0 only if nothing was lost, nothing applied twice, and every dead letter was meant."""
    with contextlib.ExitStack() as stack:
        folder = options.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidings-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
        logs = logging.FileHandler(folder / "demo.log")
        logging.getLogger("tidings").addHandler(logs)
        stack.callback(logging.getLogger("tidings").removeHandler, logs)
        stack.callback(logs.close)
        screen = stack.enter_context(Screen([handler for _, handler in STAGES]))
        try:
            report = await Demo(options, folder, screen).run()
        except WorldError as error:
            screen.say(f"the demo cannot go on: {error}")
            return 4
    report.print()
    return 0 if report.good else 1
