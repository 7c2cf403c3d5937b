"""How fast something may go."""

from __future__ import annotations

import asyncio
from typing import Final

PORTIONS: Final = 5
"""Into so many portions a second is cut, so that a low rate is even."""


class Pace:
    """So many a second at most; None is without a limit."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._next = 0.0

    def portion(self, most: int) -> int:
        """How many may be taken in one go, so that the rate is kept also within a second."""
        return most if self._rate is None else max(1, min(most, int(self._rate / PORTIONS)))

    async def take(self, count: int) -> None:
        """Wait until so many may go; what was not used before is not saved up."""
        if self._rate is None:
            return
        now = asyncio.get_running_loop().time()
        begins = max(now, self._next)
        self._next = begins + count / self._rate
        if begins > now:
            await asyncio.sleep(begins - now)
