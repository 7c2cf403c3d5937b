"""What a handler's own service may see of its dead letters, of the memory broker."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tidings.errors import BrokerUnavailable
from tidings.sight import Lines
from tidings.testing._position import Log


class MemoryLetterLog:
    """See `sight.LetterLog`. `trouble` says why the broker cannot be asked just now."""

    def __init__(self, trouble: Callable[[], str], log: Log, position: str) -> None:
        self._trouble, self._log, self._position = trouble, log, position
        self._at = 0

    async def more(self, most: int) -> Lines:
        if trouble := self._trouble():
            raise BrokerUnavailable(trouble)
        found: list[Mapping[str, str]] = []
        for entry in self._log.entries[self._at :]:
            if len(found) == most:
                break
            self._at += 1
            if entry.message.position == self._position:
                found.append(entry.message.headers)
        return Lines(found, whole=self._at == len(self._log.entries))
