"""A folder with a small shop in it, and the real command line run there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tools.drill_kit import end_all_of

LIMIT = 60.0

EVENTS = """
from tidings import Event

class OrderPlaced(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    wanted: str = "done"
"""

STOCK = """
import asyncio, logging, os, time
from tidings import Retry, Service
from shop.events import OrderPlaced

stock = Service("stock")

@stock.on(OrderPlaced, idempotent=True, order=None, retry=Retry(attempts=2, first=0.05))
async def reserve(order: OrderPlaced) -> None:
    logging.getLogger("shop").info("reserving")
    if order.wanted == "fail":
        raise ValueError("it cannot be done")
    if order.wanted == "slow":
        await asyncio.sleep(1.5)
    if order.wanted == "block":
        time.sleep(100)
    with open("ledger", "a") as ledger:
        ledger.write(f"{order.order_id} {os.getpid()}\\n")
"""


class Result:
    """What a command left."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def __repr__(self) -> str:
        return f"status {self.status}\n{self.out}\n--- stderr\n{self.err}"

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Shell:
    """Runs `tidings` in a folder, as a person or an orchestrator would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS_")}
        self._started: list[Running] = []
        self.write("shop/events.py", EVENTS)
        self.write("shop/stock.py", STOCK)

    def write(self, place: str, text: str) -> None:
        path = self.folder / place
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def run(self, *arguments: str, stdin: str = "", **environment: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "tidings.cli", *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str, **environment: str) -> Running:
        running = Running(self.folder, arguments, {**self.environment, **environment}, len(self._started))
        self._started.append(running)
        return running

    def embedded(self) -> Running:
        """A server on this folder, which all later commands use."""
        self.environment["TIDINGS_BROKER"] = "embedded:"
        return self.start("up").until("is ready on")

    def applied(self) -> list[str]:
        """The orders that the handler saw to its end, with every repeat."""
        ledger = self.folder / "ledger"
        return [line.split()[0] for line in ledger.read_text().splitlines()] if ledger.exists() else []

    def close(self) -> None:
        try:
            for one in reversed(self._started):
                one.end()
        finally:
            end_all_of(self.folder)


class Running:
    """A command that goes on, with what it has printed so far."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], environment: dict[str, str], number: int) -> None:
        self._out, self._err = folder / f"out-{number}", folder / f"err-{number}"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tidings.cli", *arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def pid(self) -> int:
        return self.process.pid

    def until(self, text: str, *, err: bool = False) -> Running:
        """Wait until it has printed this."""
        await_(lambda: text in (self.err if err else self.out) or self.process.poll() is not None)
        assert text in (self.err if err else self.out), f"{self.process.poll()}\n{self.out}\n{self.err}"
        return self

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(LIMIT)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.send(number)
        return self.wait()

    def end(self) -> None:
        """At the end of a test: with grace, so that the server goes too."""
        if self.process.poll() is None:
            self.send(signal.SIGTERM)
        try:
            self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def await_(true: Any, seconds: float = LIMIT) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=LIMIT) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
