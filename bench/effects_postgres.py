"""Effects applied once in PostgreSQL, beside the same by hand, interleaved, as ratios.

``python -m bench.effects_postgres [--events 10000] [--rounds 3] [--batch 256]``

One event is one UPDATE by key and one inbox row. All sides: asyncpg, one connection, READ COMMITTED, a server that
syncs each commit. By hand nothing is recognized, retried or kept; the two services take their events from an embedded
nats-server with ``sync_interval: always`` and acknowledge each.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg

from bench.contestants import STREAM, Placed, make_event
from tidings import Service
from tidings.brokers.nats.embedded import EmbeddedServer
from tidings.ports import Key
from tidings.stores.postgres import PostgresStore, Statements
from tools.services.postgres import Postgres

ROWS = 1000
UPDATE = "UPDATE stock SET taken = taken + 1 WHERE sku = $1"
INBOX = "INSERT INTO by_hand VALUES ('bench', $1, 0) ON CONFLICT DO NOTHING RETURNING key"
INBOX_MANY = (
    "INSERT INTO by_hand SELECT 'bench', key, 0 FROM unnest($1::text[]) key ON CONFLICT DO NOTHING RETURNING key"
)

TX, GROUP, MANY = "by hand: transaction per event", "by hand: group commit", "by hand: executemany"
AWAITED, QUEUED = "tidings: claims, awaited", "tidings: claims, queued"
NATS_AWAITED, NATS_QUEUED = "tidings: service from NATS, awaited", "tidings: service from NATS, queued"


class Bench:
    """The servers, and each contestant as a method that returns its seconds."""

    def __init__(self, url: str, nats: str, events: int, batch: int) -> None:
        self.url, self.nats, self.events, self.batch = url, nats, events, batch
        self.contestants: dict[str, Callable[[], Awaitable[float]]] = {
            TX: self.tx_per_event,
            GROUP: self.group,
            MANY: self.many,
            AWAITED: lambda: self.claims(asyncpg.Connection),
            QUEUED: lambda: self.claims(Statements),
            NATS_AWAITED: lambda: self.service(asyncpg.Connection),
            NATS_QUEUED: lambda: self.service(Statements),
        }

    async def prepare(self) -> None:
        connection = await asyncpg.connect(self.url)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS stock (sku int PRIMARY KEY, taken bigint NOT NULL);"
            f"INSERT INTO stock SELECT n, 0 FROM generate_series(0, {ROWS - 1}) n;"
            "CREATE TABLE by_hand (handler text, key text, at float8, PRIMARY KEY (handler, key))"
        )
        await connection.close()
        filler = Service("bench-filler", broker=self.nats, publishes=[Placed])
        async with filler.running():
            for at in range(0, self.events, 1000):
                wave = [make_event(number) for number in range(at, min(at + 1000, self.events))]
                assert not any(await filler.publish_many(wave, timeout=30))

    def batches(self) -> list[list[tuple[str, int]]]:
        """Ids and rows; the rows in an order that is not theirs."""
        pairs = [(uuid.uuid4().hex, number * 7919 % ROWS) for number in range(self.events)]
        return [pairs[at : at + self.batch] for at in range(0, len(pairs), self.batch)]

    async def tx_per_event(self) -> float:
        pairs = [pair for batch in self.batches() for pair in batch][: max(1, self.events // 5)]
        connection = await asyncpg.connect(self.url)
        began = time.perf_counter()
        for id, row in pairs:
            async with connection.transaction():
                if await connection.fetchval(INBOX, id):
                    await connection.execute(UPDATE, row)
        seconds = time.perf_counter() - began
        await connection.close()
        return seconds * self.events / len(pairs)

    async def group(self) -> float:
        batches = self.batches()
        connection = await asyncpg.connect(self.url)
        began = time.perf_counter()
        for batch in batches:
            async with connection.transaction():
                new = {key for (key,) in await connection.fetch(INBOX_MANY, sorted(id for id, _ in batch))}
                for id, row in batch:
                    if id in new:
                        await connection.execute(UPDATE, row)
        seconds = time.perf_counter() - began
        await connection.close()
        return seconds

    async def many(self) -> float:
        batches = self.batches()
        connection = await asyncpg.connect(self.url)
        began = time.perf_counter()
        for batch in batches:
            async with connection.transaction():
                new = {key for (key,) in await connection.fetch(INBOX_MANY, sorted(id for id, _ in batch))}
                await connection.executemany(UPDATE, [(row,) for id, row in batch if id in new])
        seconds = time.perf_counter() - began
        await connection.close()
        return seconds

    async def claims(self, kind: type) -> float:
        batches = [([Key("bench", id, id, b"") for id, _ in batch], batch) for batch in self.batches()]
        store = PostgresStore(self.url)
        await store.open()
        began = time.perf_counter()
        for keys, batch in batches:
            async with store.claim(keys, resource=kind, sync=False) as claim:
                for _, row in batch:
                    given = claim.resource(kind)
                    if isinstance(given, Statements):
                        given.execute(UPDATE, row)
                    else:
                        assert isinstance(given, asyncpg.Connection)
                        await given.execute(UPDATE, row)
        seconds = time.perf_counter() - began
        await store.close()
        return seconds

    async def service(self, kind: type) -> float:
        taken, began, done = 0, 0.0, asyncio.Event()
        service = Service(f"bench-{uuid.uuid4().hex[:8]}", broker=self.nats, store=self.url)

        def count() -> None:
            nonlocal taken, began
            if not taken:
                began = time.perf_counter()  # its start, which is paid once, is not what is measured here
            taken += 1
            if taken == self.events:
                done.set()

        async def awaited(event: Placed, db: asyncpg.Connection) -> None:
            await db.execute(UPDATE, taken * 7919 % ROWS)
            count()

        async def queued(event: Placed, db: Statements) -> None:
            db.execute(UPDATE, taken * 7919 % ROWS)
            count()

        service.on(Placed, name="take", order=None, batch=self.batch)(queued if kind is Statements else awaited)
        async with service.running():
            async with asyncio.timeout(300):
                await done.wait()
            seconds = time.perf_counter() - began
        return seconds


async def measure(url: str, events: int, rounds: int, batch: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="tidings-bench-") as folder:
        server = EmbeddedServer(Path(folder) / "nats")
        try:
            bench = Bench(url, await server.start(), events, batch)
            await bench.prepare()
            for number in range(rounds):
                for name, contestant in bench.contestants.items():
                    rate = events / await contestant()
                    rates.setdefault(name, []).append(rate)
                    print(f"round {number + 1}: {name:<36} {rate:>10,.0f} events/s", flush=True)
        finally:
            await server.stop()
    return rates


def report(rates: dict[str, list[float]], events: int, rounds: int, batch: int) -> str:
    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True))

    lines = [
        f"{events} events, batches of {batch}, {ROWS} rows; medians of {rounds} rounds, interleaved, one process",
        f"all sides: asyncpg, one connection, fsync and synchronous_commit on; stream {STREAM!r} synced at each store",
    ]
    for name, of_each in rates.items():
        lines.append(
            f"  {name:<36} {statistics.median(of_each):>9,.0f}/s  {ratio(name, TX):6.2f} of a transaction per event"
            f"  {ratio(name, GROUP):5.2f} of group commit"
        )
    lines.append(f"awaited / group commit by hand = {ratio(AWAITED, GROUP):.2f}   (target 0.8)")
    lines.append(f"queued / executemany by hand = {ratio(QUEUED, MANY):.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tidings-bench-") as folder:
        with Postgres(Path(folder) / "postgres") as server:
            rates = asyncio.run(measure(server.url, given.events, given.rounds, given.batch))
    print(report(rates, given.events, given.rounds, given.batch))


if __name__ == "__main__":
    main()
