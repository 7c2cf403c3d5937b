"""Events of a type that this process did not ask for: nobody's business, or that of newer code of the same handler.

Old and new processes share a position. While a deployment rolls, what only the new ones ask for comes to old ones too.
The broker remembers what the position takes by now, so it is asked: what nobody asks for is passed over, and the rest
is put off, which is no failure, until it comes to a process that asks for it: at the latest when this one has stopped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Final

from tidings.delivery import Delivery, Done, Retried
from tidings.grouping import Work
from tidings.policy import describe
from tidings.ports import Broker
from tidings.rolling import BELIEVED, Remembers, Sifts

log = logging.getLogger("tidings.newer")

UNASKED: Final = Done(skipped=True)
"""Of an event whose type this process did not ask for, until it is known whether newer code does. Known by what it is,
not by what it says: `SKIPPED` is of what nobody has to ask about."""
PUT_OFF: Final = 2.0
"""Seconds until an event comes again that newer code asks for."""
PATIENCE: Final = 1.0
"""Seconds that a batch waits for the answer, beside whose events there may be some that can be handled."""
LOOK: Final = 10.0
"""Seconds between two looks whether newer code still asks for what waits for it: it may have been rolled back."""


class Newer:
    """What newer code of one handler asks for, and this process does not."""

    def __init__(self, position: str, asked: Iterable[str], broker: Broker) -> None:
        self._position = position
        self._asked = frozenset(asked)
        self._broker = broker if isinstance(broker, Remembers) else None
        self.feed: object = None
        """The `Feed`, told what it need not bring where it can be told that."""
        self._types: frozenset[str] = frozenset()
        self._until = self._not_before = float("-inf")
        """Until when that is known, and before when nobody is asked again who did not answer."""
        self._asking: asyncio.Task[None] | None = None
        self._silent = False
        self._said: frozenset[str] = frozenset()

    @property
    def asks(self) -> bool:
        """Whether the broker can be asked; else what was not asked for is nobody's business."""
        return self._broker is not None

    async def look_at(self, works: Sequence[Work], *, ordered: bool) -> None:
        """Pass over what nobody asks for, and put the rest off.

        In order, one behind an event of its key stays undecided, and alone, until that has come to its end.
        """
        if self._broker is None:
            return
        known = await self._known()
        keys: set[str] = set()
        for work in works:
            key = work.delivery.key if ordered else None
            if work.decision is UNASKED and (not known or _type_of(work.delivery) in self._types):
                work.decision = None if key in keys else self.put_off(work.delivery)
                work.first = work.decision is None
            elif work.decision is None and key is not None:
                keys.add(key)

    def put_off(self, delivery: Delivery) -> Retried:
        """What becomes of an event that newer code asks for, or of which nobody says whether it does."""
        reason = f"{_type_of(delivery)} is for newer code of this handler, and waits for a process that runs it"
        return Retried(after=PUT_OFF, reason=reason, counted=False)

    async def run(self) -> None:
        """Ask from time to time while something waits, also where it is left with the broker and does not come."""
        try:
            while self._broker is not None:
                await asyncio.sleep(LOOK)
                if self._types:
                    await self._known()
        finally:
            if self._asking is not None:
                self._asking.cancel()

    async def _known(self) -> bool:
        """Whether it is known what newer code asks for; one question at a time, and not for each event."""
        if time.monotonic() >= max(self._until, self._not_before):
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask(), name=f"tidings {self._position} newer code")
            await asyncio.wait({self._asking}, timeout=PATIENCE)
            if not self._asking.done():
                self._no_answer(f"no answer in {PATIENCE:g} s")
        return time.monotonic() < self._until

    async def _ask(self) -> None:
        assert self._broker is not None
        began = time.monotonic()
        try:
            types = await self._broker.taken(self._position)
        except Exception as error:
            return self._no_answer(describe(error))
        self._types, self._until, self._silent = frozenset(types) - self._asked, began + BELIEVED, False
        if isinstance(self.feed, Sifts):
            self.feed.sift(self._types, self._until)
        if not self._types <= self._said:
            what = ", ".join(sorted(self._types))
            log.warning("%s: %s is for newer code, and waits for a process that runs it", self._position, what)
        self._said = self._types

    def _no_answer(self, why: str) -> None:
        self._not_before = time.monotonic() + BELIEVED
        if not self._silent:
            self._silent = True
            text = "%s: what this process did not ask for waits, because nobody says whether newer code does: %s"
            log.warning(text, self._position, why)


def _type_of(delivery: Delivery) -> str:
    return delivery.envelope.type if delivery.envelope else ""
