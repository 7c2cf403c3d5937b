"""Tasks that must not die unseen: each is named, watched, and its end is known to health."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tidings import points

log = logging.getLogger("tidings.supervision")

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0

ENDS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit, points.Ended)
"""What is to end more than one task."""


def ends_all(error: BaseException) -> bool:
    """Whether an error is to end more than the task that it came out of; a task group may have wrapped it."""
    return isinstance(error, ENDS) or (isinstance(error, BaseExceptionGroup) and error.subgroup(ENDS) is not None)


class Supervisor:
    """Runs internal tasks, starts one that failed again after a pause, and remembers what failed."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.failures: dict[str, str] = {}
        """The tasks that are failing now, and why; one that runs for a while again is taken out."""

    def spawn(self, name: str, run: Callable[[], Awaitable[Any]]) -> None:
        """Start a task that is to run until it is cancelled; it may also end by itself."""
        self._tasks[name] = asyncio.create_task(self._keep(name, run), name=f"tidings {name}")

    async def _keep(self, name: str, run: Callable[[], Awaitable[Any]]) -> None:
        pause = FIRST_PAUSE
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await run()
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and _we_are_cancelled():
                    raise
                self.failures[name] = f"{type(error).__name__}: {error}"
                if ends_all(error):
                    if isinstance(error, SystemExit):  # which ends the process without a word of its own
                        log.critical("%s ends the process", name, exc_info=error)
                    raise
                log.exception("%s failed; it is started again in %.1f s", name, pause)
            else:
                self.failures.pop(name, None)
                return
            if loop.time() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            loop.call_later(LONGEST_PAUSE, self._forgive, name, self.failures.get(name))

    def _forgive(self, name: str, failure: str | None) -> None:
        """A task that has not failed again since is well."""
        task = self._tasks.get(name)
        if failure is not None and self.failures.get(name) is failure and task is not None and not task.done():
            del self.failures[name]

    async def wait(self, *names: str, timeout: float | None = None) -> bool:
        """Wait until these tasks have ended by themselves; False when some had not in time."""
        tasks = {self._tasks[name] for name in names if name in self._tasks}
        if not tasks:
            return True
        _, pending = await asyncio.wait(tasks, timeout=timeout)
        return not pending

    async def cancel(self, *names: str) -> None:
        """Cancel tasks, all of them when none is named, and wait until they have ended."""
        tasks = [self._tasks.pop(name) for name in (names or tuple(self._tasks)) if name in self._tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=30)


async def survive(what: str, call: Awaitable[None]) -> None:
    """Take a step of an end whose failure must not keep the others from being taken."""
    try:
        await call
    except Exception:
        log.exception("%s failed; the rest goes on", what)


def _we_are_cancelled() -> bool:
    """Whether somebody cancelled this task, and a library did not just raise what looks like it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
