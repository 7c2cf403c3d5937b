"""Members of several groups come and go at random while their partitions move and events come: a process of its own.

    python -m tests.integration.kafka.storm URL SEED

Prints, for each group, how many messages were published and how many were done.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from typing import Final

from tests.integration.kafka.conftest import Rig, plan, position
from tidings.brokers.kafka.broker import KafkaBroker
from tidings.delivery import ACK, Release, Verdict
from tidings.ports import Subscription

GROUPS: Final = 3
MOST: Final = 4
"""Members of one group."""
ROUNDS: Final = 30
EVENTS: Final = 30
COPIES: Final = 3


class Group:
    """One position, whose members come and go while it is published to."""

    def __init__(self, url: str, chance: random.Random) -> None:
        self._url = url
        self._chance = chance
        self._position: Subscription = position(max_in_flight=chance.choice([4, 16, 64]))
        self._members: list[tuple[Rig, asyncio.Task[None]]] = []
        self.published = set[bytes]()
        self.done = set[bytes]()

    async def run(self) -> None:
        publishing = asyncio.create_task(self._publish())
        await self._join()
        while not publishing.done():
            await asyncio.sleep(2 * self._chance.random())
            if len(self._members) > 1 and self._chance.random() < 0.5:
                await self._leave(self._chance.randrange(len(self._members)))
            elif len(self._members) < MOST:
                await self._join()
        await publishing
        while len(self._members) > 1:
            await self._leave(0)
        async with asyncio.timeout(40):
            while not self.done >= self.published:  # noqa: ASYNC110  # limited
                await asyncio.sleep(0.1)
        await self._leave(0)

    async def _open(self) -> Rig:
        rig = Rig(KafkaBroker(self._url), self._position)
        await rig.broker.open(plan(self._position))
        return rig

    async def _join(self) -> None:
        rig = await self._open()
        await rig.subscribe()
        self._members.append((rig, asyncio.create_task(self._work(rig))))

    async def _leave(self, index: int) -> None:
        rig, working = self._members.pop(index)
        if self._chance.random() < 0.5:
            working.cancel()
        await rig.broker.close()
        working.cancel()

    async def _work(self, rig: Rig) -> None:
        came = 0
        while True:
            some = [one for one in rig.got[came:] if not one.withdrawn]
            came = len(rig.got)
            if some:
                await asyncio.sleep(0.05 * self._chance.random())
                verdicts = [(one, self._verdict()) for one in some]
                answers = await rig.broker.settle(verdicts)
                self.done |= {
                    one.body
                    for (one, verdict), no in zip(verdicts, answers, strict=True)
                    if no is None and verdict is ACK
                }
            await asyncio.sleep(0.01)

    def _verdict(self) -> Verdict:
        return Release(self._chance.choice([0.0, 0.3])) if self._chance.random() < 0.05 else ACK

    async def _publish(self) -> None:
        rig = await self._open()
        for number in range(ROUNDS):
            events = [rig.message(b"e%d-%d" % (number, key), key=f"k{key}") for key in range(EVENTS)]
            due = time.time() + 3 * self._chance.random()
            copies = [rig.copy(b"c%d-%d" % (number, key), due, key=f"k{key}") for key in range(COPIES)]
            await rig.publish(*events, *copies)
            self.published |= {one.body for one in (*events, *copies)}
            await asyncio.sleep(0.4)
        await rig.broker.close()


async def main(url: str, seed: int) -> None:
    groups = [Group(url, random.Random(seed + number)) for number in range(GROUPS)]
    await asyncio.gather(*(group.run() for group in groups))
    for group in groups:
        print(f"published={len(group.published)} lost={len(group.published - group.done)}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
