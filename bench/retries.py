"""What a thousand events that fail and wait for ten minutes cost the healthy ones beside them, as ratios.

``python -m bench.retries [--events 20000] [--rounds 3]``

In each round three services consume the same number of healthy events, each from a stream and a server of its own:
alone; with a thousand among them that fail for the first time; and while a thousand wait that have failed before.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tidings import Event, Retry, Service
from tidings.brokers.nats.embedded import EmbeddedServer

FAILING = 1000
DELAY = 600.0
TARGET = 0.9
ALONE, AMONG, WAITING = "alone", "among 1,000 that fail", "while 1,000 wait"


class Placed(Event, type="bench.placed", version=1, key="order_id"):
    order_id: str
    fails: bool = False


class Consumer:
    """A service whose handler counts what is healthy."""

    def __init__(self, url: str) -> None:
        self.healthy = self.failed = 0
        self.began = 0.0
        self._changed = asyncio.Event()
        self.service = Service("bench", broker=url, publishes=[Placed])

        @self.service.on(
            Placed, idempotent=True, order=None, retry=Retry(first=DELAY, most=DELAY), kill_switch=None, concurrency=2
        )
        async def take(placed: Placed) -> None:
            self._changed.set()
            if placed.fails:
                self.failed += 1
                raise ConnectionError("not for the next ten minutes")
            self.began = self.began or time.perf_counter()
            self.healthy += 1

    async def until(self, healthy: int, failed: int = 0) -> None:
        async with asyncio.timeout(300):
            while self.healthy < healthy or self.failed < failed:
                self._changed.clear()
                await self._changed.wait()

    async def settled(self) -> None:
        """Wait until nothing is open, and all that failed waits."""
        (worker,) = self.service.active.workers
        async with asyncio.timeout(60):
            while (backlog := await worker.backlog()) is None or backlog.in_flight:  # noqa: ASYNC110  # it is asked
                await asyncio.sleep(0.05)


async def fill(url: str, events: Sequence[Placed]) -> None:
    front = Service("front", broker=url, publishes=[Placed])
    async with front.running():
        for at in range(0, len(events), 1000):
            errors = await front.publish_many(events[at : at + 1000], timeout=60)
            if failed := [error for error in errors if error is not None]:
                raise failed[0]


async def rate(what: str, count: int) -> float:
    """Healthy events a second, from the first to the last of them."""
    healthy = [Placed(order_id=f"{number % 1000}") for number in range(count)]
    failing = [Placed(order_id=f"{number}", fails=True) for number in range(FAILING)]
    with tempfile.TemporaryDirectory(prefix="tidings-bench-") as folder:
        server = EmbeddedServer(Path(folder) / "nats")
        url = await server.start()
        try:
            if what == WAITING:
                await fill(url, failing)
                before = Consumer(url)
                async with before.service.running():
                    await before.until(0, FAILING)
                    await before.settled()
            every = count // FAILING
            mixed = [one for at in range(FAILING) for one in (*healthy[at * every : (at + 1) * every], failing[at])]
            mixed += healthy[FAILING * every :]
            await fill(url, mixed if what == AMONG else healthy)
            consumer = Consumer(url)
            async with consumer.service.running():
                await consumer.until(count)
                return count / (time.perf_counter() - consumer.began)
        finally:
            await server.stop()


async def measure(events: int, rounds: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {ALONE: [], AMONG: [], WAITING: []}
    for number in range(rounds):
        for what, found in rates.items():
            found.append(await rate(what, events))
            print(f"round {number + 1}: {what:<24} {found[-1]:>10,.0f} healthy events/s", flush=True)
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    logging.getLogger("tidings").setLevel(logging.CRITICAL)  # a line for each failure is another matter
    rates = asyncio.run(measure(given.events, given.rounds))
    ratios = {
        what: statistics.median(one / other for one, other in zip(rates[what], rates[ALONE], strict=True))
        for what in (AMONG, WAITING)
    }
    for what, ratio in ratios.items():
        print(f"{what} / alone = {ratio:.2f}" + (f"   (target {TARGET})" if what == WAITING else ""))
    return 0 if ratios[WAITING] >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
