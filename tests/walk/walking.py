"""Walks: every combination of faults; a stop, or the death of the process, after every step of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import combinations

from tests.walk.case import Process, Setting, StoreKind, new_world
from tests.walk.oracle import judge, judge_process
from tests.walk.virtual import Clock, Killed, Loop, Stuck
from tests.walk.world import Faults, World

LIMIT = 900.0
"""Seconds of virtual time in which every case must have come to its end."""

EVERYWHERE = ("raise", "mute", "dead", "cancel", "hang", "swallow", "slow", "observer", "garbage", "publish",
              "publish-late", "too-large", "settle", "settle-late")  # fmt: skip
WITH_STORE = ("claim", "contention", "claim-odd", "busy", "commit", "commit-odd", "commit-late")
FAULTS: dict[StoreKind, tuple[str, ...]] = {
    "none": EVERYWHERE,
    "lease": EVERYWHERE + WITH_STORE,
    "tx": (*EVERYWHERE, *WITH_STORE, "driver"),
}
SHAPES = (
    Setting(keys="a"),
    Setting(keys="aa"),
    Setting(keys="aa", skip=1),
    Setting(keys="aba", skip=1),
    Setting(keys="abab", lanes=2),
)


def combinations_of(most: int) -> Iterator[tuple[Setting, frozenset[str]]]:
    """One fault in every shape, each pair in two of them, and each three in one, as which they take turns."""
    for store, faults in FAULTS.items():
        for count in range(most + 1):
            for turn, chosen in enumerate(combinations(faults, count)):
                shapes = SHAPES if count < 2 else (SHAPES[turn % 5], SHAPES[(turn + 2) % 5])[: 4 - count]
                for shape in shapes:
                    for flags in range(8) if count < 3 else (turn % 8, (turn + 3) % 8):
                        ordered, twice, bad = bool(flags & 1), bool(flags & 2), bool(flags & 4)
                        yield shape._replace(store=store, ordered=ordered, twice=twice, bad=bad), frozenset(chosen)


def walk(clock: Clock, setting: Setting, faults: Faults) -> list[str]:
    """Let one process bring everything to its end, and judge."""
    loop = clock.loop = Loop()
    world = new_world(setting, faults)
    try:
        process = loop.run_until_complete(_to_the_end(setting, world, LIMIT))
        wrong = judge(setting, world) + judge_process(setting, process)
    except Stuck:
        wrong = ["everything waits for each other"]
    finally:
        loop.dispose()
    return wrong + [f"unseen by anybody: {one}" for one in loop.unseen]


async def _to_the_end(setting: Setting, world: World, limit: float) -> Process:
    process = Process(setting, world)
    await process.worker.start()
    try:
        async with asyncio.timeout(limit):
            await world.all_gone.wait()
    except TimeoutError:
        world.blame("it never came to an end")
    await process.worker.stop(10.0)
    _check_left_behind(process)
    return process


def _check_left_behind(process: Process) -> None:
    if left := process.session.left_behind:
        process.world.blame(f"a stop gave {left} deliveries neither back nor an end")


def kill_at(clock: Clock, setting: Setting, faults: Faults, step: int) -> tuple[list[str], bool]:
    """The process dies after some steps; another takes over. Returns what is wrong, and whether it was still alive."""
    world = new_world(setting, faults)
    loop = clock.loop = Loop()
    process: list[Process] = []

    async def first() -> None:
        process.append(Process(setting, world))
        await process[0].worker.start()
        await world.all_gone.wait()

    def kill() -> None:
        raise Killed

    loop.at(step, kill)
    died = False
    try:
        loop.run_until_complete(first())
    except Killed:
        died = True
    for one in process:
        one.die()
    then = loop.time()
    loop.dispose()
    return _second(clock, setting, world, then), died


def stop_at(
    clock: Clock, setting: Setting, faults: Faults, step: int, grace: float, twice: bool
) -> tuple[list[str], bool]:
    """The process is told to stop after some steps, and cancelled after `grace`; another takes over."""
    world = new_world(setting, faults)
    loop = clock.loop = Loop()

    async def first() -> bool:
        process = Process(setting, world)
        await process.worker.start()
        told = asyncio.Event()
        loop.at(step, told.set)
        gone = asyncio.ensure_future(world.all_gone.wait())
        await asyncio.wait({gone, asyncio.ensure_future(told.wait())}, return_when=asyncio.FIRST_COMPLETED)
        early = not gone.done()
        if twice:
            loop.call_soon(_cancel_lanes)
        await process.worker.stop(grace)
        _check_left_behind(process)
        return early

    try:
        early = loop.run_until_complete(first())
    finally:
        then = loop.time()
        loop.dispose()
    return _second(clock, setting, world, then) + [f"unseen: {one}" for one in loop.unseen], early


def _cancel_lanes() -> None:
    """As an impatient outer program does."""
    for task in asyncio.all_tasks():
        if "lane" in task.get_name():
            task.cancel()


def _second(clock: Clock, setting: Setting, world: World, then: float) -> list[str]:
    """A fresh process brings the rest to its end; then all is judged."""
    loop = clock.loop = Loop()
    loop.selector.now = then
    try:
        if not all(one.gone for one in world.messages):
            world.all_gone = asyncio.Event()
            loop.run_until_complete(_to_the_end(setting, world, LIMIT))
        return judge(setting, world, interrupted=True)
    except Stuck:
        return ["everything waits for each other"]
    finally:
        loop.dispose()
