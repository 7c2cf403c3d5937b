"""Keys that are held by a dead letter: its followers become letters too, and keep their places.

What is held stands in notes, ``held/<key>``, so that a restart and a take-over know it. The order of writing makes
every crash harmless: the note before the letter, the letter before the acknowledgement. A follower whose place was
noted and whose letter was not stored comes again, and gets the same place. A redriven copy passes when all places
before its own need nothing any more; that it has passed is noted after its effect and before its acknowledgement.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from weakref import WeakKeyDictionary

import msgspec

from tidings.copies import is_discarded, letter_id, place_of
from tidings.delivery import NO_HEADERS, DeadLettered, Decision, Delivery, Done, Duplicate, Header, Retried
from tidings.grouping import Work
from tidings.handler import Handler
from tidings.notes import Notes
from tidings.order import Holds
from tidings.ports import Broker

log = logging.getLogger("tidings.holding")

PREFIX: Final = "held/"


class Held(msgspec.Struct, kw_only=True):
    """A held key, as its note says it. Places are numbered from 1."""

    first: str
    """The id of the letter that the others wait behind."""
    placed: int = 0
    """How many places were given out."""
    settled: int = 0
    """Up to this place nothing is left to do."""
    gone: list[int] = []
    """Places behind it that were discarded."""
    recent: dict[str, int] = {}
    """The places of letters whose messages may come again, by the ids of the letters."""
    going: bool = False
    """The first was decided about, and the others are being given back."""

    def settle(self, place: int) -> None:
        """Nothing is left to do about a place; perhaps not about those before it either."""
        if place == self.settled + 1:
            self.settled = place
        elif place > self.settled and place not in self.gone:
            self.gone.append(place)
        while self.settled + 1 in self.gone:
            self.settled += 1
            self.gone.remove(self.settled)


_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Held).decode


def held_keys(notes: Mapping[str, str]) -> dict[str, Held]:
    """The keys that are held, of all the notes of a handler. What cannot be read is nobody's, and is passed over."""
    found: dict[str, Held] = {}
    for name, text in notes.items():
        if name.startswith(PREFIX):
            try:
                found[name.removeprefix(PREFIX)] = _decode(text)
            except msgspec.MsgspecError:
                log.error("the note %r cannot be read; its key counts as free", name)
    return found


def holding_of(handler: Handler, broker: Broker) -> Holding | None:
    """What a handler needs to hold keys, where its `on_dead` asks for that."""
    on_dead = handler.rules.on_dead
    return None if on_dead == "skip" else Holding(broker, handler.position, blocks=on_dead == "block")


class Holding:
    """The held keys of one handler, as this process knows them while the position is its own."""

    def __init__(self, broker: Broker, position: str, *, blocks: bool) -> None:
        self._position = position
        self._notes = Notes(broker, position)
        self.blocks = blocks
        self._lock = asyncio.Lock()
        self._unwritten: set[str] = set()
        self._headers: WeakKeyDictionary[Delivery, Mapping[str, str]] = WeakKeyDictionary()
        self.keys: dict[str, Held] = {}
        self.decided = asyncio.Event()
        """A key goes on, or has more to give back since: see `releasing`."""

    async def refresh(self) -> None:
        """Ask what others left. What this process did not manage to write comes again, and so does what it is about.

        Raises:
            WorldError: nobody answers, so no event may be handled.
        """
        async with self._lock:
            self.keys = held_keys(await self.notes())
            self._unwritten.clear()
        if any(held.going for held in self.keys.values()):
            self.decided.set()

    async def notes(self) -> dict[str, str]:
        """All notes of the handler as they stand at the broker; raises as `refresh`."""
        return await self._notes.read()

    # ── before an event is handled ──────────────────────────────────────────────────────────────────────────────────

    def keep_back(self, works: Sequence[Work], holds: Holds | None) -> bool:
        """Decide about the followers of held keys, and say whether there are any: only what is at its turn passes."""
        passing: dict[str, int] = {}
        kept = False
        for work in works if self.keys else ():
            key = work.delivery.key
            if work.decision is not None or key is None or (held := self.keys.get(key)) is None:
                continue
            place = self._place(held, work.delivery)
            turn = passing.get(key, held.settled) + 1
            while turn in held.gone:
                turn += 1
            if 0 < place <= turn:
                passing[key] = max(place, passing.get(key, held.settled))
            elif not place or holds is None or not holds.blocks(key):
                reason = f"waits behind the letter {held.first} of its key" + (f", at place {place}" if place else "")
                work.decision = DeadLettered(reason=reason, code="behind")
                kept = True
        return kept

    def _place(self, held: Held, delivery: Delivery) -> int:
        """Its place in the line of its key; 0 for an event that has none yet."""
        noted = held.recent.get(letter_id(delivery, self._position), 0) if held.recent else 0
        return noted or place_of(delivery)

    # ── before it is settled ────────────────────────────────────────────────────────────────────────────────────────

    def concerns(self, delivery: Delivery, decision: Decision) -> bool:
        """Whether this end has to be noted before anything else is done about it."""
        if (key := delivery.key) is None:
            return False
        if isinstance(decision, DeadLettered) or key in self._unwritten:
            return not isinstance(decision, Retried)
        held = self.keys.get(key)
        return held is not None and isinstance(decision, Done | Duplicate) and self._place(held, delivery) > 0

    async def note(self, ended: Iterable[tuple[Delivery, Decision]]) -> None:
        """Note new places and those that need nothing any more.

        Raises:
            WorldError: it is not noted, so neither a letter may be stored nor a message be acknowledged.
        """
        async with self._lock:
            for delivery, decision in ended:
                assert delivery.key is not None
                if isinstance(decision, DeadLettered):
                    self._bury(delivery.key, delivery)
                else:
                    self._pass(delivery.key, delivery)
                self._unwritten.add(delivery.key)
            await self._write()

    def _bury(self, key: str, delivery: Delivery) -> None:
        letter = letter_id(delivery, self._position)
        if (held := self.keys.get(key)) is None:
            held = self.keys[key] = Held(first=letter)
        place = self._place(held, delivery)
        if not held.settled < place <= held.placed:
            held.placed = place = held.placed + 1
            held.recent[letter] = place
        if place == held.settled + 1:
            held.first, held.going = letter, False
        self._headers[delivery] = {Header.PLACE: str(place)} | (
            {} if held.first == letter else {Header.BEHIND: held.first}
        )

    def _pass(self, key: str, delivery: Delivery) -> None:
        if (held := self.keys.get(key)) is None:
            return
        before = held.settled
        held.settle(self._place(held, delivery))
        if held.settled >= held.placed:
            del self.keys[key]
        elif held.settled > before:
            held.going = self.blocks

    async def _write(self) -> None:
        names = list(self._unwritten)
        texts = {PREFIX + key: _encode(self.keys[key]).decode() if key in self.keys else "" for key in names}
        await self._notes.write(texts)
        self._unwritten.difference_update(names)

    # ── when it is settled ──────────────────────────────────────────────────────────────────────────────────────────

    def headers(self, delivery: Delivery) -> Mapping[str, str]:
        """What its letter says of its place."""
        return self._headers.get(delivery, NO_HEADERS)

    def acknowledged(self, deliveries: Iterable[Delivery]) -> None:
        """Their messages do not come again."""
        for delivery in deliveries:
            if (key := delivery.key) is None or (held := self.keys.get(key)) is None:
                continue
            if held.recent:
                held.recent.pop(letter_id(delivery, self._position), None)
            if held.going and (not place_of(delivery) or is_discarded(delivery) or delivery not in self._headers):
                self.decided.set()
