"""Two processes of one service on a hundred rows that both need, in random order, beside one process alone.

``python -m bench.effects.hot_rows [--events 20000] [--runs 10] [--batch 256]``

Group commits that touch the same rows in different orders wait for each other, and deadlock. Every single run counts.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys

from bench.effects.world import AWAITED, MANY, QUEUED, TITLES, world
from bench.verdict import Verdicts

ROWS = 100
TARGET = 0.3


async def measure(events: int, runs: int, batch: int, kind: str) -> tuple[str, list[tuple[float, float]]]:
    """The settings, and the rates of one process and of two, run by run."""
    rates: list[tuple[float, float]] = []
    async with world(batch) as servers:
        database = await servers.database("bench")
        await servers.fill(events, ROWS)
        for number in range(runs):
            one = (await servers.run(kind, database)).rate
            two = await servers.run(kind, database, processes=2)
            rates.append((one, two.rate))
            shares = " and ".join(f"{share:,}" for share in two.shares)
            print(f"run {number + 1}: one {one:>8,.0f}/s, two {two.rate:>8,.0f}/s ({shares} events)", flush=True)
        return servers.settings(), rates


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--kind", choices=[AWAITED, QUEUED, MANY], default=AWAITED)
    given = parser.parse_args()
    settings, rates = asyncio.run(measure(given.events, given.runs, given.batch, given.kind))
    print(f"{given.runs} runs; {TITLES[given.kind]}\n{settings}")
    alone = statistics.median(one for one, _ in rates)
    print(f"one process {alone:,.0f}/s, two {statistics.median(two for _, two in rates):,.0f}/s (medians)")
    verdicts = Verdicts()
    verdicts.add("the slowest run of two processes / the median of one", min(two for _, two in rates) / alone, TARGET)
    return verdicts.status


if __name__ == "__main__":
    sys.exit(main())
