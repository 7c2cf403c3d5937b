"""One timer for a whole batch: a timeout per event without a timer per event.

`asyncio.timeout` costs about as much as decoding an event. Here the timer of a batch looks at the start of the event
that runs now, and sets itself again; what it cancels, it also takes back.
"""

from __future__ import annotations

import asyncio
from types import TracebackType


class Limit:
    """Cancels the task it was entered in when the current event runs longer than `seconds`."""

    __slots__ = ("_expired", "_handle", "_loop", "_seconds", "_started", "_task")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._started: float | None = None
        self._expired = False
        self._handle: asyncio.TimerHandle | None = None

    def __enter__(self) -> Limit:
        self._handle = self._loop.call_later(self._seconds, self._look)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def begin(self) -> None:
        """The next event starts now."""
        self._started = self._loop.time()

    def end(self) -> None:
        """The current event has ended, whichever way: a timeout that it swallowed is taken back."""
        self._started = None
        if self._expired:
            self.took_back()

    def took_back(self) -> bool:
        """Whether a cancellation that was just caught was the limit's own; if so, it is undone."""
        if not self._expired:
            return False
        self._expired = False
        return self._task is not None and self._task.uncancel() == 0

    def _look(self) -> None:
        started = self._started
        if started is None:
            remaining = self._seconds
        elif (remaining := started + self._seconds - self._loop.time()) <= 0:
            self._expired = True
            self._started = None
            remaining = self._seconds
            if self._task is not None:
                self._task.cancel()
        self._handle = self._loop.call_later(remaining, self._look)
