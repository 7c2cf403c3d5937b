"""The processes of an ordered position that are alive, as they tell each other: a hint, and no more.

A word a second goes to whoever listens, and nothing is stored. What it says decides who asks for which share. Who gets
it, the server says, which serves one process for each share: so a process that is wrong about the others, or hears
nothing of them, asks in vain at worst. How a word travels is the broker's own.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from typing import Final

import msgspec

log = logging.getLogger("tidings.brokers")

DEAD_AFTER: Final = 3.0
"""Seconds of silence after which a member is not counted any more."""
MOST: Final = 4096
"""How many others are remembered: whatever somebody else says, memory stays bounded."""


class Word(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a process says of itself. The shares are bits of a number."""

    id: str
    wants: int = 0
    """The shares that it asks for, or has."""
    leaving: int = 0
    """Those that it lets go, or would if it had not gone, of which something still runs there."""
    new: bool = False
    """It has just come, and wants to hear from all."""
    leaves: bool = False


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Word).decode


class Member:
    """Another process, and when it was heard."""

    __slots__ = ("heard", "leaving", "wants")

    def __init__(self, word: Word, heard: float) -> None:
        self.wants, self.leaving = word.wants, word.leaving
        self.heard = heard


class Others:
    """The living processes of one position, this one among them.

    Parameters:
        changed: called when somebody came, left, or wants other shares than before; `True` if an answer is wanted.
    """

    def __init__(self, changed: Callable[[bool], None]) -> None:
        self.id = secrets.token_hex(8)
        self._changed = changed
        self._others: dict[str, Member] = {}
        self._ending: dict[str, Member] = {}
        """Those that are not counted any more, and finish what runs."""

    def revive(self) -> None:
        """Nobody was heard while there was no connection, so nobody is dead for that."""
        now = time.monotonic()
        for other in self._others.values():
            other.heard = now

    def word(self, wants: int, *, leaving: int = 0, new: bool = False, leaves: bool = False) -> bytes:
        """What is to be said to the others."""
        return _encode(Word(self.id, wants, leaving, new, leaves))

    def living(self) -> list[str]:
        """The ids of all that live, in order."""
        return sorted([self.id, *_alive(self._others)])

    def wanted_by(self, share: int, id: str = "") -> bool:
        """Whether another process, or that one, asks for a share or has it."""
        return any(other.wants >> share & 1 for name, other in self._others.items() if id in ("", name))

    def had_by(self, share: int) -> bool:
        """Whether something of a share may be with another process that lives."""
        others = (*_alive(self._others).values(), *_alive(self._ending).values())
        return any((other.wants | other.leaving) >> share & 1 for other in others)

    def heard(self, data: bytes) -> None:
        """Take in what somebody said; a stranger's noise changes nothing."""
        try:
            word = _decode(data)
        except msgspec.DecodeError:
            log.debug("what was heard is no word of a process")
            return
        if word.id == self.id:
            return
        known = self._others.get(word.id)
        if word.leaves:
            self._ending.pop(word.id, None)
            if word.leaving and len(self._ending) < MOST:
                self._ending[word.id] = Member(word, time.monotonic())
            if self._others.pop(word.id, None) is not None:
                self._changed(False)
        elif known is None:
            if len(self._others) < MOST:
                self._others[word.id] = Member(word, time.monotonic())
                self._changed(True)
        else:
            known.heard = time.monotonic()
            before, known.wants, known.leaving = known.wants, word.wants, word.leaving
            if before != word.wants or word.new:
                self._changed(word.new)


def _alive(members: dict[str, Member]) -> dict[str, Member]:
    """Without those that have been silent for too long."""
    now = time.monotonic()
    for id, other in list(members.items()):
        if now - other.heard > DEAD_AFTER:
            del members[id]
    return members
