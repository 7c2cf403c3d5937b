"""One life of a process, in a thread with a loop of its own, which can end as by ``kill -9`` at a point.

Ending it there runs not a line more of the program: no ``except``, no ``finally``, no rollback. The thread stands
still where it was, with all its tasks, while the next life goes on; only when everything has been judged is it let go,
to give back its files and threads. By then nothing that it does reaches what was judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from tidings import points

LIMIT = 20.0
"""Seconds in which a life must end or crash, whatever happens in it."""


class Abandoned(points.Ended):
    """Ends what stood still, when it is let go. It is no failure of an event, and no task is started again after it."""


class Life:
    """A coroutine on a loop of its own. `crash_at` is a point and the how-manieth passing of it ends this life."""

    def __init__(self, main: Callable[[Life], Coroutine[Any, Any, None]], crash_at: tuple[str, int] | None) -> None:
        self._main = main
        self._crash_at = crash_at
        self.passed: list[str] = []
        """The points, as they were passed."""
        self.crashed = False
        self.error: BaseException | None = None
        self.at_the_crash: Callable[[], None] = lambda: None
        """What has to happen in the very moment of the crash: it keeps the state, and cuts every way out."""
        self._before = {thread.ident for thread in threading.enumerate()}
        """Threads of other lives, which stand still or have to."""
        self._over, self._let_go = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="tidings-life", daemon=True)

    async def run(self) -> None:
        """Live until the end or the crash.

        Raises:
            TimeoutError: neither came in time.
        """
        points.reached = self._reached
        try:
            self._thread.start()
            if not await asyncio.to_thread(self._over.wait, LIMIT):
                self._crash()
                raise TimeoutError(f"it was still at work after {LIMIT:g} s")
        finally:
            points.reached = None

    async def let_go(self) -> None:
        """Let a life that stands still give back what it holds, when nothing it does matters any more.

        Its main sees that it has `crashed`, and is cancelled only if it does not end then.
        """
        self._let_go.set()
        await asyncio.to_thread(self._thread.join, LIMIT / 4)
        if self._thread.is_alive() and self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # it may just have ended by itself
                self._loop.call_soon_threadsafe(self._task.cancel)
            await asyncio.to_thread(self._thread.join, LIMIT / 4)

    def _run(self) -> None:
        loop = self._loop = asyncio.new_event_loop()
        loop.set_exception_handler(self._unhandled)
        try:
            task = self._task = loop.create_task(self._main(self))
            try:
                loop.run_until_complete(asyncio.wait({task}))
                if not (task.cancelled() or self.crashed):
                    self.error = task.exception()
            finally:
                self._over.set()
                self._finish(loop)
        finally:
            loop.close()

    def _finish(self, loop: asyncio.AbstractEventLoop) -> None:
        rest = asyncio.all_tasks(loop)
        for task in rest:
            task.cancel()
        if rest:
            loop.run_until_complete(asyncio.wait(rest, timeout=5))
        for task in rest:
            if task.done() and not task.cancelled():
                task.exception()  # looked at, or its end would be complained about
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self.crashed:
            loop.default_exception_handler(context)

    def _reached(self, point: str) -> None:
        here = threading.current_thread()
        if here is not self._thread and here.ident in self._before:
            self._stand_still()  # a thread that an abandoned life left behind
        with self._lock:
            if not self.crashed:
                self.passed.append(point)
                if (point, self.passed.count(point)) == self._crash_at:
                    self._crash()
        if self.crashed:
            self._stand_still()

    def _crash(self) -> None:
        self.crashed = True
        self.at_the_crash()
        if self._loop is not None and threading.current_thread() is not self._thread:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._let_go.wait)
        self._over.set()

    def _stand_still(self) -> None:
        self._let_go.wait()
        raise Abandoned
