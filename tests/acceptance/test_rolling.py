"""A service with four workers is restarted one by one under load: nothing is lost or doubled, and it hardly pauses."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest

from tests.acceptance.services import Placed
from tests.acceptance.stage import Row, Stage
from tidings import Service
from tools.drill_kit import Process

pytestmark = [pytest.mark.server, pytest.mark.proves("P8", "P9", broker="nats", store="sqlite")]

HANDLERS = ("pair.in-order", "pair.in-no-order")
KEYS = 48
"""Enough that each share of the ordered position has some, and each worker something to do."""

RATE = 60
"""Events a second: what two processors do beside all else that runs, so that a gap is one of the restart."""
STRICT = 2.0
GENEROUS = 10.0


async def workers(parent: Process, stage: Stage, word: str, but: Sequence[int] = ()) -> list[int]:
    """The processes that the parent names with this word, once it names others than before."""
    found: list[list[int]] = []

    def told() -> bool:
        found[:] = [one["workers"] for one in parent.records if word in one and "workers" in one]
        return (bool(found) and found[-1] != but) or parent.popen.poll() is not None

    await stage.wait(told)
    assert found, parent.text
    assert found[-1] != but, parent.text
    return found[-1]


class Load:
    """Publishes all the time, a few events every tenth of a second, and remembers when it did."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._enough = asyncio.Event()
        self.events: list[Placed] = []
        self.published: dict[tuple[str, int], float] = {}
        self.slowest = 0.0
        """The longest that a publish took: what the server, or the machine, is to be blamed for."""

    async def run(self) -> None:
        front = Service("front", broker=self._stage.broker, publishes=[Placed])
        async with front.running():
            while not self._enough.is_set():
                count = len(self.events)
                few = [Placed(order_id=f"order-{n % KEYS:02}", number=n) for n in range(count, count + RATE // 10)]
                self.published |= {(one.order_id, one.number): time.time() for one in few}
                self.events += few
                began = time.monotonic()
                left: Sequence[Placed] = few
                while left:
                    errors = await front.publish_many(left)
                    left = [one for one, error in zip(left, errors, strict=True) if error is not None]
                self.slowest = max(self.slowest, time.monotonic() - began)
                await asyncio.sleep(0.1)

    def end(self) -> None:
        self._enough.set()


def gaps(rows: list[Row]) -> list[float]:
    """Seconds between two effects that followed each other, the longest first."""
    times = sorted(row.at for row in rows)
    return sorted((later - earlier for earlier, later in pairwise(times)), reverse=True)


async def restart(stage: Stage, times: int) -> float:
    """Restart four workers under load, judge, and return the longest gap of all handlers."""
    parent = await stage.run("pair", "--workers", "4")
    old = await workers(parent, stage, "ready")
    load = Load(stage)
    publishing = asyncio.create_task(load.run())
    for handler in HANDLERS:
        await stage.applied(handler, 100)
    since = time.time()
    for _ in range(times):
        parent.send(signal.SIGHUP)
        new = await workers(parent, stage, "replaced", but=old)
        assert not set(old) & set(new)
        old = new
    until = time.time()
    # Each of the new gets a part.
    await stage.wait(lambda: all({row.worker for row in stage.rows(name)} >= set(old) for name in HANDLERS))
    await asyncio.sleep(1.0)
    load.end()
    await publishing
    for handler in HANDLERS:
        await stage.judge(handler, load.events)
    by_key: dict[str, list[int]] = {}
    for row in stage.rows(HANDLERS[0]):
        by_key.setdefault(row.key, []).append(row.number)
    assert all(numbers == sorted(numbers) for numbers in by_key.values()), "out of order"
    assert await stage.letters() == []
    assert await asyncio.to_thread(parent.end, signal.SIGTERM) == 0
    longest = 0.0
    print(f"\n{times} times in {until - since:.0f} s, {RATE} events a second; longest publish {load.slowest:.2f} s")
    for handler in HANDLERS:
        rows = [row for row in stage.rows(handler) if since <= row.at <= until + 1]
        found = gaps(rows)
        late = max(row.at - load.published[row.key, row.number] for row in rows)
        print(f"{handler}: longest gaps {', '.join(f'{gap:.2f} s' for gap in found[:3])}; latest event {late:.2f} s")
        longest = max(longest, found[0])
    return longest


async def test_P8_P9_four_workers_are_restarted_one_by_one_without_loss_double_or_a_long_gap(stage: Stage) -> None:
    assert await restart(stage, 1) < GENEROUS


@pytest.mark.long
@pytest.mark.timeout(280)
async def test_P8_P9_rolling_restarts_leave_no_gap_of_two_seconds(stage: Stage) -> None:
    assert await restart(stage, 5) < STRICT
