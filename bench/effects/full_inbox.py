"""What ten million rows in the inbox cost, beside an empty one on the same server.

``python -m bench.effects.full_inbox [--rows 10000000] [--events 20000] [--rounds 3] [--batch 256]``

The rows are those of ten handlers, this one among them, with the keys of events (UUIDs of version 7) in their order in
time, from six days ago until now. It takes some minutes and 4 GB of disk.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time

import asyncpg

from bench.effects.world import AWAITED, MANY, QUEUED, TITLES, world
from bench.verdict import Verdicts

KINDS = (AWAITED, QUEUED, MANY)
HANDLERS = 10
CHUNK = 500_000
DAYS = 6
TARGET = 0.8

FILL = f"""
INSERT INTO tidings_inbox (handler, key, event_id, digest, applied_at)
SELECT handler, '@' || id, id, decode(md5(id), 'hex'), at
FROM (
  SELECT ($5::text[])[1 + n % {HANDLERS}] AS handler, at, substr(hex, 1, 8) || '-' || substr(hex, 9, 4) || '-7'
    || substr(random, 1, 3) || '-a' || substr(random, 4, 3) || '-' || substr(random, 7, 12) AS id
  FROM (
    SELECT n, at, lpad(to_hex((at * 1000)::bigint), 12, '0') AS hex, md5(n::text) AS random
    FROM (
      SELECT n, $3::float8 - {DAYS} * 86400 * (1 - n / $4::float8) AS at FROM generate_series($1::bigint, $2::bigint) n
    ) moments
  ) parts
) ids"""


def name_of(kind: str, round: int) -> str:
    """The service of a run; its keys of earlier days are there already."""
    return f"full-{kind.removeprefix('ours-')}-{round}"


async def fill(database: str, rows: int, rounds: int) -> None:
    """Fill the inbox, and let the server come to rest."""
    handlers = [f"{name_of(kind, number)}.take" for number in range(rounds) for kind in KINDS]
    handlers = [*handlers, *(f"other-{number}.take" for number in range(HANDLERS))][:HANDLERS]
    connection = await asyncpg.connect(database)
    now = time.time()
    try:
        for at in range(0, rows, CHUNK):
            await connection.execute(FILL, at, min(at + CHUNK, rows) - 1, now, float(rows), handlers, timeout=300)
        await connection.execute("VACUUM ANALYZE tidings_inbox", timeout=600)
        await connection.execute("CHECKPOINT", timeout=600)
        count = await connection.fetchval("SELECT count(*) FROM tidings_inbox", timeout=600)
        size = await connection.fetchval("SELECT pg_size_pretty(pg_total_relation_size('tidings_inbox'))")
        print(f"the full inbox has {count:,} rows and {size} after {time.time() - now:.0f} s", flush=True)
    finally:
        await connection.close()


async def measure(events: int, rounds: int, rows: int, batch: int) -> tuple[str, dict[str, list[tuple[float, float]]]]:
    """The settings, and for each kind the rates with an empty and with a full inbox."""
    rates: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    async with world(batch) as servers:
        empty, full = await servers.database("bench_empty"), await servers.database("bench_full")
        await fill(full, rows, rounds)
        await servers.fill(events)
        for number in range(rounds):
            for kind, found in rates.items():
                without = (await servers.run(kind, empty)).rate
                run = await servers.run(kind, full, name=name_of(kind, number), keep_inbox=True)
                found.append((without, run.rate))
                print(
                    f"round {number + 1}: {TITLES[kind]:<36} empty {without:>8,.0f}/s, full {run.rate:>8,.0f}/s",
                    flush=True,
                )
        return servers.settings(), rates


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    given = parser.parse_args()
    settings, rates = asyncio.run(measure(given.events, given.rounds, given.rows, given.batch))
    print(f"medians of {given.rounds} rounds, interleaved\n{settings}")
    verdicts = Verdicts()
    for kind, found in rates.items():
        ratio = statistics.median(full / without for without, full in found)
        verdicts.add(f"{TITLES[kind]}: {given.rows:,} rows in the inbox / none", ratio, TARGET)
    return verdicts.status


if __name__ == "__main__":
    sys.exit(main())
