"""The stage of a bad day: the shop's stock on a server of its own, a load, and a ledger that judges."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import nats
import nats.js.api

from examples.shop import ledger
from examples.shop.events import OrderPlaced
from tidings.brokers.nats.embedded import EmbeddedServer
from tidings.envelope import envelope_of, to_structured
from tools.drill_kit import ROOT, TIDINGS, Kit, Process, until

HANDLER = "stock.reserve"


@dataclass(frozen=True)
class Tally:
    lost: int
    twice: int


class Load:
    """Orders published by the command line, bit by bit; what was not stored is published again under its id."""

    def __init__(self, kit: Kit, broker: str, count: int, per_second: float, name: str = "order") -> None:
        orders = [
            OrderPlaced(order_id=f"{name}-{number:05}", sku="tea", quantity=1, placed_at=datetime.now(UTC))
            for number in range(count)
        ]
        envelopes = [envelope_of(order, "drill") for order in orders]
        self._lines = {one.id: to_structured(one) + b"\n" for one in envelopes}
        self._keys = {one.id: one.key or "" for one in envelopes}
        self._kit, self._broker, self._per_second = kit, broker, per_second
        self._answers = kit.folder / f"answers-{name}.ndjson"
        self.stored: set[str] = set()
        """The keys of the orders whose publish was answered with success."""
        self.refusals = 0
        self._thread = threading.Thread(target=self._run, name=f"load {name}", daemon=True)

    def start(self) -> Load:
        self._thread.start()
        return self

    def finish(self, seconds: float = 90.0) -> set[str]:
        """Wait until all is stored."""
        self._thread.join(seconds)
        return self.stored

    def _run(self) -> None:
        left, end = list(self._lines), time.monotonic() + 80
        while left and time.monotonic() < end:
            done = self._publish(left)
            self.stored |= {self._keys[one] for one in done}
            left = [one for one in left if one not in done]
            if left:
                self.refusals += 1
                time.sleep(0.3)

    def _publish(self, ids: Sequence[str]) -> set[str]:
        command = [*TIDINGS, "publish", "examples.shop.events", "--ndjson", "-", "--json", "--broker", self._broker]
        with self._answers.open("wb") as answers, (self._kit.folder / "load.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=answers, stderr=log, cwd=ROOT, env=self._kit.env()
            )
            assert process.stdin is not None
            try:
                for one in ids:
                    process.stdin.write(self._lines[one])
                    process.stdin.flush()
                    time.sleep(1 / self._per_second)
                process.stdin.close()
            except BrokenPipeError:
                pass  # it has ended, and its answers say how far it came
            process.wait(60)
        lines = [json.loads(line) for line in self._answers.read_text().splitlines()]
        return {line["id"] for line in lines if line.get("stored")}


class Shop:
    """A server that `tidings up` keeps, workers of the stock, and their ledger."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.server = kit.folder / "nats"
        self.broker = f"embedded:{self.server}?ack_wait=3s"
        self.database = kit.folder / "stock.db"
        ledger.create(self.database)
        self.up = kit.start("up", "--folder", str(self.server), "--json")
        self.url = kit.url(self.up, self.server)

    @property
    def server_pid(self) -> int | None:
        """The process of the server that runs now; None if none does."""
        return EmbeddedServer(self.server).pid

    def worker(self) -> Process:
        """Start one, and wait until it is ready."""
        arguments = ("examples.shop.stock:stock", "--broker", self.broker, "--store", f"sqlite:///{self.database}")
        process = self.kit.start("run", *arguments, "--port", "0", "--json", cwd=ROOT)
        process.ready()
        return process

    def load(self, count: int, per_second: float = 200.0, name: str = "order") -> Load:
        return Load(self.kit, self.broker, count, per_second, name).start()

    @property
    def applied(self) -> int:
        return sum(ledger.effects(self.database, HANDLER).values())

    def wait_applied(self, count: int, seconds: float = 60.0) -> None:
        assert until(lambda: self.applied >= count, seconds), f"{self.applied} of {count} applied in {seconds:.0f} s"

    def judge(self, stored: set[str], seconds: float = 45.0) -> Tally:
        """Wait until everything is applied and nothing is open any more; then count."""
        until(lambda: not stored - set(ledger.effects(self.database, HANDLER)), seconds)
        until(lambda: not backlog(self.url), 20, 0.3)
        effects = ledger.effects(self.database, HANDLER)
        lost = sum(1 for key in stored if not effects[key])
        return Tally(lost, sum(count - 1 for count in effects.values() if count > 1))

    def dead(self) -> list[dict[str, Any]]:
        done = self.kit.tidings("dead", "list", "--json", "--broker", self.broker)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


def backlog(url: str) -> int:
    """How many messages wait at, or are open at, any position of the server; 1 while it cannot be asked."""
    try:
        return asyncio.run(_backlog(url))
    except (OSError, TimeoutError, nats.errors.Error):
        return 1


async def _backlog(url: str) -> int:
    async with asyncio.timeout(5):
        client = await nats.connect(url, allow_reconnect=False)
        try:
            found = 0
            jetstream = client.jetstream()
            for stream in await jetstream.streams_info():
                for one in await jetstream.consumers_info(stream.config.name or ""):
                    found += (one.num_pending or 0) + (one.num_ack_pending or 0)
            return found
        finally:
            await client.close()


def send_raw(url: str, subject: str, bodies: Sequence[bytes]) -> None:
    """Store bytes as a stranger would, who knows nothing of Tidings."""

    async def send() -> None:
        async with asyncio.timeout(15):
            client = await nats.connect(url, allow_reconnect=False)
            try:
                for body in bodies:
                    await client.jetstream().publish(subject, body)
            finally:
                await client.close()

    asyncio.run(send())
