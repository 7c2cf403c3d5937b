"""How much later the healthy nine tenths of a load finish when the tenth of it is poison.

``python -m bench.poison [--messages 100000] [--rounds 3]``

In each round a service consumes the healthy ones alone, and then with the poison spread evenly among them, each time
from a server of its own: bytes that are no event; events whose handler says `Dead`; events whose handler fails each
time, with the retries that a handler has unless it says otherwise. The last only without an order: with one, what
follows such an event waits for all its attempts, and is meant to.

The handler updates a row of PostgreSQL, once for each event, in statements that are awaited; the rows are checked after
each run. A handler that does nothing is measured too, and has no target: there an event is 16 microseconds of work, and
a dead letter is a message that the server syncs to its disk.
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
from typing import Literal

import asyncpg

from bench.verdict import Verdicts
from tidings import Dead, Event, Service
from tidings.brokers.nats.embedded import EmbeddedServer
from tidings.delivery import Done, Message, Route
from tidings.ports import Settled
from tools.services.postgres import Postgres

ORDERS = (False, True)
ALONE = "alone"
GARBAGE, SAYS_DEAD, FAILS = "bytes that are no event", "the handler says Dead", "the handler always fails"
EFFECT, NOTHING = "a row is updated", "nothing is done"
KEYS = 1000
TARGET = 1.5


class Placed(Event, type="bench.placed", version=1, key="order_id"):
    order_id: str
    poison: str = ""


class Consumer:
    """A service that notes when its first event came, and how many are done."""

    def __init__(self, url: str, store: str, ordered: bool) -> None:
        self.healthy = 0
        self.began = 0.0
        self._changed = asyncio.Event()
        self.service = Service("bench", broker=url, publishes=[Placed], store=store or None)
        self.service.observers.append(self)
        order: Literal["key"] | None = "key" if ordered else None

        def check(placed: Placed) -> None:
            if placed.poison == SAYS_DEAD:
                raise Dead("nobody can do this")
            if placed.poison:
                raise ValueError("this never works")

        async def count(placed: Placed, db: asyncpg.Connection) -> None:
            check(placed)
            await db.execute("UPDATE counted SET events = events + 1 WHERE id = $1", int(placed.order_id))

        async def nothing(placed: Placed) -> None:
            check(placed)

        if store:
            self.service.on(Placed, order=order)(count)
        else:
            self.service.on(Placed, idempotent=True, order=order)(nothing)

    def received(self, position: str, count: int) -> None:
        self.began = self.began or time.perf_counter()

    def settled(self, position: str, batch: Sequence[Settled], seconds: float) -> None:
        self.healthy += sum(isinstance(one.outcome, Done) for one in batch)
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
        found.append(Placed(order_id=f"{number % KEYS}"))
        if poison != ALONE and number % 9 == 4:
            found.append(None if poison == GARBAGE else Placed(order_id=f"{number % KEYS}", poison=poison))
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


async def seconds(poison: str, healthy: int, store: str, ordered: bool) -> float:
    """From the first event to the last healthy one."""
    with tempfile.TemporaryDirectory(prefix="tidings-bench-") as folder:
        server = EmbeddedServer(Path(folder) / "nats")
        url = await server.start()
        try:
            await fill(url, mixed(healthy, poison))
            if store:
                await prepare(store)
            consumer = Consumer(url, store, ordered)
            async with consumer.service.running():
                await consumer.until(healthy)
                found = time.perf_counter() - consumer.began
            if store:
                await check(store, healthy)
            return found
        finally:
            await server.stop()


async def prepare(store: str) -> None:
    """All rows there, and nothing counted."""
    connection = await asyncpg.connect(store)
    try:
        await connection.execute("DROP TABLE IF EXISTS counted; CREATE TABLE counted (id int PRIMARY KEY, events int)")
        await connection.execute(f"INSERT INTO counted SELECT n, 0 FROM generate_series(0, {KEYS - 1}) n")
        if await connection.fetchval("SELECT to_regclass('tidings_inbox')"):
            await connection.execute("TRUNCATE tidings_inbox")
        await connection.execute("VACUUM ANALYZE counted")
    finally:
        await connection.close()


async def check(store: str, healthy: int) -> None:
    """Each healthy event once."""
    connection = await asyncpg.connect(store)
    try:
        counted = await connection.fetchval("SELECT sum(events) FROM counted")
        assert counted == healthy, f"{counted} of {healthy} events were applied"
    finally:
        await connection.close()


Ratios = dict[tuple[str, bool, bool], list[float]]
"""For each kind of poison, with an effect or without, in order or not, how many times as long it took, by round."""


async def measure(messages: int, rounds: int, store: str) -> Ratios:
    healthy = messages * 9 // 10
    ratios: Ratios = {}
    for number in range(rounds):
        for url in (store, ""):
            for ordered in ORDERS:
                alone = await seconds(ALONE, healthy, url, ordered)
                for poison in (GARBAGE, SAYS_DEAD) if ordered else (GARBAGE, SAYS_DEAD, FAILS):
                    found = await seconds(poison, healthy, url, ordered)
                    ratios.setdefault((poison, bool(url), ordered), []).append(found / alone)
                    what = named(poison, bool(url), ordered)
                    print(f"round {number + 1}: {what}: {found:.2f} s, alone {alone:.2f} s", flush=True)
    return ratios


def named(poison: str, effect: bool, ordered: bool) -> str:
    return f"{EFFECT if effect else NOTHING}, {'order kept' if ordered else 'order=None'}, {poison}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    logging.getLogger("tidings").setLevel(logging.CRITICAL)  # a line for each failure is another matter
    with (
        tempfile.TemporaryDirectory(prefix="tidings-bench-") as folder,
        Postgres(Path(folder) / "postgres") as postgres,
    ):
        ratios = asyncio.run(measure(given.messages, given.rounds, postgres.create("bench")))
    print(f"{given.messages:,} messages, a tenth of them poison; medians of {given.rounds} rounds")
    verdicts = Verdicts()
    for (poison, effect, ordered), found in ratios.items():
        what, ratio = f"{named(poison, effect, ordered)}: of the time alone", statistics.median(found)
        if effect:
            verdicts.add(what, ratio, TARGET, wanted="at most")
        else:
            print(f"         {what}: {ratio:.3g}")
    return verdicts.status


if __name__ == "__main__":
    sys.exit(main())
