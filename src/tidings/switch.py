"""The kill switch of a handler: when most of what it does fails, it pauses instead of emptying the stream into the dead
letters, tries single events, and goes on by itself.

What fails while it is off says more of the world around the handler than of the event: it is tried again later, and
counts for nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

PARTS: Final = 12
"""Into how many parts the window is cut: it moves by one at a time."""
SUCCESSES: Final = 3
"""How many probes in a row have to succeed until the handler goes on."""


class KillSwitch(msgspec.Struct, frozen=True):
    """When a handler pauses by itself: more than `share` of at least `least` events failed `within` seconds.

    It then tries one event after `first` seconds, and after each that fails waits twice as long, up to `most` seconds.
    Each process decides for itself.
    """

    share: float = 0.5
    least: int = 20
    within: float = 60.0
    first: float = 1.0
    most: float = 30.0

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and self.least >= 1 and self.within > 0 and 0 < self.first <= self.most):
            raise ValueError(
                f"{self!r}: share is above 0 and at most 1, least at least 1, within above 0, first above 0, and most"
                " at least first"
            )


class Switch:
    """The state of a kill switch in this process. Counting a batch costs a few additions."""

    def __init__(self, rule: KillSwitch | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rule = rule
        self._clock = clock
        self._parts: deque[list[float]] = deque()  # when each began, how many ended in it, how many of them failed
        self._ended = self._failed = 0.0
        self._pause = 0.0
        self._next = 0.0
        self._successes = 0
        self.probing = False
        """One event is being tried, and no other may be."""
        self.reason = ""
        """Why it is off; empty while the handler works."""

    @property
    def off(self) -> bool:
        return bool(self.reason)

    def most(self, wanted: int) -> int:
        """How many of `wanted` events may be taken up now: all of them, one to try, or none."""
        if not self.reason:
            return wanted
        return 0 if self.probing or self._clock() < self._next else 1

    def wait(self) -> float:
        """Seconds until the next event may be tried."""
        return max(0.0, self._next - self._clock())

    def count(self, ended: int, failed: int) -> bool:
        """Take in a batch; True when that turned the switch, off or on again."""
        if self._rule is None or not ended:
            return False
        if self.reason:
            return self._judge(self._rule, failed)
        self._enter(self._rule, ended, failed)
        if self._ended < self._rule.least or self._failed <= self._rule.share * self._ended:
            return False
        self.reason = f"{self._failed:.0f} of the last {self._ended:.0f} events failed"
        self._pause = self._rule.first
        self._next = self._clock() + self._pause
        self._successes = 0
        return True

    def _judge(self, rule: KillSwitch, failed: int) -> bool:
        """What became of a probe; one that was under way when the switch went off counts like one."""
        if failed:
            self._successes = 0
            self._pause = min(self._pause * 2, rule.most)
            self._next = self._clock() + self._pause
            return False
        self._successes += 1
        self._next = self._clock()
        if self._successes < SUCCESSES:
            return False
        self.reason = ""
        self._parts.clear()
        self._ended = self._failed = 0.0
        return True

    def _enter(self, rule: KillSwitch, ended: int, failed: int) -> None:
        now = self._clock()
        while self._parts and self._parts[0][0] <= now - rule.within:
            _, gone, of_them = self._parts.popleft()
            self._ended -= gone
            self._failed -= of_them
        if not self._parts or self._parts[-1][0] <= now - rule.within / PARTS:
            self._parts.append([now, 0.0, 0.0])
        self._parts[-1][1] += ended
        self._parts[-1][2] += failed
        self._ended += ended
        self._failed += failed
