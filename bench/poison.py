"""How much later the healthy nine tenths of a load finish when the tenth of it is poison.

``python -m bench.poison [--messages 100000] [--rounds 3]``

In each round a service consumes the healthy ones alone, and then with the poison spread evenly among them, each time
from a server of its own: bytes that are no event; events whose handler says `Dead`; events whose handler fails each
time, with the retries that a handler has unless it says otherwise. The last only without an order: with one, what
follows such an event waits for all its attempts, and is meant to.
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

from bench.verdict import Verdicts
from tidings import Dead, Event, Service
from tidings.brokers.nats.embedded import EmbeddedServer
from tidings.delivery import Message, Route

ORDERS = (False, True)
ALONE = "alone"
GARBAGE, SAYS_DEAD, FAILS = "bytes that are no event", "the handler says Dead", "the handler always fails"
TARGET = 1.5


class Placed(Event, type="bench.placed", version=1, key="order_id"):
    order_id: str
    poison: str = ""


class Consumer:
    """A service whose handler counts what is healthy."""

    def __init__(self, url: str, ordered: bool) -> None:
        self.healthy = 0
        self.began = 0.0
        self._changed = asyncio.Event()
        self.service = Service("bench", broker=url, publishes=[Placed])

        @self.service.on(Placed, idempotent=True, order="key" if ordered else None)
        async def take(placed: Placed) -> None:
            self.began = self.began or time.perf_counter()
            if placed.poison == SAYS_DEAD:
                raise Dead("nobody can do this")
            if placed.poison:
                raise ValueError("this never works")
            self.healthy += 1
            self._changed.set()

    async def until(self, healthy: int) -> None:
        async with asyncio.timeout(300):
            while self.healthy < healthy:
                self._changed.clear()
                await self._changed.wait()


def mixed(healthy: int, poison: str) -> list[Placed | None]:
    """Each tenth is poison; None stands for bytes that are no event."""
    found: list[Placed | None] = []
    for number in range(healthy):
        found.append(Placed(order_id=f"{number % 1000}"))
        if poison != ALONE and number % 9 == 4:
            found.append(None if poison == GARBAGE else Placed(order_id=f"{number % 1000}", poison=poison))
    return found


async def fill(url: str, events: Sequence[Placed | None]) -> None:
    front = Service("front", broker=url, publishes=[Placed])
    async with front.running():
        for at in range(0, len(events), 1000):
            part = events[at : at + 1000]
            errors = list(await front.publish_many([one for one in part if one is not None], timeout=60))
            garbage = [
                Message(
                    route=Route.EVENT, stream="bench", type="bench.placed", key=f"{n}", id=f"no-event-{at}-{n}",
                    body=b"\x00 is no event", headers={},
                )
                for n, one in enumerate(part) if one is None
            ]  # fmt: skip
            errors += await front.active.broker.publish(garbage, timeout=60)
            if failed := [error for error in errors if error is not None]:
                raise failed[0]


async def seconds(poison: str, healthy: int, ordered: bool) -> float:
    """From the first event to the last healthy one."""
    with tempfile.TemporaryDirectory(prefix="tidings-bench-") as folder:
        server = EmbeddedServer(Path(folder) / "nats")
        url = await server.start()
        try:
            await fill(url, mixed(healthy, poison))
            consumer = Consumer(url, ordered)
            async with consumer.service.running():
                await consumer.until(healthy)
                return time.perf_counter() - consumer.began
        finally:
            await server.stop()


async def measure(messages: int, rounds: int) -> dict[tuple[str, bool], list[float]]:
    """For each kind of poison and order, how many times as long it took, in each round."""
    healthy = messages * 9 // 10
    ratios: dict[tuple[str, bool], list[float]] = {}
    for number in range(rounds):
        for ordered in ORDERS:
            alone = await seconds(ALONE, healthy, ordered)
            for poison in (GARBAGE, SAYS_DEAD) if ordered else (GARBAGE, SAYS_DEAD, FAILS):
                found = await seconds(poison, healthy, ordered)
                ratios.setdefault((poison, ordered), []).append(found / alone)
                order = "order kept" if ordered else "order=None"
                print(f"round {number + 1}: {poison}, {order}: {found:.2f} s, alone {alone:.2f} s", flush=True)
    return ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    logging.getLogger("tidings").setLevel(logging.CRITICAL)  # a line for each failure is another matter
    ratios = asyncio.run(measure(given.messages, given.rounds))
    print(f"{given.messages:,} messages, a tenth of them poison; medians of {given.rounds} rounds")
    verdicts = Verdicts()
    for (poison, ordered), found in ratios.items():
        order = "order kept" if ordered else "order=None"
        verdicts.add(f"{poison}, {order}: of the time alone", statistics.median(found), TARGET, wanted="at most")
    return verdicts.status


if __name__ == "__main__":
    sys.exit(main())
