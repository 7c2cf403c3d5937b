"""The retry route of a share: copies of one key come in their order, also behind a process that died with some.

The server pins nobody to it; whoever is pinned to the share's events takes its copies, too. What the one before had
open would come again only after the ack wait, behind later copies of the same keys: those of a replay, say, or redriven
letters. So it is taken over as the events are: with the first copy that comes, all that is open elsewhere is given back
in the predecessor's name, gathered, and handed over in its order. A gap in the numbers of deliveries tells that
somebody else got one, and all is sorted anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final, Protocol

from tidings.brokers.nats.api import Api, ApiError
from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.consumers import pinned_in
from tidings.brokers.nats.link import Link
from tidings.brokers.nats.pull import Pull
from tidings.brokers.nats.takeover import AGAIN, LONGEST, TakeOver, info_of
from tidings.brokers.nats.tasks import Tasks
from tidings.brokers.nats.tokens import Token
from tidings.delivery import Delivery
from tidings.errors import BrokerUnavailable

log = logging.getLogger("tidings.nats")

LOOK: Final = 1.0
"""Seconds between two looks whether anybody is pinned while copies may wait for that."""
LOOK_AGAIN: Final = 10.0
"""The same while they are taken."""
FAILED: Final = 1.0
"""Seconds until a take-over that failed is tried again."""


class Owner(Protocol):
    """What is needed of the feed."""

    held: dict[Token, Delivery]

    def take_copy(self, token: Token, delivery: Delivery, subject: bytes, headers: bytes | None) -> None: ...
    def refuse(self, token: Token, what: bytes) -> None: ...
    def begins(self) -> None: ...
    def others_have(self, share: int) -> bool: ...


class Sharing(Protocol):
    """What is needed of the share."""

    number: int
    name: str
    connection: Connection
    wanted: bool
    preferred: bool
    pin: str

    @property
    def leaving(self) -> bool: ...
    async def info(self) -> dict[str, Any]: ...


class Copies:
    """Asks for the copies of one share while this process has it, or while nobody does."""

    pin = ""
    in_doubt = False

    def __init__(self, share: Sharing, owner: Owner, api: Api, pull: Pull) -> None:
        self.name = f"{share.name}, copies"
        self.pull = pull
        self.connection = share.connection
        self._share = share
        self._owner = owner
        self._api = api
        self._over = TakeOver(self)
        self._tasks = Tasks(f"{pull.durable}-copies")
        self._active = False
        """They are handed over as they come."""
        self._stands_in = False
        """Copies are asked for, though nobody is pinned: nobody will be before the next event."""
        self._looked = 0.0
        pull.take = self._take
        pull.note = self._note
        pull.restart = self._restart

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def go(self, link: Link) -> None:
        """The share is ours: take its copies, if that is not done already."""
        stood_in, self._stands_in = self._stands_in, False
        if not stood_in:
            self.attach(link)

    def attach(self, link: Link) -> None:
        """Ask on a link. The first copy says how to speak of those that others have."""
        self.pull.detach()
        self._active = False
        self.pull.only_one, self.pull.ceiling = True, None
        self.pull.blocked = self._over.can_speak
        if self._over.can_speak:
            self._begin()
        self.pull.attach(link)

    def let_go(self) -> None:
        """Another process has the share, or is to have it."""
        self._stands_in = self._active = False
        self._tasks.cancel()
        self.pull.detach()
        self._over.forget()

    def pause(self) -> None:
        """Begin nothing new; what was asked for may still come."""
        self._tasks.cancel()

    def link_down(self) -> None:
        """What was gathered is still ours, and sorted again on the next link."""
        self._tasks.cancel()
        self._stands_in = self._active = False

    def refuse_gathered(self) -> None:
        """Give back what was not handed over yet."""
        for token, _ in self._over.sorted():
            self._owner.refuse(token, b"-NAK")

    # ── taking over ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, token: Token, delivery: Delivery, subject: bytes, headers: bytes | None) -> None:
        self._note(token, headers)
        if self._active:
            self._owner.take_copy(token, delivery, subject, headers)
        else:
            self._owner.held[token] = delivery
            self._over.take(token, delivery)

    def _note(self, token: Token, headers: bytes | None) -> None:
        """See to the number of a delivery, whoever it is for."""
        if self._active and not self._over.follows(token):
            log.info("%s: one went to another process; what is open is sorted anew", self.name)
            self._restart()
        elif not self._active and not self._tasks.runs("take over"):
            self._over.pinned_by(token)
            self._begin()
        self._over.note(token, counts=not self._active)

    def _restart(self) -> None:
        if (link := self.connection.link) is not None:
            self.attach(link)

    def _begin(self) -> None:
        self._active = False
        self.pull.blocked = True
        self._tasks.spawn("take over", self._take_over())

    async def _take_over(self) -> None:
        while True:
            try:
                if await self._left_by_others():
                    await self._over.run()
                else:
                    await self._over.skip()
                break
            except (BrokerUnavailable, ApiError) as error:
                log.debug("%s: not taken over yet: %s", self.name, error)
            except Exception:
                log.exception("%s: not taken over, tried again", self.name)
            await asyncio.sleep(FAILED)
        self.pull.ceiling, self.pull.only_one, self.pull.blocked = None, False, False
        self._active = True
        for token, delivery in self._over.sorted():
            self._owner.take_copy(token, delivery, b"", None)
        self.pull.refill()

    async def _left_by_others(self) -> bool:
        """Wait until no living process has the share; false if one keeps it, as for an event that takes long."""
        end = time.monotonic() + LONGEST
        while self._owner.others_have(self._share.number):
            if time.monotonic() > end:
                return False
            await asyncio.sleep(AGAIN)
        return True

    async def info(self) -> dict[str, Any]:
        """What the server says of the route."""
        return await info_of(self._api, self.pull)

    def sure(self, since: float) -> None:
        """Whose the share is, its events say."""

    def held_here(self) -> dict[Token, Delivery]:
        return self._owner.held

    # ── while nobody is pinned ──────────────────────────────────────────────────────────────────────────────────────

    def look_soon(self) -> None:
        """Something has changed: look in the next round."""
        self._looked = 0.0

    def look(self) -> None:
        """The server pins with an event only: without one, copies would wait, redriven letters among them.

        So the process that is to have the share takes them while nobody is pinned. Called every second or so.
        """
        share, every = self._share, LOOK_AGAIN if self._stands_in else LOOK
        idle = share.wanted and share.preferred and not share.pin and not share.leaving
        if idle and time.monotonic() - self._looked > every and not self._tasks.runs("look"):
            self._looked = time.monotonic()
            self._tasks.spawn("look", self._look())

    async def _look(self) -> None:
        share = self._share
        try:
            somebody = pinned_in(await share.info())
        except (BrokerUnavailable, ApiError) as error:
            log.debug("%s: nobody says whether they wait: %s", self.name, error)
            return
        link = self.connection.link
        if share.pin or share.leaving or not share.wanted or link is None:
            return
        if somebody and self._stands_in:
            self.refuse_gathered()
            self.let_go()
        elif not somebody and not self._stands_in:
            self._stands_in = True
            self._owner.begins()
            self.attach(link)
