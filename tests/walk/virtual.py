"""An event loop whose clock runs only when everything waits: an hour of pauses takes a moment, the same each time."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, TypeAlias
from unittest import mock

from tidings import alone, copies, counting, grouping, pipeline, policy, settling

EPOCH = 1_800_000_000.0

AsyncTest: TypeAlias = Callable[..., Awaitable[None]]


class Killed(BaseException):
    """The process ended between two steps: nothing of it runs any more, not even its cleaning up."""


class Stuck(Exception):
    """Nothing is ready and nothing is scheduled: all wait for each other."""


class _Selector(selectors.SelectSelector):
    """Counts the steps of its loop, and lets the clock jump to whatever is due next."""

    now = 0.0
    steps = 0
    at: tuple[int, Callable[[], None]] | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.steps += 1
        if self.at is not None and self.steps >= self.at[0]:
            (_, call), self.at = self.at, None
            call()
            return []
        if timeout is None:
            raise Stuck
        if timeout > 0:
            self.now += timeout
        return []


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = _Selector()
        super().__init__(self.selector)
        self.unseen: list[str] = []
        """What the loop would have logged: exceptions in callbacks, tasks whose error nobody took."""
        self.set_exception_handler(lambda loop, context: self.unseen.append(str(context)))

    def time(self) -> float:
        return self.selector.now

    @property
    def steps(self) -> int:
        return self.selector.steps

    def at(self, steps: int, call: Callable[[], None]) -> None:
        """Call once that many steps have been made, between two of them."""
        self.selector.at = (self.selector.steps + steps, call)

    def dispose(self) -> None:
        """Throw away what is left, so that nothing is reported when it is collected."""
        self.selector.at = None
        asyncio.set_event_loop(None)
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        while not all(task.done() for task in tasks):
            try:
                self.run_until_complete(asyncio.wait(tasks, timeout=1000))
            except RuntimeError:  # it died while it was about to end: its order to stop is still on the way
                continue
        self.close()


class Clock:
    """Stands in for the module `time` where the pipeline asks for it."""

    def __init__(self) -> None:
        self.loop: Loop | None = None

    def monotonic(self) -> float:
        return 0.0 if self.loop is None else self.loop.time()

    def time(self) -> float:
        return EPOCH + self.monotonic()


@contextmanager
def virtual_time() -> Iterator[Clock]:
    """The core's clocks are the loop's."""
    clock = Clock()
    modules: list[ModuleType] = [alone, copies, counting, grouping, pipeline, policy, settling]
    with ExitStack() as patches:
        for module in modules:
            patches.enter_context(mock.patch.object(module, "time", clock))
        # Formatting tracebacks would take a quarter of the walk, and nothing in it reads them.
        shown = mock.patch("tidings.copies.trace_of", lambda error: repr(type(error)))
        patches.enter_context(shown)
        yield clock


def in_virtual_time(*modules: ModuleType) -> Callable[[AsyncTest], Callable[..., None]]:
    """For a test in which one thing has to be sooner than another: a slow machine cannot turn them round.

    Nothing may happen in threads. The clocks of `modules` are the loop's, too.
    """

    def decorate(test: AsyncTest) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*arguments: Any, **named: Any) -> None:
            clock = Clock()
            clock.loop = loop = Loop()
            with ExitStack() as patches:
                for module in modules:
                    patches.enter_context(mock.patch.object(module, "time", clock))
                try:
                    loop.run_until_complete(test(*arguments, **named))
                finally:
                    loop.dispose()
            assert not loop.unseen

        return run

    return decorate
