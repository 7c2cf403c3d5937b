"""A round: publish orders, kill something while they are worked off, start it anew, and judge what came of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from tidings.delivery import Message
from tools.proof.judge import Judge
from tools.proof.losses import FAILOVER, FORGETS, FailingOver, Forgetful
from tools.proof.shop import CHARGE
from tools.proof.stores import STATEMENTS, Kind
from tools.proof.verdict import Verdict
from tools.proof.world import Manner, Worker, World, again
from tools.services.program import Program

ORDERS: Final = 60
LATE: Final = 3
"""How many of them are published by a transaction that stays open while later ones commit."""
MOST_LATE: Final = 4.0
"""Seconds for which it does, at most."""
DIES_WITHIN: Final = 20.0
SPREAD: Final = 1.2
"""Seconds over which the orders of a round come where the moment of the kill is left to chance."""

OTHER: Final = {"stock": "payments", "payments": "stock"}

RANDOM, BROKER, DATABASE, ALL = "random", "broker", "database", "everything"
MOMENTS: Final = {
    RANDOM: "a worker, three times, at random moments",
    BROKER: "the broker, at a random moment",
    DATABASE: "the database server, at a random moment",
    ALL: "a worker, the broker and the database at once",
    FORGETS: "nothing but what the store knows: the orders are published again afterwards",
    FAILOVER: "the primary under load, for a replica that takes its address; then the orders are published again",
}


class Round:
    """One round in a world."""

    def __init__(self, world: World, point: str, number: int, manner: Manner, dice: random.Random) -> None:
        self.world, self.point, self.dice = world, point, dice
        world.manner = manner
        self.prefix = f"{number:04}-"
        self.notes = world.folder / f"notes-{number:04}"
        self.judge = Judge(world, self.prefix, self.notes)
        self.killed: list[int] = []
        """Workers."""
        self.kills = 0

    async def run(self) -> Verdict:
        await self.judge.begin()
        wrong: list[str] = []
        try:
            if (kill := _MOMENTS.get(self.point)) is not None:
                await kill(self)
            else:
                wrong += await self._named()
            found = await self.judge.verdict(self.killed)
        finally:
            wrong += await self.world.stop()
        found.kills = self.kills
        found.wrong[:0] = wrong
        if not self.kills and not self.world.kind.forgets:
            found.wrong.append("nothing was killed")
        self._check_that_it_showed(found)
        return found

    def _check_that_it_showed(self, found: Verdict) -> None:
        if self.point == FORGETS and not found.repeated:
            found.wrong.append("no effect was repeated, so nothing was forgotten")
        known = self.world.kind.points.get(self.point)
        if known is None:
            return
        if known.redelivers and not found.redeliveries:
            found.wrong.append("nothing was delivered again, so the kill did not fall where it should")
        if known.republishes and not found.republished:
            found.wrong.append("nothing was published again, so the kill did not fall where it should")
        if found.repeated and not known.repeats:
            found.wrong.append(f"{found.repeated} effects were repeated at a point where none may be")
            found.twice += found.repeated
            found.repeated = 0

    # ── what goes in ────────────────────────────────────────────────────────────────────────────────────────────────

    async def load(self, seconds: float = 0.0) -> None:
        """Publish the orders over some time, some of them twice, some through a transaction that commits late."""
        orders = self.world.orders(self.prefix, ORDERS)
        late = orders[-LATE:] if self.world.kind.late else []
        early = orders[: len(orders) - len(late)]
        async with asyncio.TaskGroup() as tasks:
            written = [asyncio.Event() for _ in late]
            for number, message in enumerate(late):
                tasks.create_task(self._late(message, written[number], 4 * number + 4))
            await _soon(written)
            wave = 12
            for at in range(0, len(early), wave):
                await self._publish(early[at : at + wave])
                await self._publish([again(one) for one in early[at : at + wave : 7]], count=False)
                await asyncio.sleep(seconds * wave / len(early))

    async def _publish(self, messages: Sequence[Message], *, count: bool = True) -> None:
        await self.world.publish(messages)
        if count:
            self.judge.accept(messages)

    async def _late(self, message: Message, written: asyncio.Event, payments: int) -> None:
        """It commits when so many events that were written after it have left, and were handled."""

        async def late() -> None:
            ends = time.monotonic() + MOST_LATE
            while time.monotonic() < ends and await self.judge.handled(CHARGE) < payments:  # noqa: ASYNC110  # a server is asked
                await asyncio.sleep(0.05)

        await self.world.publish_late(message, written, late)
        self.judge.accept([message])

    # ── a worker, at a named point ──────────────────────────────────────────────────────────────────────────────────

    async def _named(self) -> list[str]:
        """One worker is armed and dies; another takes its place."""
        count = self.dice.randint(1, self._most)
        loading = asyncio.create_task(self.load())
        try:
            # A planted bug shows where the stock causes events, so its process alone is to die, and in no payment.
            armed = self.world.kind.armed or ("stock" if self.world.seed else "")
            if armed:
                await self.world.start(self.notes, only=OTHER[armed])
            victim = await self.world.start(self.notes, kill_at=f"{self.point}:{count}", only=armed)
            if not await victim.died(DIES_WITHIN):
                return [f"{self.point} was not reached {count} times within {DIES_WITHIN:.0f} s"]
            self._note(victim)
            await self.world.start(self.notes, only=armed)
        finally:
            await loading
        return []

    @property
    def _most(self) -> int:
        kind = self.world.kind
        most = kind.points[self.point].most
        variant = kind.variants[self.world.manner.variant]
        return min(most, variant.statements) if self.point in STATEMENTS else most

    def _note(self, worker: Worker) -> None:
        self.kills += 1
        self.killed.append(worker.pid)
        self.world.workers.remove(worker)

    # ── anything, at a random moment ────────────────────────────────────────────────────────────────────────────────

    async def _under_load(self, kill: Callable[[], Awaitable[None]]) -> None:
        await asyncio.gather(self.world.start(self.notes), self.world.start(self.notes))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.load(SPREAD))
            tasks.create_task(_do(kill))

    async def _wait(self, most: float = SPREAD) -> None:
        await asyncio.sleep(self.dice.uniform(0.0, most))

    async def _kill_a_worker(self) -> None:
        worker = self.dice.choice(self.world.workers)
        if worker.kill():
            self._note(worker)
            await self.world.start(self.notes)

    async def _kill_workers(self) -> None:
        for _ in range(3):
            await self._wait(SPREAD / 2)
            await self._kill_a_worker()

    async def _kill_server(self, server: Program) -> None:
        await self._wait()
        await asyncio.to_thread(server.stop)
        self.kills += 1
        await self._wait(0.5)
        await asyncio.to_thread(server.start)

    async def random(self) -> None:
        await self._under_load(self._kill_workers)

    async def broker(self) -> None:
        await self._under_load(lambda: self._kill_server(self.world.broker))

    async def database(self) -> None:
        assert self.world.server is not None
        server = self.world.server
        await self._under_load(lambda: self._kill_server(server))

    async def everything(self) -> None:
        async def kill() -> None:
            await asyncio.gather(*(self._kill_server(one) for one in self.world.servers), self._kill_workers())

        await self._under_load(kill)

    # ── a store that forgets ────────────────────────────────────────────────────────────────────────────────────────

    async def forgets(self) -> None:
        """Apply, forget, publish once more."""
        server = self.world.server
        assert isinstance(server, Forgetful)
        await self.world.start(self.notes)
        orders = self.world.orders(self.prefix, ORDERS)
        await self._publish(orders[: ORDERS // 2])
        if await self.judge.settled():
            await asyncio.to_thread(server.half)
        await self._publish(orders[ORDERS // 2 :])
        if await self.judge.settled():
            await asyncio.to_thread(server.forget)
            self.kills += server.kills
        await self._publish([again(one) for one in orders], count=False)

    async def failover(self) -> None:
        """The primary dies while orders are worked off, and publish them once more, to see what was forgotten."""
        server = self.world.server
        assert isinstance(server, FailingOver)
        await asyncio.to_thread(server.in_step)

        async def kill() -> None:
            await self._wait()
            await asyncio.to_thread(server.fail_over)
            self.kills += 1

        await self._under_load(kill)
        if await self.judge.settled():
            await self._publish([again(one) for one in self.judge.accepted.values()], count=False)


_MOMENTS: Final[Mapping[str, Callable[[Round], Awaitable[None]]]] = {
    RANDOM: Round.random,
    BROKER: Round.broker,
    DATABASE: Round.database,
    ALL: Round.everything,
    FORGETS: Round.forgets,
    FAILOVER: Round.failover,
}


def points_of(kind: Kind) -> dict[str, int]:
    """What is killed on this store, and for how many rounds unless told otherwise."""
    if kind.forgets:
        return dict.fromkeys((FORGETS, FAILOVER) if kind.fails_over else (FORGETS,), 3)
    named = dict.fromkeys(kind.points, 4)
    servers = {BROKER: 4, **({DATABASE: 4} if kind.server else {}), ALL: 4}
    return {**named, RANDOM: 8, **servers}


def must_redeliver(kind: Kind, point: str) -> bool:
    """Whether so much is killed there that some of it must have been open: at a named point always."""
    return point in kind.points or point in (RANDOM, ALL)


async def _soon(events: Sequence[asyncio.Event]) -> None:
    """Wait for all of them, unless something is in the way."""
    try:
        async with asyncio.timeout(2.0):
            for event in events:
                await event.wait()
    except TimeoutError:
        pass


async def _do(kill: Callable[[], Awaitable[None]]) -> None:
    await kill()
