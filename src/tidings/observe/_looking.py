"""Looking at a running service, on its loop, every few seconds: what only the broker, the store and the lanes know."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Final, Protocol

from tidings.errors import MisuseError
from tidings.observe._figures import Figures, Lanes
from tidings.observe._held import Held, HeldLetters
from tidings.observe._progress import Progress
from tidings.observe._watched import WatchedRunning, WatchedService, WatchedWorker
from tidings.ports import Backlog
from tidings.sight import Fill, Fills, Letters, Reconnects

log = logging.getLogger("tidings.observe")

LOOK_TIMEOUT: Final = 2.0
STREAMS_EVERY: Final = 30.0
"""Seconds between two looks at how full the streams are."""
LETTERS_EVERY: Final = 15.0
"""Seconds between two looks at the dead letters that are held."""


class Tells(Protocol):
    """What shows the figures, and knows how many deliveries of a position were taken up so far."""

    figures: Figures

    def taken(self, position: str) -> int: ...


class Looks:
    """Leaves what it finds in `metrics.figures`, and what is not well in `progress`."""

    def __init__(self, service: WatchedService, metrics: Tells, progress: Progress) -> None:
        self._service, self._metrics, self._progress = service, metrics, progress
        self._waiting = Progress(float("inf"))
        """Like the other, and those that are paused count as well."""
        self._fills: Mapping[str, Fill] = {}
        self._fills_at = float("-inf")
        self._letters: dict[str, HeldLetters] = {}
        self._letters_at: dict[str, float] = {}
        self._letters_of: WatchedRunning | None = None

    async def look(self) -> None:
        try:
            running = self._service.active
        except MisuseError:
            self._metrics.figures = Figures()
            return
        backlogs = await _backlogs(running)
        self._waiting.look(backlogs, self._metrics.taken)
        paused = [one.position for one in running.workers if one.paused]
        self._progress.look({**backlogs, **dict.fromkeys(paused)}, self._metrics.taken)
        outbox = await outbox_of(running.store)
        await self._look_at_streams(running)
        broker = running.broker
        streams = {one.position: one.stream for one in self._service.handlers}
        self._metrics.figures = Figures(
            connected=not broker.trouble,
            held=await self._held(running),
            lanes={one.position: self._lanes(one, backlogs.get(one.position)) for one in running.workers},
            outbox=outbox,
            reconnects=broker.reconnects if isinstance(broker, Reconnects) else None,
            full={stream: fill.share for stream, fill in self._fills.items() if fill.share is not None},
            keeps={
                position: fill.keeps
                for position, stream in streams.items()
                if (fill := self._fills.get(stream)) is not None and fill.keeps is not None
            },
        )

    def _lanes(self, worker: WatchedWorker, backlog: Backlog | None) -> Lanes:
        position = worker.position
        here = worker.oldest
        return Lanes(
            worker.waiting,
            worker.busy,
            backlog,
            why_paused(worker),
            worker.left_behind,
            max(self._waiting.waited(position), 0.0 if here is None else time.time() - here),
            worker.overdue,
            position in self._progress.stalled,
        )

    async def _held(self, running: WatchedRunning) -> Mapping[str, Held]:
        """What is held of the dead letters of each handler that runs here; of whom it is not known there is nothing."""
        broker = running.broker
        if not isinstance(broker, Letters):
            return {}
        if running is not self._letters_of:
            self._letters_of, self._letters_at = running, {}
            here = {worker.position for worker in running.workers}
            self._letters = {
                one.position: HeldLetters(partial(broker.letters, one.position, ordered=one.ordered))
                for one in self._service.plan.subscriptions
                if one.position in here
            }
        for position, letters in self._letters.items():
            pause = 0.0 if letters.behind else LETTERS_EVERY
            if time.monotonic() - self._letters_at.get(position, float("-inf")) < pause:
                continue
            try:
                async with asyncio.timeout(LOOK_TIMEOUT):
                    await letters.look()
            except Exception as error:
                log.debug("%s: what is held of its dead letters cannot be told: %r", position, error)
                letters.held = None
            self._letters_at[position] = time.monotonic()
        return {position: one.held for position, one in self._letters.items() if one.held is not None}

    async def _look_at_streams(self, running: WatchedRunning) -> None:
        broker = running.broker
        if not isinstance(broker, Fills) or time.monotonic() - self._fills_at < STREAMS_EVERY:
            return
        found: dict[str, Fill] = {}
        try:
            async with asyncio.timeout(LOOK_TIMEOUT):
                for plan in self._service.plan.streams:
                    found[plan.name] = await broker.fill(plan.name)
        except Exception as error:
            log.debug("how full the streams are cannot be told: %r", error)
            return
        self._fills, self._fills_at = found, time.monotonic()


async def _backlogs(running: WatchedRunning) -> Mapping[str, Backlog | None]:
    found: dict[str, Backlog | None] = {}
    for worker in running.workers:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT):
                found[worker.position] = await worker.backlog()
        except Exception as error:  # the broker's trouble shows elsewhere; no figure is better than an old one
            log.debug("%s: its backlog cannot be told: %r", worker.position, error)
            found[worker.position] = None
    return found


def why_paused(worker: WatchedWorker) -> str:
    """By what a handler was paused, as a label: a closed set."""
    if worker.paused:
        return "operator"
    return "failures" if worker.off else ""


async def outbox_of(store: object) -> tuple[int, float, int] | None:
    """What waits in the outbox of a store that has one."""
    ask = getattr(store, "outbox_backlog", None)
    if ask is None:
        return None
    try:
        async with asyncio.timeout(LOOK_TIMEOUT):
            waiting, oldest_seconds, parked = await ask()
    except Exception as error:
        log.debug("the outbox cannot be looked at: %r", error)
        return None
    return waiting, oldest_seconds, parked
