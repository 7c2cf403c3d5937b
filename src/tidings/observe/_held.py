"""How many dead letters of a handler are held, and since when: the fold of their log, of which only that much is kept.

It is what `tidings dead list` shows: a letter is held until it is redriven or discarded, and anew if it dies again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import msgspec

from tidings.delivery import Header
from tidings.sight import LetterLog

MOST_LINES: Final = 4000
"""Lines of a log that are read at one look."""
MOST_KNOWN: Final = 100_000
"""Letters of a handler that are known one by one. Those beyond are only counted, which bounds the memory."""


class Held(msgspec.Struct, frozen=True):
    """The dead letters of a handler that wait for somebody."""

    letters: int
    since: float | None
    """When the oldest of them died, Unix seconds; None where there are none."""


class HeldLetters:
    """Reads the log of one handler to its end, and what is appended later at each look. `begin` is to read it anew."""

    def __init__(self, begin: Callable[[], LetterLog], *, most_known: int = MOST_KNOWN) -> None:
        self._begin, self._most_known = begin, most_known
        self._log = begin()
        self.held: Held | None = None
        """None as long as the log was not read to its end, or where it may not be."""
        self.behind = True
        """There is more to read at once."""
        self._forget()

    def _forget(self) -> None:
        self._known: dict[str, float] = {}
        self._beyond = 0
        self._parts: dict[str, set[str]] = {}

    async def look(self) -> None:
        """Raises BrokerUnavailable where it cannot be read just now."""
        if self._beyond and len(self._known) < self._most_known // 2:
            self._log = self._begin()  # there is room for those that were only counted, and nobody knows their age
            self._forget()
        lines = await self._log.more(MOST_LINES)
        if lines is None:
            self.held, self.behind = None, False
            return
        if lines.anew:
            self._forget()
        for headers in lines.headers:
            self._add(headers)
        self.behind = not lines.whole
        if lines.whole:
            self.held = Held(len(self._known) + self._beyond, min(self._known.values(), default=None))

    def _add(self, headers: Mapping[str, str]) -> None:
        letter = headers.get(Header.LETTER)
        if letter is None:
            return  # a stranger's message
        if headers.get(Header.MARKER):
            if self._known.pop(letter, None) is None and self._beyond:
                self._beyond -= 1
            return
        part = headers.get(Header.PART, "1/1")
        count = part.partition("/")[2]
        if count not in ("", "1"):
            parts = self._parts.setdefault(letter, set())
            parts.add(part)
            if len(parts) < _number(count):
                return
            del self._parts[letter]
        if len(self._known) < self._most_known or letter in self._known:
            self._known.setdefault(letter, _moment(headers.get(Header.LAST_FAILURE, "")))
        else:
            self._beyond += 1


def _moment(text: str) -> float:
    """When a letter died; one that does not say so has died now, so that it alarms nobody too early."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return datetime.now(UTC).timestamp()


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
