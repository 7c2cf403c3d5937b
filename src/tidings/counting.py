"""How often an event has failed that waits in its place, and how often its process died while it was handled alone.

A copy on the retry route carries its count. An event that waits in place has no copy, and one that killed its process
could not say anything any more: their counts stand in notes, ``failed/<origin>`` and ``alone/<origin>``. They are read
when the broker says that a message was delivered before, and taken back when the event has come to its end.

The broker counts a delivery also where a process gave it back and lived. Where that would soon look as if it killed
processes, the one that stops says so in a note ``alive/<origin>``.

A note is written before what it speaks of can happen again. So a crash never multiplies a count, and takes back no more
than the failure that it fell upon.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from tidings.delivery import Delivery
from tidings.errors import WorldError
from tidings.notes import Notes
from tidings.policy import describe
from tidings.ports import Broker

log = logging.getLogger("tidings.counting")

SUSPICIOUS: Final = 3
"""After so many deliveries of one message that had no end, it may be what kills its process."""

REMEMBERED: Final = 4096
"""Of how many messages it is remembered that they were given back from here alive."""
GOODBYE: Final = 2.0
"""Seconds that a process which stops takes to note what it gives back."""


class Count(msgspec.Struct, frozen=True):
    """What a note says: how often, since when (Unix seconds), and of which bytes."""

    times: int = 0
    first: float = 0.0


class Survivor(msgspec.Struct, frozen=True):
    """What was given back alive: how often it had been delivered by then, what of that is noted, and its bytes."""

    delivered: int
    noted: int
    of: str


class Counts:
    """The counts of one handler in this process."""

    def __init__(self, broker: Broker, position: str) -> None:
        self._position = position
        self._notes = Notes(broker, position)
        self._writing = asyncio.Lock()
        self._unwritten: dict[str, str] = {}
        self._standing: set[str] = set()
        """The names of the notes about what is in hand here."""
        self._deaths: dict[str, Count] = {}
        """By origin: how often a process died over it alone. Part of its failures, but not of their note."""
        self._survived: dict[str, Survivor] = {}
        """By origin: the last delivery of it that was given back alive, as far as is known here."""

    # ── before: what others left ────────────────────────────────────────────────────────────────────────────────────

    async def ready(self, batch: Sequence[Delivery], *, in_place: bool) -> bool:
        """Write what could not be written yet, and look up what was delivered before and has no count here.

        Returns whether it looked anything up.

        Raises:
            WorldError: that cannot be done just now, so none of them may be begun.
        """
        if self._unwritten:
            await self._write()
        least = 1 if in_place else SUSPICIOUS
        unknown = [one for one in batch if one.delivered > least and not one.counted]
        if unknown:
            await self._look_up(unknown)
        return bool(unknown)

    def suspect(self, batch: Sequence[Delivery]) -> int | None:
        """The place of the first that may be what kills its process."""
        for place, one in enumerate(batch):
            if one.delivered > SUSPICIOUS and one.delivered - self._alive_at(one) > SUSPICIOUS:
                return place
        return None

    def _alive_at(self, delivery: Delivery) -> int:
        known = self._survived.get(delivery.origin_text)
        return 0 if known is None else known.delivered

    async def look_at(self, batch: Sequence[Delivery]) -> None:
        """Look up what others noted of those that were delivered often.

        Raises:
            WorldError: it cannot be looked up just now.
        """
        await self._look_up(one for one in batch if one.delivered > SUSPICIOUS and not one.counted)

    async def _look_up(self, deliveries: Iterable[Delivery]) -> None:
        found = await self._notes.read()
        for one in deliveries:
            failed, deaths = _noted(found, "failed", one), _noted(found, "alone", one)
            self._standing.update(name for name in (_name("failed", one), _name("alone", one)) if name in found)
            if alive := _noted(found, "alive", one).times:
                self._survived[one.origin_text] = Survivor(max(alive, self._alive_at(one)), alive, _bytes_of(one))
            if deaths.times:
                self._deaths[one.origin_text] = deaths
            if failed.times > one.failures or deaths.times:
                one.failures = max(one.failures, failed.times) + deaths.times
                one.first_failed = min(
                    (first for first in (one.first_failed, failed.first, deaths.first) if first), default=0.0
                )
            one.counted = True

    # ── afterwards ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def failed(self, deliveries: Sequence[Delivery]) -> None:
        """Count a failure of each, which waits in its place. What cannot be noted is tried again by `ready`."""
        for one in deliveries:
            one.first_failed = one.first_failed or time.time()
            one.failures += 1
            one.counted = True
            own = one.failures - self._deaths.get(one.origin_text, Count()).times
            self._set("failed", one, Count(own, one.first_failed))
        await self._try_to_write("how often an event failed")

    @property
    def knows_any(self) -> bool:
        """Whether there is anything here to be taken back of those that come to their end."""
        return bool(self._standing or self._survived)

    async def ended(self, deliveries: Iterable[Delivery]) -> None:
        """Take back what is noted of those that have come to their end."""
        if not self.knows_any:
            return
        for one in deliveries:
            known = self._survived.pop(one.origin_text, None)
            if known is not None and known.noted:
                self._unwritten[_name("alive", one)] = ""
            if self._standing:
                for kind in ("failed", "alone"):
                    self._clear(kind, one)
                self._deaths.pop(one.origin_text, None)
        await self._try_to_write("that an event has ended")

    def survived(self, delivery: Delivery) -> None:
        """It was given back by a process that lives: not what kills it."""
        if delivery.delivered > 1:
            before = self._survived.get(delivery.origin_text)
            noted = 0 if before is None else before.noted
            self._survived[delivery.origin_text] = Survivor(delivery.delivered, noted, _bytes_of(delivery))
            if len(self._survived) > REMEMBERED:
                del self._survived[next(iter(self._survived))]

    def recalled(self, deliveries: Iterable[Delivery]) -> None:
        """They were taken from a process that lives: that is written down with the next batch, at the latest."""
        for one in deliveries:
            self.survived(one)
        for origin, known in self._survived.items():
            if known.delivered - known.noted >= SUSPICIOUS:  # else it is no suspect for the next one, either
                self._unwritten[f"alive/{origin}"] = _text(Count(known.delivered), known.of)
                self._survived[origin] = Survivor(known.delivered, known.delivered, known.of)

    async def note_survivors(self, given_back: Iterable[Delivery]) -> None:
        """Say of what goes back, and went back before, that nobody died of it; the next process would take it for that.

        It is no loss if that cannot be noted: then each of them is handled alone.
        """
        self.recalled(given_back)
        try:
            async with asyncio.timeout(GOODBYE):
                await self._try_to_write("which events were given back alive")
        except TimeoutError:
            log.info("%s: which events were given back alive is not noted: no answer in time", self._position)

    # ── handled alone ───────────────────────────────────────────────────────────────────────────────────────────────

    def deaths(self, delivery: Delivery) -> int:
        """How often a process died while it handled this message alone."""
        return self._deaths.get(delivery.origin_text, Count()).times

    async def begin_alone(self, delivery: Delivery) -> None:
        """Note a death beforehand: if the process dies now, nobody could note it afterwards.

        Raises:
            WorldError: it cannot be noted, so it must not be begun.
        """
        deaths = self._deaths.get(delivery.origin_text, Count(0, time.time()))
        self._set("alone", delivery, Count(deaths.times + 1, deaths.first))
        try:
            await self._write()
        except WorldError:
            self._take_back_death(delivery)
            raise

    async def end_alone(self, delivery: Delivery) -> None:
        """It did not die: take the death back that was noted beforehand, unless the event has ended and all with it."""
        if _name("alone", delivery) in self._standing:
            self._take_back_death(delivery)
            await self._try_to_write("that an event did not kill its process")

    def _take_back_death(self, delivery: Delivery) -> None:
        if deaths := self._deaths.get(delivery.origin_text):
            self._set("alone", delivery, deaths)
        else:
            self._clear("alone", delivery)

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _set(self, kind: str, delivery: Delivery, count: Count) -> None:
        name = _name(kind, delivery)
        self._standing.add(name)
        self._unwritten[name] = _text(count, _bytes_of(delivery))

    def _clear(self, kind: str, delivery: Delivery) -> None:
        name = _name(kind, delivery)
        if name in self._standing:
            self._standing.discard(name)
            self._unwritten[name] = ""

    async def _try_to_write(self, what: str) -> None:
        try:
            if self._unwritten:
                await self._write()
        except WorldError as error:
            log.warning("%s: %s is not noted yet, and tried again: %s", self._position, what, describe(error))

    async def _write(self) -> None:
        async with self._writing:  # or an older text could be stored after a newer one
            texts = dict(self._unwritten)
            await self._notes.write(texts)
            for name, text in texts.items():
                if self._unwritten.get(name) == text:
                    del self._unwritten[name]


def _name(kind: str, delivery: Delivery) -> str:
    return f"{kind}/{delivery.origin_text}"


def _text(count: Count, of: str) -> str:
    return f"{count.times} {count.first:.3f} {of}"


def _bytes_of(delivery: Delivery) -> str:
    """A stream that was made anew gives out its places once more: a note is about these bytes."""
    return blake2b(delivery.body, digest_size=8).hexdigest()


def _noted(notes: Mapping[str, str], kind: str, delivery: Delivery) -> Count:
    times, _, rest = notes.get(_name(kind, delivery), "").partition(" ")
    first, _, of = rest.partition(" ")
    if of != _bytes_of(delivery):
        return Count()
    try:
        return Count(int(times), float(first))
    except ValueError:
        return Count()  # a note of nobody's
