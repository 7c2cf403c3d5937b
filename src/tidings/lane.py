"""A lane: one queue, and the keys that are held in it. A worker has one or several, each with a task of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from tidings.delivery import Delivery
from tidings.order import Holds


class Lane:
    """A queue and the keys that are held in it."""

    def __init__(self, queue: deque[Delivery], ordered: bool) -> None:
        self.queue = queue
        self.holds = Holds() if ordered else None
        self.busy = False
        self.trouble = ""
        self._wake: asyncio.Future[None] | None = None

    def take(self, most: int) -> list[Delivery]:
        """Whatever waits, up to a limit; what was held and is due comes first."""
        queue = self.queue
        if self.holds:
            queue.extendleft(reversed(list(self.holds.release(asyncio.get_running_loop().time()))))
        return [queue.popleft() for _ in range(min(most, len(queue)))]

    def put_back(self, deliveries: Sequence[Delivery]) -> None:
        self.queue.extendleft(reversed(deliveries))

    def wake(self) -> bool:
        """Wake the lane if it sleeps."""
        if self._wake is None or self._wake.done():
            return False
        self._wake.set_result(None)
        return True

    async def sleep(self, seconds: float | None) -> None:
        """Until woken, or for so long."""
        self._wake = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                await self._wake
        except TimeoutError:
            pass
        finally:
            self._wake = None

    def until_due(self) -> float | None:
        """Seconds until a held key may go on, or None."""
        due = self.holds.next_due() if self.holds else None
        return None if due is None else max(0.0, due - asyncio.get_running_loop().time())
