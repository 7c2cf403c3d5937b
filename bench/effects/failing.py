"""What one failing event in a hundred costs the others: they end as dead letters after two attempts.

They fail before their handler's first statement, as what is refused mostly does, and after it. A batch handler fails
before it has said anything, by naming them (`FailedEvents`) or by an error that does not tell whose fault it was; or it
tells nothing and fails after its statement. Then all is rolled back and looked for by halves, which has no target.

``python -m bench.effects.failing [--events 20000] [--rounds 3] [--batch 256]``
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys

from bench.effects.contestant import RETRY
from bench.effects.world import AWAITED, MANY, QUEUED, TITLES, world
from bench.verdict import Verdicts

ORDERS = {"order kept": ["--ordered"], "order=None": []}
TARGET = 0.4

EARLY, LATE, NAMED = "early", "late", "named"
WHEN = {EARLY: "before the statement", LATE: "after it", NAMED: "named by the handler"}
CASES = [(kind, order, when) for kind in (AWAITED, QUEUED) for order in ORDERS for when in (EARLY, LATE)]
CASES += [(MANY, order, when) for order in ORDERS for when in (NAMED, EARLY, LATE)]

Rates = dict[tuple[str, str, str], list[tuple[float, float]]]


async def measure(events: int, rounds: int, batch: int) -> tuple[str, Rates]:
    """The settings, and for each case the rates without and with failures."""
    rates: Rates = {case: [] for case in CASES}
    async with world(batch) as servers:
        database = await servers.database("bench")
        await servers.fill(events)
        for number in range(rounds):
            for (kind, order, when), found in rates.items():
                well = (await servers.run(kind, database, *ORDERS[order])).rate
                badly = await servers.run(kind, database, *ORDERS[order], "--failing", when)
                found.append((well, badly.rate))
                what = f"{TITLES[kind]}, {order}, {WHEN[when]}"
                print(f"round {number + 1}: {what:<64} {well:>8,.0f}/s, with {badly.dead} dead {badly.rate:>8,.0f}/s")
        return servers.settings(), rates


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    given = parser.parse_args()
    settings, rates = asyncio.run(measure(given.events, given.rounds, given.batch))
    print(f"medians of {given.rounds} rounds, interleaved; {RETRY}; {settings}")
    verdicts = Verdicts()
    for (kind, order, when), found in rates.items():
        ratio = statistics.median(badly / well for well, badly in found)
        what = f"{TITLES[kind]}, {order}: 1 % failing {WHEN[when]} / none"
        if (kind, when) != (MANY, LATE):
            verdicts.add(what, ratio, TARGET)
        else:
            print(f"         {what}: {ratio:.3g}")
    return verdicts.status


if __name__ == "__main__":
    sys.exit(main())
