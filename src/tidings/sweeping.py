"""Keys that nothing can ask for any more are taken out of the inbox now and then, slowly, so that nobody waits for it.

The id of an event has to be known for as long as the event may be delivered again: as long as its stream keeps it, as
the broker says and not the code, and a margin. A business key is forgotten only where its handler says so.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final

import msgspec

from tidings.errors import BrokerUnavailable, WorldError
from tidings.handler import Handler
from tidings.ports import KeyKind, Store

log = logging.getLogger("tidings.retention")

FIRST: Final = 600.0
"""Seconds from the start of a service to its first sweep: what was left unacknowledged comes again before it."""
EVERY: Final = 3600.0
"""Seconds between two sweeps. Both vary by a quarter, so that the processes of a service do not sweep together."""

STEP: Final = 2000
"""How many keys are looked at in one step."""
PAUSE: Final = 0.05
SHARE: Final = 4
"""A pause after a step is so many times as long as the step was: four fifths of the time are the handlers'."""
TRIES: Final = 5
BEGIN_WITHIN: Final = 5.0

SMALLEST_MARGIN: Final = timedelta(days=1)


class Target(msgspec.Struct, eq=False):
    """The keys of one handler, and how old they get."""

    position: str
    kind: KeyKind
    lives: Callable[[], Awaitable[timedelta | None]]
    """For how long a key is needed; None is without end. Raises when it is not known just now."""
    seconds: float | None = None
    """What was said last: a store that lets keys go by themselves is told it with each. None is without end."""

    async def ask(self) -> timedelta | None:
        """For how long a key is needed now.

        Raises:
            BrokerUnavailable: the broker, who says it, cannot be asked.
        """
        lives = await self.lives()
        self.seconds = None if lives is None else lives.total_seconds()
        return lives

    async def begin(self) -> None:
        """Ask before the first event is handled. Where nobody answers keys are kept without end, until one does."""
        try:
            async with asyncio.timeout(BEGIN_WITHIN):
                await self.ask()
        except (BrokerUnavailable, TimeoutError) as error:
            log.warning("%s: how long its stream keeps events is asked again later: %s", self.position, error)


def target_of(handler: Handler, keeps: Callable[[], Awaitable[timedelta | None]]) -> Target | None:
    """What of a handler's keys may be forgotten, if anything. `keeps` asks the broker about its stream."""
    rules = handler.rules
    if rules.once is True:
        return Target(handler.position, "event", lambda: _with_margin(keeps))
    if rules.once and rules.forget_after is not None:
        forget_after = rules.forget_after
        return Target(handler.position, "business", lambda: _fixed(forget_after))
    return None


def margin_of(keep: timedelta) -> timedelta:
    """How much longer than its event an id is known: a tenth of that time, and at least a day."""
    return max(SMALLEST_MARGIN, keep / 10)


async def _with_margin(keeps: Callable[[], Awaitable[timedelta | None]]) -> timedelta | None:
    keep = await keeps()
    return None if keep is None else keep + margin_of(keep)


async def _fixed(time: timedelta) -> timedelta:
    return time


class Sweeper:
    """Sweeps the keys of one service until it is cancelled."""

    def __init__(
        self, service: str, store: Store, targets: Sequence[Target], *, first: float = FIRST, every: float = EVERY
    ) -> None:
        self._service = service
        self._store = store
        self._targets = targets
        self._first, self._every = first, every

    async def run(self) -> None:
        pause = self._first
        while True:
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))
            await self.sweep()
            pause = self._every

    async def sweep(self) -> int:
        """Go once through the keys of each handler, and return how many were removed."""
        removed: dict[str, int] = {}
        for target in self._targets:
            try:
                if (count := await self._sweep(target)) > 0:
                    removed[target.position] = count
            except BrokerUnavailable as error:
                log.warning("%s: no key was forgotten, because its stream cannot be asked: %s", target.position, error)
            except WorldError as error:
                log.warning("%s: keys are forgotten later, the store does not take it now: %s", target.position, error)
        if removed:
            each = ", ".join(f"{position} {count:,}" for position, count in removed.items())
            log.info("%s: keys were forgotten, which nothing can ask for any more: %s", self._service, each)
        return sum(removed.values())

    async def _sweep(self, target: Target) -> int:
        lives = await target.ask()
        if lives is None:
            return 0
        before = time.time() - lives.total_seconds()
        removed, after, failures = 0, "", 0
        while True:
            began = time.monotonic()
            try:
                step = await self._store.forget(target.position, target.kind, before, after=after, most=STEP)
            except WorldError:
                failures += 1
                if failures >= TRIES:
                    raise
                await asyncio.sleep(failures)
                continue
            failures = 0
            removed += step.removed
            if step.after is None:
                return removed
            after = step.after
            await asyncio.sleep(max(PAUSE, SHARE * (time.monotonic() - began)))
