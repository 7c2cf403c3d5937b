"""A message that may be what kills its process is handled alone, so that a death is known to be its own.

Whoever dies takes the healthy events down that were prefetched beside the culprit; the broker's count blames all of
them. So each suspect has a batch of its own, while the other lanes of its handler are idle and no other suspect runs in
this process. The death is noted beforehand, and taken back by a process that lives.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakKeyDictionary

from tidings.delivery import DeadLettered, Delivery
from tidings.envelope import read_envelope
from tidings.errors import UndecodableEvent, WorldError
from tidings.order import Holds
from tidings.pipeline import Pipeline
from tidings.policy import describe, killed

PATIENCE: Final = 60.0
"""Seconds that a suspect waits for another one, and for the other lanes of its handler, before it lets them go on."""

_one_at_a_time: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
"""Of all handlers in this process: of two suspects that run at once, nobody knows which one killed it."""


def _the_lock() -> asyncio.Lock:
    return _one_at_a_time.setdefault(asyncio.get_running_loop(), asyncio.Lock())


async def _in_time(waiting: Awaitable[object]) -> bool:
    try:
        async with asyncio.timeout(PATIENCE):
            await waiting
    except TimeoutError:
        return False
    return True


class Gate:
    """Lets one lane of a handler run alone; the others wait here between two batches."""

    def __init__(self, busy: Callable[[], int]) -> None:
        self._busy = busy
        self._open = asyncio.Event()
        self._open.set()
        self._left = asyncio.Event()

    @property
    def closed(self) -> bool:
        return not self._open.is_set()

    async def opened(self) -> None:
        await self._open.wait()

    def left(self) -> None:
        """A lane has come to the end of its batch."""
        self._left.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[bool]:
        """Run alone in this handler, and as the only suspect of this process; False where the others do not end."""
        lock = _the_lock()
        if not await _in_time(lock.acquire()):  # that of another handler may hang, and this one has healthy events, too
            yield False
            return
        try:
            self._open.clear()
            yield await _in_time(self._is_empty())
        finally:
            self._open.set()
            lock.release()

    async def _is_empty(self) -> None:
        while self._busy():
            self._left.clear()
            await self._left.wait()


async def handle_alone(
    pipeline: Pipeline, delivery: Delivery, holds: Holds | None, waiting: Iterable[Delivery]
) -> tuple[list[Delivery], str]:
    """Handle a suspect; what comes back is as from `Pipeline.process`. One that killed too often is a dead letter.

    What waits behind it is looked up together with it, so that many suspects cost one look.
    """
    counts = pipeline.settler.counts
    try:
        await counts.ready([delivery, *waiting], in_place=False)
        if (dead := killed(delivery, counts.deaths(delivery), pipeline.rules.retry)) is not None:
            return await _bury(pipeline, delivery, dead, holds)
        await counts.begin_alone(delivery)
    except WorldError as error:  # its deaths can neither be read nor noted, so it is not begun
        return [delivery], describe(error)
    try:
        return await pipeline.process([delivery], holds)
    finally:
        await counts.end_alone(delivery)


async def _bury(
    pipeline: Pipeline, delivery: Delivery, dead: DeadLettered, holds: Holds | None
) -> tuple[list[Delivery], str]:
    try:
        delivery.envelope = read_envelope(delivery.body, delivery.headers)  # its class may be the killer
    except UndecodableEvent:
        pass  # then its letter has no type
    await pipeline.settler.settle([(delivery, dead)], holds, time.monotonic())
    return [], ""
