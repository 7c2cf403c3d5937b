"""Positions at which nothing goes on, found by looking at their backlogs again and again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from tidings.ports import Backlog

log = logging.getLogger("tidings.health")

STUCK: Final = 60.0
"""Seconds in which events wait for a handler, and none is delivered to any process, until that counts as trouble."""


class Progress:
    """Finds positions at which events wait and none is delivered to anybody: so looks a consumer that is a zombie."""

    def __init__(self, stuck_after: float = STUCK) -> None:
        self._stuck_after = stuck_after
        self._since: dict[str, tuple[float, int, int]] = {}
        self.troubles: tuple[str, ...] = ()
        self.stalled: frozenset[str] = frozenset()
        """The positions that these troubles are about."""

    def waited(self, position: str) -> float:
        """For how many seconds events have waited at a position, at least, while none was delivered to anybody."""
        since = self._since.get(position)
        return 0.0 if since is None else time.monotonic() - since[0]

    def look(self, backlogs: Mapping[str, Backlog | None], taken: Callable[[str], int]) -> None:
        """Take in the newest backlogs; `taken` counts what this process took up of a position so far."""
        now = time.monotonic()
        troubles: dict[str, str] = {}
        for position, backlog in backlogs.items():
            if backlog is None or not backlog.pending or backlog.in_flight:
                self._since.pop(position, None)
                continue
            count, pending = taken(position), backlog.pending
            since, before, more = self._since.get(position, (now, count, pending))
            if count != before or pending < more:
                since = now
            self._since[position] = (since, count, pending)
            if now - since > self._stuck_after:
                troubles[position] = (
                    f"{position}: {pending} events wait, and for {now - since:.0f} s none was delivered to any"
                    " process. Restart it if this lasts"
                )
        if troubles and not self.troubles:
            log.warning("%s", "; ".join(troubles.values()))
        self.troubles, self.stalled = tuple(troubles.values()), frozenset(troubles)
