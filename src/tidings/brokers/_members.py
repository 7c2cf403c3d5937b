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
    new: bool = False
    """It has just come, and wants to hear from all."""
    leaves: bool = False


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Word).decode


class Member:
    """Another process, and when it was heard."""

    __slots__ = ("heard", "wants")

    def __init__(self, wants: int, heard: float) -> None:
        self.wants = wants
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

    def revive(self) -> None:
        """Nobody was heard while there was no connection, so nobody is dead for that."""
        now = time.monotonic()
        for other in self._others.values():
            other.heard = now

    def word(self, wants: int, *, new: bool = False, leaves: bool = False) -> bytes:
        """What is to be said to the others."""
        return _encode(Word(self.id, wants, new, leaves))

    def living(self) -> list[str]:
        """The ids of all that live, in order."""
        now = time.monotonic()
        for id, other in list(self._others.items()):
            if now - other.heard > DEAD_AFTER:
                del self._others[id]
        return sorted([self.id, *self._others])

    def wanted_by(self, share: int, id: str = "") -> bool:
        """Whether another process, or that one, asks for a share or has it."""
        return any(other.wants >> share & 1 for name, other in self._others.items() if id in ("", name))

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
            if self._others.pop(word.id, None) is not None:
                self._changed(False)
        elif known is None:
            if len(self._others) < MOST:
                self._others[word.id] = Member(word.wants, time.monotonic())
                self._changed(True)
        else:
            known.heard = time.monotonic()
            before, known.wants = known.wants, word.wants
            if before != word.wants or word.new:
                self._changed(word.new)
