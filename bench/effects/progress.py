"""What a contestant, in a process of its own, tells whoever started it: a line once it
stands, one for the first event and one for each batch.

Times are of the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence

from tidings.delivery import DeadLettered, Done, Unsettled
from tidings.ports import Settled


class Progress:
    """Of a contestant by hand, and as an observer of a service."""

    def __init__(self, *, commits: bool = False) -> None:
        self._began = False
        self._commits = commits
        """Whether the moment of each event's commit is told too, which only latencies need."""

    def ready(self) -> None:
        """Whatever is published from now on is applied."""
        _say("ready")

    def began(self, at: float) -> None:
        """The first event came then."""
        if not self._began:
            self._began = True
            _say("began", at)

    def committed(self, quantities: Iterable[int]) -> None:
        """These events' effects were committed just now."""
        if self._commits:
            now = time.perf_counter()
            for quantity in quantities:
                _say("commit", quantity, now)

    def ended(self, done: int, dead: int = 0) -> None:
        """So many events were applied and acknowledged, so many are dead letters."""
        _say("ended", done, dead, time.perf_counter())

    # ── as an observer ──────────────────────────────────────────────────────────────────────────────────────────────

    def received(self, position: str, count: int) -> None:
        self.began(time.perf_counter())

    def settled(self, position: str, batch: Sequence[Settled], seconds: float) -> None:
        outcomes = [one.outcome.wanted if isinstance(one.outcome, Unsettled) else one.outcome for one in batch]
        done = sum(isinstance(outcome, Done) for outcome in outcomes)
        dead = sum(isinstance(outcome, DeadLettered) for outcome in outcomes)
        if done or dead:
            self.ended(done, dead)


def _say(*words: object) -> None:
    sys.stdout.write(" ".join(map(repr, words)).replace("'", "") + "\n")
    sys.stdout.flush()
