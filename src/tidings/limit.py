"""One timer for a whole batch: a timeout per event without a timer per event.

`asyncio.timeout` costs about as much as decoding an event. Here the timer of a batch looks at the start of the event
that runs now, and sets itself again; what it cancels, it also takes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final

from tidings.context import Scope

ASK_AGAIN: Final = 5.0
"""Seconds until it is said once more that a call does not end, where nothing came of it."""


class Limit:
    """Cancels the task it was entered in when the current event runs longer than `seconds`.

    Where the event has not ended `patience` seconds after that, `stuck` is called. None is for ever. While a call goes
    on although its time is over, its limit is among the `late`.
    """

    __slots__ = (
        "_expired",
        "_handle",
        "_late",
        "_loop",
        "_overdue",
        "_patience",
        "_seconds",
        "_stuck",
        "_task",
        "clock",
        "over",
        "scope",
        "started",
    )

    def __init__(
        self,
        seconds: float,
        patience: float | None = None,
        stuck: Callable[[], object] | None = None,
        late: set[Limit] | None = None,
    ) -> None:
        self._seconds, self._patience, self._stuck = seconds, patience, stuck or _nobody
        self._loop = asyncio.get_running_loop()
        self.clock = self._loop.time
        self._late: set[Limit] = set() if late is None else late
        self.over: float | None = None
        """When the time of the current event was over, by the loop's clock; None while it is not."""
        self._task: asyncio.Task[object] | None = None
        self.started: float | None = None
        """When the current event started, by the `clock`; set where no `begin` is called."""
        self._overdue: float | None = None
        """When an event that was cancelled must have ended."""
        self._expired = False
        self._handle: asyncio.TimerHandle | None = None
        self.scope: Scope | None = None
        """Of the call that runs now, or ran last."""

    def __enter__(self) -> Limit:
        self._task = asyncio.current_task()
        self._handle = self._loop.call_later(self._seconds, self._look)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.leave()

    def leave(self) -> None:
        """Look no more, and know nobody: whoever is told holds this limit, and the batch, in a circle."""
        self._stuck = _nobody
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def begin(self, scope: Scope | None = None) -> None:
        """The next event starts now."""
        self.started = self.clock()
        self.scope = scope

    def end(self) -> None:
        """The current event has ended, whichever way: a timeout that it swallowed is taken back."""
        self.started = self._overdue = None
        if self.over is not None:
            self.over = None
            self._late.discard(self)
            if self._handle is not None:  # it is set for the end of this one's patience, and the next has none of it
                self._handle.cancel()
                self._handle = self._loop.call_later(self._seconds, self._look)
        if self._expired:
            self.took_back()

    def took_back(self) -> bool:
        """Whether a cancellation that was just caught was the limit's own; if so, it is undone."""
        if not self._expired:
            return False
        self._expired = False
        return self._task is not None and self._task.uncancel() == 0

    @property
    def runs(self) -> bool:
        """Whether the task that it was entered in is the one that runs now."""
        try:
            return asyncio.current_task() is self._task
        except RuntimeError:  # the loop has ended
            return False

    def _look(self) -> None:
        wait = self._seconds
        now = self.clock()
        if self._overdue is not None:
            wait = self._overdue - now
            if wait <= 0:
                wait = ASK_AGAIN
                self._overdue = now + wait
                self._stuck()
                if self._handle is None:  # left behind
                    return
        elif self.started is not None and (wait := self.started + self._seconds - now) <= 0:
            self._expired = True
            self.started, self.over = None, now
            self._late.add(self)
            wait = self._seconds
            if self._patience is not None:
                wait = self._patience
                self._overdue = now + wait
            if self._task is not None:
                self._task.cancel()
        self._handle = self._loop.call_later(wait, self._look)


def _nobody() -> None: ...
