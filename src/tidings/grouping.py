"""How many events of a batch are handled together: fewer after a failure or a lock, and more again while all goes well.

What shares a transaction with an event that fails is done twice. With one failing event in a hundred, groups of 256
would be rolled back two or three times each; at the size where every second group fails, most of the work is kept.

A lock that others hold costs more: both sides may stand and wait for each other until one gives up, and in that time
hundreds of events could have been handled. So after a lock groups become small at once and grow slowly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from tidings.delivery import Decision, Delivery
from tidings.order import Holds

UNLIMITED: Final = 1 << 30

PEACE: Final = 0.25
"""Seconds without a lock until groups may be twice as large again. Twice as long each time that this was too early."""
LONGEST_PEACE: Final = 60.0


class Work(msgspec.Struct, eq=False):
    """One delivery on its way through the steps; `decision` is set once nothing can change it any more."""

    delivery: Delivery
    event: Any = None
    """An `Event`; None where a decision is there already, and then nobody asks."""
    decision: Decision | None = None
    failure: Decision | None = None
    """How it failed, while its claim is open. It left nothing there, so that stays so whatever becomes of the rest."""
    most: int = UNLIMITED
    """How many it may be handled with, itself included: half, after an error that did not tell whose fault it was."""
    first: bool = False
    """Nothing before it is handled with it: it failed behind an event of its key, or it is likely to fail again."""


def keep_failures(group: list[Work], names: Callable[[Work], list[str]]) -> None:
    """What failed has failed, also where the rest was taken back; but not behind what it has to wait for."""
    for index, work in enumerate(group):
        if work.failure is None:
            continue
        failure, work.failure = work.failure, None
        if work.decision is None:
            before = {name for earlier in group[:index] for name in names(earlier)}
            if before.isdisjoint(names(work)):
                work.decision = failure
            work.first = True


class Grouping:
    """Of one handler."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic, *, blames_nobody: bool = False) -> None:
        self._blames_nobody = blames_nobody
        self._most = self._now = self._ceiling = most
        self._clock = clock
        self._peace = PEACE
        self._raise_at = 0.0
        self._raised = False
        self.unasked = False
        """An event was read whose type the handler did not ask for."""

    def next(self, works: list[Work], holds: Holds | None) -> list[Work]:
        """What is handled next, together; an event behind a held key goes there instead."""
        if holds:
            for work in [work for work in works if work.delivery.key and holds.blocks(work.delivery.key)]:
                holds.follow(work.delivery.key or "", work.delivery)
                works.remove(work)
        if any([work.delivery.withdrawn for work in works]):
            return []  # its lane takes out what another process is to have, and comes again with the rest
        most = min(self._now, works[0].most) if works else 0
        firsts = [work.first for work in works[1:most]]
        return works[: 1 + firsts.index(True) if True in firsts else most]

    def set_apart(self, work: Work) -> None:
        """It has failed before. While others fail too it is handled alone: it is likely to take them back again.

        So it is, whatever others do, where the call of a batch was set aside that it was part of: nobody knows whose
        fault that was.
        """
        if self._now < self._most or self._blames_nobody:
            work.first, work.most = True, 1

    def halve(self, group: list[Work], *, alone: bool = False) -> None:
        """It failed together, by whose fault is not known. Halves, and halves of those that fail again, find out.

        Where each failure leaves a call behind, they are few: then each is tried `alone`.
        """
        for work in group:
            work.most = 1 if alone else max(1, len(group) // 2)

    def fewer(self, group: list[Work]) -> None:
        """A group was taken back. One that was alone took nobody with it."""
        if len(group) > 1:
            self._now = max(1, self._now // 2)

    def locked(self, group: list[Work]) -> None:
        """A group was taken back for a lock that others hold."""
        if self._raised:
            self._peace, self._raised = min(2 * self._peace, LONGEST_PEACE), False
        self._now = self._ceiling = max(1, min(self._now, len(group)) // 4)
        self._raise_at = self._clock() + self._peace

    def more(self) -> None:
        """A group was applied."""
        if self._ceiling < self._most and (now := self._clock()) >= self._raise_at:
            self._ceiling = min(self._most, self._ceiling * 2)
            self._raise_at = now + self._peace
            self._raised = self._ceiling < self._most
            if not self._raised:
                self._peace = PEACE
        self._now = min(self._ceiling, self._now * 2)
