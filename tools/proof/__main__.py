"""The command: runs the rounds, tells each point as it goes, and writes the table.

python -m tools.proof [--rounds N] [--stores a,b] [--points a,b] [--seed BUG] [--random N] [--quick] [--write]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tools.proof import report, rounds, seeds, turns
from tools.proof.every import STORES
from tools.proof.report import Line, Total
from tools.proof.verdict import Verdict
from tools.proof.world import Manner, World

AT_ONCE = 3
"""Stores that are proved side by side: a round mostly waits."""
TRIES = 3
"""Times as many rounds there are for a planted bug, which may need its moment; the first catch ends them."""
QUICK = ("before-commit", "after-commit", "random")


@dataclass
class Plan:
    """What was asked for."""

    stores: list[str]
    points: list[str] = field(default_factory=list)
    """Empty means all."""
    rounds: int = 0
    seed: str = ""
    random: int = 0
    quick: bool = False

    @property
    def whole(self) -> bool:
        """Nothing is left out, so that every kind of handler meets every point."""
        return not (self.points or self.rounds or self.seed or self.quick) and set(self.stores) == set(STORES)


def plan(arguments: Sequence[str]) -> tuple[Plan, bool]:
    parser = argparse.ArgumentParser(prog="python -m tools.proof", description="The proof on real parts.")
    parser.add_argument("--rounds", type=int, default=0, help="rounds for each point, instead of their own number")
    parser.add_argument("--stores", default="", help=f"some of {','.join(STORES)}")
    parser.add_argument("--points", default="", help="some of the points, such as after-commit,random")
    parser.add_argument("--seed", default="", help=f"plant a bug, which must be caught: {', '.join(seeds.SEEDS)}")
    parser.add_argument("--random", type=int, default=0, help="the number that chance begins with")
    parser.add_argument("--quick", action="store_true", help="SQLite, two points and one random kill")
    parser.add_argument("--write", action="store_true", help="write the table into docs/explanation/proof.md")
    given = parser.parse_args(arguments)
    stores = [one for one in given.stores.split(",") if one] or list(STORES)
    points = [one for one in given.points.split(",") if one]
    known = {point for kind in STORES.values() for point in rounds.points_of(kind)}
    if unknown := [one for one in stores if one not in STORES] + [one for one in points if one not in known]:
        parser.error(f"unknown: {', '.join(unknown)}. There are {', '.join(STORES)} and {', '.join(sorted(known))}")
    if given.seed and given.seed not in seeds.SEEDS:
        parser.error(f"unknown seed: {given.seed}. There are {', '.join(seeds.SEEDS)}")
    if given.quick:
        stores, points = ["sqlite"], list(QUICK)
    if given.seed:
        stores = [one for one in stores if one in seeds.stores_of(given.seed)]
        points = points or list(seeds.SEEDS[given.seed].points)
    number = given.random or random.SystemRandom().randrange(1, 1_000_000)
    return Plan(stores, points, given.rounds, given.seed, number, given.quick), given.write


async def prove(wanted: Plan, folder: Path) -> list[Line]:
    """All lines of all stores, in the order of `STORES`."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> list[Line]:
        async with places:
            return await _prove(name, wanted, folder / name)

    lines = await asyncio.gather(*map(one, wanted.stores))
    return [line for store in lines for line in store]


async def _prove(name: str, wanted: Plan, folder: Path) -> list[Line]:
    """One store, point by point. After a round that failed its world is made anew, so that the next begins clean."""
    kind = STORES[name]
    todo = rounds.points_of(kind)
    chosen = [point for point in todo if not wanted.points or point in wanted.points]
    lines: list[Line] = []
    number = 0
    async with AsyncExitStack() as stack:
        world: World | None = None
        for place, point in enumerate(chosen):
            line = Line(kind.title, point, tuple(kind.variants), rounds.must_redeliver(kind, point))
            lines.append(line)
            count = 1 if wanted.quick else wanted.rounds or todo[point] * (TRIES if wanted.seed else 1)
            for turn in range(count):
                number += 1
                manner = turns.manner(kind, place, turn, seeds.SEEDS[wanted.seed].way if wanted.seed else "")
                if world is None:
                    made = World(name, kind, folder / f"world-{number}", wanted.seed)
                    world = await stack.enter_async_context(made)
                found = await _round(world, point, number, manner, wanted)
                line.add(manner, found)
                if kind.forgets and found.passed:
                    await stack.aclose()
                    world = None
                elif not found.passed:
                    print(report.account(kind.title, point, number, manner, found, world.folder), flush=True)
                    if wanted.seed and seeds.SEEDS[wanted.seed].shows(found):
                        line.caught = True
                        print(f"{kind.title}: caught at {point}", flush=True)
                        return lines
                    await stack.aclose()
                    world = None
            print(line, flush=True)
    return lines


async def _round(world: World, point: str, number: int, manner: Manner, wanted: Plan) -> Verdict:
    dice = random.Random(f"{wanted.random}/{world.name}/{point}/{number}")
    try:
        return await rounds.Round(world, point, number, manner, dice).run()
    except Exception as error:
        return Verdict(wrong=[f"the round itself failed: {type(error).__name__}: {error}"])


def main(arguments: Sequence[str]) -> int:
    wanted, write = plan(arguments)
    folder = Path(tempfile.mkdtemp(prefix="tidings-proof-"))
    # What the judge's own connections say while their servers are killed is no news.
    logging.basicConfig(filename=folder / "judge.log", level=logging.INFO)
    began = time.monotonic()
    print(f"chance begins with {wanted.random} (--random {wanted.random} rolls the same dice again)", flush=True)
    lines = asyncio.run(prove(wanted, folder))
    total = Total(lines, whole=wanted.whole)
    print(report.said(lines))
    print(f"{time.monotonic() - began:.0f} s")
    for reason in total.wrong:
        print(f"FAILED {reason}")
    if total.passed:
        shutil.rmtree(folder)
        if write:
            report.write(lines, time.monotonic() - began)
    else:
        print(f"what the processes said is kept in {folder}")
    status = 0 if total.passed else 1
    if wanted.seed:
        missed = sorted({line.store for line in lines} - {line.store for line in lines if line.caught})
        status = 0 if missed else 1  # as after any failure: a bug that passes somewhere is what must be seen here
        what = f"MISSED on {', '.join(missed)}" if missed else "caught"
        print(f"{wanted.seed} ({seeds.SEEDS[wanted.seed].what}): {what}")
    print(total, flush=True)
    return status


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(sys.argv[1:]))
