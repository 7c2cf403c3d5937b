"""The time of these tests: that of a loop whose clock runs only when everything waits. So no machine is too slow."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from tests.walk.virtual import Clock, Loop


class _Clock(Clock):
    """That of whichever loop runs."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def sleep(self, seconds: float) -> None:
        """The whole process stands still, as by SIGSTOP."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        loop.selector.now += seconds


time = _Clock()

LOOPS: Mapping[str, type[Loop]] = {"virtual": Loop}
