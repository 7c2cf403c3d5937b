"""Whether a process lives and is ready, told from outside its event loop: a blocked loop cannot tell it itself.

* **live**: the loop beat a few seconds ago, no internal task keeps failing, and no call that does not end keeps others
  waiting. A world that is down is none of that:
  restarting a process does not bring a broker or a database back, and restarting all of them at once brings a storm.
* **ready**: live, started, not stopping, and broker, store and handlers are without trouble.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from tidings import stacks
from tidings.errors import MisuseError, WorldError
from tidings.observe._text import shown
from tidings.observe._watched import WatchedRunning, WatchedService

log = logging.getLogger("tidings.health")

BEAT: Final = 0.5
"""Seconds between two beats of the loop."""
LIVE: Final = 5.0
"""Seconds without a beat after which the process no longer counts as live."""
BLOCKED: Final = 2.0
"""Seconds without a beat after which the loop's stack is logged, once for each time it is blocked."""
LAG_WINDOW: Final = 15.0
"""How long the worst lag is remembered: at least as long as the usual pause between two scrapes."""

_WORLD: Final = frozenset(["WorldError", *(one.__name__ for one in WorldError.__subclasses__())])


class State(msgspec.Struct, frozen=True):
    """What the loop saw of its service at its last beat. Empty lists are good news."""

    phase: str = "starting"
    """``starting``, ``running``, ``stopping`` or ``stopped``."""
    failing: tuple[str, ...] = ()
    """Internal tasks that keep failing, and handlers that only a new process can help."""
    troubles: tuple[str, ...] = ()
    """Why broker, store or handlers cannot work just now."""


class Report(msgspec.Struct, frozen=True):
    """The answer to a probe."""

    status: str
    service: str
    phase: str
    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return self.status == "ok"


class Health:
    """Looks at one service: the loop beats and leaves its `State`, any thread may ask.

    `stuck` are the troubles that only the figures tell, see `_progress`.
    """

    def __init__(
        self, service: WatchedService, *, live_after: float = LIVE, stuck: Callable[[], Sequence[str]] = tuple
    ) -> None:
        self._service, self._live_after, self._stuck = service, live_after, stuck
        self._state = State()
        self._running: WatchedRunning | None = None
        self._beaten = time.monotonic()
        self._lags: list[tuple[float, float]] = []

    async def beat(self) -> None:
        """Beat until cancelled: the supervised task on the loop that is watched."""
        while True:
            self.look()
            self._beaten = expected = time.monotonic()
            await asyncio.sleep(BEAT)
            self._keep_lag(time.monotonic() - expected - BEAT)

    def look(self) -> None:
        """See how the service is just now, without waiting for the next beat; only from the loop that is watched."""
        self._state = self._look()

    def stopped(self) -> None:
        """The service has ended as it should."""
        self._state = State("stopped")

    @property
    def silent(self) -> float:
        """Seconds since the last beat."""
        return time.monotonic() - self._beaten

    def lag(self) -> float:
        """The worst that the loop was behind lately, or is just now, in seconds."""
        return max([self.silent - BEAT, 0.0, *(lag for _, lag in self._lags)])

    def live(self) -> Report:
        return self._report(self._not_live())

    def ready(self) -> Report:
        state = self._state
        phase = [] if state.phase == "running" else [f"the service is {state.phase}"]
        return self._report([*self._not_live(), *phase, *state.troubles])

    def _not_live(self) -> list[str]:
        silent = self.silent
        blocked = [f"the event loop has been blocked for {silent:.0f} s"] if silent > self._live_after else []
        return [*blocked, *self._state.failing]

    def _report(self, reasons: Sequence[str]) -> Report:
        told = tuple(shown(reason, 500) for reason in reasons)
        return Report("failing" if told else "ok", self._service.name, self._state.phase, told)

    def _keep_lag(self, lag: float) -> None:
        """A new list each time: threads read the old one meanwhile."""
        oldest = time.monotonic() - LAG_WINDOW
        self._lags = [*(one for one in self._lags if one[0] > oldest), (time.monotonic(), max(lag, 0.0))]

    def _look(self) -> State:
        try:
            running = self._running = self._service.active
        except MisuseError:
            return State("starting" if self._running is None else "stopped")
        failing = [f"{worker.position}: {worker.stuck}" for worker in running.workers if worker.stuck]
        troubles = list(_troubles(running))
        for name, failure in _failures(running):
            # A task that fails because the world is down will work again by itself; restarting us would not help it.
            into = troubles if failure.partition(":")[0] in _WORLD else failing
            into.append(f"{name} fails: {failure}")
        phase = "stopping" if running.stopping else "running"
        return State(phase, tuple(failing), (*troubles, *self._stuck()))


def _failures(running: WatchedRunning) -> Iterator[tuple[str, str]]:
    for tasks in (running.tasks, *running.workers):
        yield from tasks.failures.items()


def _troubles(running: WatchedRunning) -> Iterator[str]:
    if trouble := running.broker.trouble:
        yield f"broker: {trouble}"
    for worker in running.workers:
        if worker.trouble:
            yield f"{worker.position} waits: {worker.trouble}"


class Watchdog:
    """A thread that logs where the loop stands when it is blocked, and that it goes on when it does.

    Made on the thread of the loop that it watches.
    """

    def __init__(self, health: Health, *, blocked_after: float = BLOCKED) -> None:
        self._health, self._blocked_after = health, blocked_after
        self._loop_thread = threading.get_ident()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tidings watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join(timeout=5)

    def _watch(self) -> None:
        began = 0.0
        while not self._end.wait(BEAT / 2):
            silent = self._health.silent
            if silent > self._blocked_after and not began:
                began = time.monotonic() - silent
                self._tell(silent)
            elif began and silent <= self._blocked_after:
                log.warning("the event loop goes on after it was blocked for %.1f s", time.monotonic() - silent - began)
                began = 0.0

    def _tell(self, silent: float) -> None:
        text = (
            "the event loop has been blocked for %.1f s, and nothing else runs meanwhile. Let blocking code run in a"
            " handler that is no coroutine (def instead of async def), or in asyncio.to_thread"
        )
        stack = f"The loop stands here (most recent call last):\n{stacks.of_thread(self._loop_thread)}"
        stacks.log_with(log, logging.ERROR, stack, text, silent)
