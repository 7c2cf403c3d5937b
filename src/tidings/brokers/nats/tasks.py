"""The few tasks of a share, one of each kind at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks:
    """Kept by their names, so that each can be ended, and seen to run."""

    def __init__(self, of: str) -> None:
        self._of = of
        self._running: dict[str, asyncio.Task[None]] = {}

    def spawn(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        """Start a task; one of the same name ends."""
        self.cancel(what)
        self._running[what] = asyncio.create_task(work, name=f"tidings-{what}-{self._of}")

    def cancel(self, *names: str) -> None:
        """End those, or all; never the one that calls this."""
        for name in names or tuple(self._running):
            task = self._running.get(name)
            if task is not None and task is not asyncio.current_task():
                task.cancel()

    def runs(self, what: str) -> bool:
        return what in self._running and not self._running[what].done()

    async def over(self, what: str) -> None:
        """Wait for the end of one that runs."""
        if self.runs(what):
            await asyncio.wait([self._running[what]])
