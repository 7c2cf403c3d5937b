"""How the processes of an ordered position hear of each other: a word a second by core NATS, and nothing is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tidings.brokers._members import Others
from tidings.brokers.nats.names import live_subject

if TYPE_CHECKING:
    from tidings.brokers.nats.link import Link


class Members(Others):
    """See `Others`."""

    def __init__(self, position: str, changed: Callable[[bool], None]) -> None:
        super().__init__(changed)
        self._subject = live_subject(position).encode()
        self._listens: tuple[Link, int] | None = None

    def attach(self, link: Link) -> None:
        """Listen on a new link."""
        self.revive()
        self._listens = (link, link.subscribe_raw(self._subject, self._take))

    def detach(self) -> None:
        """Listen no more."""
        link, sid = self._listens or (None, 0)
        self._listens = None
        if link is not None:
            link.unsubscribe_raw(sid)

    def say(self, link: Link, wants: int, *, leaving: int = 0, new: bool = False, leaves: bool = False) -> None:
        word = self.word(wants, leaving=leaving, new=new, leaves=leaves)
        link.send(b"PUB %b %d\r\n%b\r\n" % (self._subject, len(word), word))

    def _take(self, subject: bytes, reply: bytes, headers: bytes | None, data: bytes) -> None:
        self.heard(data)
