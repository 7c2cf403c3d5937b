"""Walks: every combination of faults; a stop, or the death of the process, after every step of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import combinations

from tests.walk.case import Process, Setting, StoreKind, new_world
from tests.walk.oracle import judge, judge_process
from tests.walk.virtual import Clock, Killed, Loop, Stuck
from tests.walk.world import Faults, World

LIMIT = 900.0
"""Seconds of virtual time in which every case must have come to its end."""

EVERYWHERE = ("raise", "mute", "dead", "cancel", "hang", "swallow", "stuck", "slow", "observer", "garbage", "publish",
              "publish-late", "too-large", "settle", "settle-late")  # fmt: skip
WITH_STORE = ("claim", "contention", "claim-odd", "busy", "commit", "commit-odd", "commit-late")
FAULTS: dict[StoreKind, tuple[str, ...]] = {
    "none": EVERYWHERE,
    "lease": EVERYWHERE + WITH_STORE,
    "tx": (*EVERYWHERE, *WITH_STORE, "driver"),
}
ALL_STORES: tuple[StoreKind, ...] = tuple(FAULTS)
SHAPES = (
    Setting(keys="a"),
    Setting(keys="aa"),
    Setting(keys="aa", skip=1),
    Setting(keys="aba", skip=1),
    Setting(keys="abab", lanes=2),
    Setting(keys="aaba", batch=1, skip=1),
)
WHOLE = (Setting(keys="aba", skip=1, whole=True), Setting(keys="abab", lanes=2, whole=True))
"""A batch handler, where one can be: in a transaction, or where its effect may repeat."""


def combinations_of(most: int, stores: Sequence[StoreKind]) -> Iterator[tuple[Setting, frozenset[str]]]:
    """One fault in every shape, each pair in two of them and each three in one, and in a batch handler's; by turns."""
    for store, faults in ((store, FAULTS[store]) for store in stores):
        for count in range(most + 1):
            for turn, chosen in enumerate(combinations(faults, count)):
                shapes = SHAPES if count < 2 else (SHAPES[turn % 6], SHAPES[(turn + 2) % 6])[: 4 - count]
                if store != "lease":
                    shapes = (*shapes, *(WHOLE if count < 2 else [WHOLE[turn % 2]]))
                for shape in shapes:
                    for flags in range(8) if count < 3 else (turn % 8,):
                        ordered, twice, bad = bool(flags & 1), bool(flags & 2), bool(flags & 4)
                        yield shape._replace(store=store, ordered=ordered, twice=twice, bad=bad), frozenset(chosen)


def settings_to_interrupt(*, full: bool) -> Iterator[tuple[Setting, frozenset[str]]]:
    """Every store, with and without order, in turns of shapes; alone and with one fault: all of them, or some."""
    some = ("raise", "hang", "stuck", "settle", "publish", "claim", "commit-late", "slow", "driver")
    for store, faults in FAULTS.items():
        for turn, fault in enumerate([None, *faults]):
            if full or fault is None or fault in some:
                shapes: tuple[Setting, ...] = (
                    SHAPES[5 - 2 * (turn % 2)],
                    SHAPES[3 + turn % 3]._replace(twice=turn % 2 == 1),
                )
                if store != "lease" and (full or turn % 3 == 0):
                    shapes = (WHOLE[turn % 2], *shapes)
                for ordered in (True, False):
                    for shape in shapes[: 2 + full - (shapes[0] not in WHOLE)]:
                        yield shape._replace(store=store, ordered=ordered), frozenset({fault} if fault else ())


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
    process.over = True
    _check_left_behind(process)
    return process


def _check_left_behind(process: Process) -> None:
    if left := process.session.left_behind:
        process.world.blame(f"a stop gave {left} deliveries neither back nor an end")


def kill_at(clock: Clock, setting: Setting, faults: Faults, step: int) -> tuple[list[str], bool]:
    """The process dies after some steps, and another takes over: what is wrong, and whether it had something to do."""
    world = new_world(setting, faults)
    loop = clock.loop = Loop()
    processes: list[Process] = []

    async def first() -> None:
        processes.append(Process(setting, world))
        loop.at(step, kill)
        await processes[0].worker.start()
        await world.all_gone.wait()

    def kill() -> None:
        raise Killed

    died = False
    try:
        loop.run_until_complete(first())
    except Killed:
        died = True
    for process in processes:
        process.die()
    now = loop.time()
    loop.dispose()
    return _take_over(clock, setting, world, now, interrupted=died), died


def stop_at(
    clock: Clock, setting: Setting, faults: Faults, step: int, *, grace: float, again: int | None = None
) -> tuple[list[str], bool]:
    """The process is stopped after some steps, and cancelled after `grace` seconds; another takes over.

    With `again` its lanes are cancelled once more that many steps after the stop began. Returns as `kill_at` does.
    """
    world = new_world(setting, faults)
    loop = clock.loop = Loop()
    try:
        early = loop.run_until_complete(_stop_at(loop, setting, world, step, grace, again))
    finally:
        now = loop.time()
        loop.dispose()
    unseen = [f"unseen by anybody: {one}" for one in loop.unseen]
    return _take_over(clock, setting, world, now, interrupted=grace == 0, gave_back=True) + unseen, early


async def _stop_at(loop: Loop, setting: Setting, world: World, step: int, grace: float, again: int | None) -> bool:
    process = Process(setting, world)
    told = asyncio.Event()
    loop.at(step, told.set)
    await process.worker.start()
    waits = {asyncio.ensure_future(world.all_gone.wait()), asyncio.ensure_future(told.wait())}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    early = not world.all_gone.is_set()
    for one in waits:
        one.cancel()
    stop = asyncio.ensure_future(process.worker.stop(grace))
    if again is not None:
        for _ in range(again):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            if " lane " in task.get_name():
                task.cancel()
    await stop
    process.over = True
    if again is None:
        _check_left_behind(process)
    return early


def _take_over(
    clock: Clock, setting: Setting, world: World, now: float, *, interrupted: bool, gave_back: bool = False
) -> list[str]:
    """A fresh process brings the rest to its end; then all is judged."""
    loop = clock.loop = Loop()
    loop.selector.now = now
    try:
        if not all(one.gone for one in world.messages):
            world.all_gone = asyncio.Event()
            loop.run_until_complete(_to_the_end(setting, world, LIMIT))
        return judge(setting, world, interrupted=interrupted, gave_back=gave_back)
    except Stuck:
        return ["everything waits for each other"]
    finally:
        loop.dispose()
