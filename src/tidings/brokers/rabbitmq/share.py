"""One share of an ordered position: a queue with a single active consumer, which the server chooses.

Whoever has the share keeps it for as long as its channel stands. When that ends, all that came by it and is not
acknowledged is back in the queue in its old place, before the next consumer gets anything: so a successor needs no
gathering and no sorting. That is why nothing of a key is ever given back alone: later events of the key would overtake
it. A share that has to give something back ends its channel, and begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final, Protocol

from tidings.brokers.rabbitmq import names
from tidings.brokers.rabbitmq.connection import Connection
from tidings.brokers.rabbitmq.source import Source, Token

log = logging.getLogger("tidings.rabbitmq")

LEAVE_PATIENCE: Final = 1.0
"""Seconds that a share which is to go waits for the events of it that run; if they take longer it stays for now."""
STAY: Final = 5.0
"""Seconds until it is tried again."""
FEWEST: Final = 8
"""How many messages a share may have with us in any case: they are not handed over all at once."""


class ShareOwner(Protocol):
    """What a share needs of the feed that it belongs to."""

    def fit(self, most: int) -> int: ...
    def take(self, token: Token) -> None: ...
    def lost(self, source: Source) -> None: ...
    def let_go(self, tokens: Sequence[Token]) -> None: ...
    def release(self, source: Source, releases: Sequence[tuple[Token, float]]) -> bytes: ...
    async def emptied(self, share: Share, patience: float) -> bool: ...
    def hand_over_again(self, share: Share) -> None: ...
    def left(self) -> None: ...


class Share(Source):
    """Asks for one share, and lets it go."""

    def __init__(self, owner: ShareOwner, connection: Connection, position: str, number: int, most: int) -> None:
        each = max(min(most, FEWEST), most // names.SHARES)
        super().__init__(
            owner, connection, f"{position}, share {number}", [(names.share_queue(position, number), each)]
        )
        self.number = number
        self.share_owner = owner
        self.wanted = False
        self.quiet = False
        """It takes nothing just now: it is about to go, or to begin anew."""
        self.leaving = False
        self.stays_until = 0.0
        self._running: asyncio.Task[None] | None = None
        self._going: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Stand in the line of those who want it; the first in it has it."""
        self.wanted = True
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self.run(), name=f"tidings-rabbitmq-share-{self.name}")

    @property
    def died(self) -> bool:
        return self._running is not None and self._running.done() and self.wanted

    def leave(self) -> None:
        """Let another process have it: finish what runs, give the rest back, and step out of the line."""
        if not self.quiet:
            self.quiet = self.leaving = True
            self._going = asyncio.create_task(self._leave(), name=f"tidings-rabbitmq-leave-{self.name}")

    async def _leave(self) -> None:
        try:
            if not await self.share_owner.emptied(self, LEAVE_PATIENCE):
                log.info("%s stays here for now: an event of it takes long", self.name)
                self.stays_until = time.monotonic() + STAY
                self.quiet = self.leaving = False
                self.share_owner.hand_over_again(self)
                return
            await self.end()
        finally:
            self.quiet = self.leaving = False
        self.share_owner.left()

    def rewind(self, after: float) -> None:
        """Give all of it back in its order, once what runs has ended, and take it again."""
        if not self.quiet:
            self.quiet = True
            self._going = asyncio.create_task(self._rewind(after), name=f"tidings-rabbitmq-rewind-{self.name}")

    async def _rewind(self, after: float) -> None:
        try:
            await asyncio.sleep(after)
            while self.channel is not None and not await self.share_owner.emptied(self, LEAVE_PATIENCE):
                pass  # that waits, for as long as an event may take
            self.drop()
        finally:
            self.quiet = False

    def ask_for_fewer(self) -> None:
        """A share cannot be taken from by two consumers in turn: it begins anew."""
        if self._asked != [self.owner.fit(most) for _, most in self.queues]:
            self.rewind(0.0)

    async def end(self) -> None:
        """Step out of the line; everything goes back at once."""
        self.wanted = False
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        await self.detach()

    async def close(self) -> None:
        """The same, whatever is under way."""
        if self._going is not None:
            self._going.cancel()
            await asyncio.gather(self._going, return_exceptions=True)
        await self.end()
