"""Effects applied once in PostgreSQL, beside the same by hand from the same stream, interleaved, as ratios.

``python -m bench.effects.throughput [--events 20000] [--rounds 3] [--batch 256]``

One event is one UPDATE by key and one inbox row.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys

from bench.effects.world import AWAITED, GROUP, HAND_MANY, MANY, QUEUED, TITLES, TX, world
from bench.verdict import Verdicts


async def measure(events: int, rounds: int, batch: int, options: list[str]) -> tuple[str, dict[str, list[float]]]:
    """The settings, and the rates of each contestant, one for each round."""
    rates: dict[str, list[float]] = {name: [] for name in TITLES}
    async with world(batch) as servers:
        database = await servers.database("bench")
        await servers.fill(events)
        for number in range(rounds):
            for name, found in rates.items():
                mine = options if name.startswith("ours") else []
                found.append((await servers.run(name, database, *mine)).rate)
                print(f"round {number + 1}: {TITLES[name]:<36} {found[-1]:>10,.0f} events/s", flush=True)
        return servers.settings(), rates


def ratio(rates: dict[str, list[float]], one: str, other: str) -> float:
    """The median of the ratios of the single rounds."""
    return statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--ordered", action="store_true", help="the service keeps the order of keys as well")
    given = parser.parse_args()
    options = ["--ordered"] if given.ordered else []
    settings, rates = asyncio.run(measure(given.events, given.rounds, given.batch, options))
    print(f"medians of {given.rounds} rounds, interleaved\n{settings}")
    for name, found in rates.items():
        print(
            f"  {TITLES[name]:<36} {statistics.median(found):>9,.0f}/s  {ratio(rates, name, TX):6.2f} of a transaction"
            f" per event  {ratio(rates, name, GROUP):5.2f} of group commit  {ratio(rates, name, HAND_MANY):5.2f} of it"
            " with executemany"
        )
    verdicts = Verdicts()
    verdicts.add("awaited / a transaction per event by hand", ratio(rates, AWAITED, TX), 4)
    verdicts.add("awaited / group commit by hand", ratio(rates, AWAITED, GROUP), 0.8)
    verdicts.add("queued / a transaction per event by hand", ratio(rates, QUEUED, TX), 8)
    verdicts.add("batch handler / a transaction per event by hand", ratio(rates, MANY, TX), 18)
    verdicts.add("batch handler / executemany by hand", ratio(rates, MANY, HAND_MANY), 0.7)
    return verdicts.status


if __name__ == "__main__":
    sys.exit(main())
