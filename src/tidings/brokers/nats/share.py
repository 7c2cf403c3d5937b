"""One share of an ordered position: a consumer that the server pins to one process at a time, and its retry route.

What a predecessor had open when it died would come again only after the ack wait, behind later events of the same keys.
So whoever gets the pin takes over first: it gives back, in its predecessor's name, all that is open and not its own,
waits until that has come, and hands everything over in the order of the stream. Until then nothing is handed over. The
same happens when a delivery did not reach us: they are numbered, and a gap tells.

Why not reset the consumer (server 2.14): that forgets how often each message was delivered, and with it the only
witness of an event that kills its process each time.

A pin lasts for some seconds after the last request in its name. So this process knows until when it has the share for
certain (`sure_until`): a request of every second renews that, once it was answered. A process that was stopped, or cut
off, finds that time in the past, and drops what it has in hand before a successor can have it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from tidings.brokers.nats import consumers, share_copies
from tidings.brokers.nats.api import Api, ApiError
from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.consumers import GROUP, find_consumer, pinned_in
from tidings.brokers.nats.headers import status_of
from tidings.brokers.nats.hearing_out import FRESH, STANDBY, hear_out, heard_out
from tidings.brokers.nats.names import RETRY_STREAM, share_durable
from tidings.brokers.nats.pull import EXPIRES, Pull, pin_of
from tidings.brokers.nats.share_copies import Copies
from tidings.brokers.nats.takeover import TakeOver, info_of
from tidings.brokers.nats.tasks import Tasks
from tidings.brokers.nats.tokens import Token
from tidings.delivery import Delivery, Route
from tidings.errors import BrokerUnavailable
from tidings.ports import Subscription

if TYPE_CHECKING:
    from tidings.brokers.nats.link import Link

log = logging.getLogger("tidings.nats")

SLOTS: Final = 2
"""Requests that a share has out at a time; a process has several shares."""
SURE: Final = 0.8
"""The part of the server's patience for which a share counts as ours without a new answer."""
LEAVE_PATIENCE: Final = 1.0
"""Seconds that a share which is to go waits for the events of it that run; if they take longer it stays for now."""
STAY: Final = 5.0
"""Seconds until it is tried again."""


class Owner(share_copies.Owner, Protocol):
    """What a share needs of the feed that it belongs to."""

    def take_event(self, token: Token, delivery: Delivery) -> None: ...
    def lost(self, share: Share) -> None: ...
    async def emptied(self, share: Share, patience: float) -> bool: ...
    def sure_again(self) -> None: ...
    def left(self) -> None: ...


class Share:
    """Asks for one share, takes it over, keeps it, and lets it go."""

    def __init__(self, owner: Owner, number: int, connection: Connection, api: Api, subscription: Subscription) -> None:
        self.number = number
        self.name = f"{subscription.position}, share {number}"
        self._owner = owner
        self.connection = connection
        self._api = api
        one, prefix = subscription, connection.options.api
        durable = share_durable(one.position, number)
        most, size, types = one.max_in_flight, one.max_in_flight_bytes, () if one.strangers else one.types
        self.events = Pull(
            one.stream,
            durable,
            Route.EVENT,
            prefix,
            most=most,
            most_bytes=size,
            take=self._take,
            types=types,
            slots=SLOTS,
        )
        self.retries = Pull(
            RETRY_STREAM, durable, Route.RETRY, prefix, most=most, most_bytes=size, take=owner.take_copy, slots=1
        )
        self.pulls = (self.events, self.retries)
        self.copies = Copies(self, owner, api, self.retries)
        self.wanted = False
        """This process asks for the share, or has it."""
        self.preferred = False
        """It is the one of all processes that is to have it."""
        self.pin = ""
        self.active = False
        """Deliveries are handed over as they come."""
        self.exposed = False
        """Something of this share may be in the hands of the core under this pin."""
        self.in_doubt = False
        """The pin may be lost, and the server is being asked."""
        self.sure_until = 0.0
        self.stays_until = 0.0
        self._asked_at = 0.0
        self._answer = b""
        """Where the answer to the last request that held the pin will come."""
        self._over = TakeOver(self)
        self._seen_pin = ""
        self._tasks = Tasks(durable)
        self.events.note = self._note
        self.events.on_pin_lost = lambda: self.lose("another process has it")
        self.events.on_leader_lost = self._leader_lost
        self.events.restart = self.restart
        self._stand_by()

    @property
    def leaving(self) -> bool:
        return self._tasks.runs("leave")

    @property
    def pull(self) -> Pull:
        """What is taken over."""
        return self.events

    def held_here(self) -> dict[Token, Delivery]:
        return self._owner.held

    def _stand_by(self) -> None:
        self.pin = ""
        self.active = self.exposed = self.in_doubt = False
        self.events.group = {"group": GROUP}
        self.events.only_one = True
        self._ask_briefly()
        self.events.blocked = False
        self.events.ceiling = None

    def _ask_briefly(self) -> None:
        self.events.expires = STANDBY
        self._fresh_until = time.monotonic() + FRESH

    # ── asking, and being pinned ────────────────────────────────────────────────────────────────────────────────────

    def ask(self, link: Link) -> None:
        """Ask the server for this share; it is ours with the first event that comes."""
        self.wanted = True
        self._ask_briefly()
        self.copies.look_soon()
        self.events.attach(link)

    def _take(self, token: Token, delivery: Delivery, subject: bytes, headers: bytes | None) -> None:
        self._note(token, headers)
        if self.active:
            self._owner.take_event(token, delivery)
        else:
            self._owner.held[token] = delivery
            self._over.take(token, delivery)

    def _note(self, token: Token, headers: bytes | None) -> None:
        """See to the pin and the number of a delivery, whoever it is for."""
        if (pin := pin_of(headers)) and pin != self.pin:
            self.pin = pin
            self.events.group = {"group": GROUP, "id": pin}
            self._begin()
            self._over.pinned_by(token)
        elif self.active and not self._over.follows(token):
            log.warning("%s: a delivery did not arrive; what is open is sorted anew", self.name)
            self.restart()
        self._over.note(token, counts=not self.active)

    def _begin(self) -> None:
        """Hand nothing over and ask for nothing until it is clear what the predecessor left."""
        self.active = False
        self.in_doubt = True
        self._owner.sure_again()
        self.events.expires = EXPIRES
        self.events.blocked = True
        self._tasks.spawn("take over", self._take_over())

    async def _take_over(self) -> None:
        try:
            await self._over.run()
        except (BrokerUnavailable, ApiError) as error:
            # Without an answer nothing is known: stand by, and let the server pin whoever asks next.
            await self.unpin()
            self.lose(f"it could not be taken over: {error}")
            return
        except Exception:
            log.exception("%s could not be taken over", self.name)
            self.lose("it could not be taken over")
            return
        self._go()

    def _go(self) -> None:
        """Be the active one: hand over what was gathered, in the order of the stream."""
        pull = self.events
        pull.ceiling, pull.only_one, pull.blocked = None, False, False
        self._owner.begins()
        self.active = self.exposed = True
        self._owner.sure_again()
        for token, delivery in self._over.sorted():
            self._owner.take_event(token, delivery)
        pull.refill()
        if (link := self.connection.link) is not None:
            self.copies.go(link)

    # ── keeping it ──────────────────────────────────────────────────────────────────────────────────────────────────

    def sure(self, since: float) -> None:
        """The server had us pinned at a time that is not before `since`."""
        self.sure_until = since + SURE * consumers.PIN_TIMEOUT
        self.in_doubt = False
        self._owner.sure_again()

    def hold(self, link: Link) -> None:
        """Keep the pin, whether there is room for more or not. Called every second or so, also while stopping."""
        if not self.pin:
            if time.monotonic() > self._fresh_until:
                self.events.expires = EXPIRES
            return
        if self._answer:
            link.forget(self._answer)
            if self.exposed and not self._tasks.runs("verify"):
                self._tasks.spawn("verify", self._ask_who_is_pinned())
        self._answer = link.expect(self._held)
        self._asked_at = time.monotonic()
        self.events.hold_pin(link, self._answer)

    def _held(self, tag: int, headers: bytes | None, data: bytes | None) -> None:
        self._answer = b""
        if headers is None or not self.pin:
            return
        code, text = status_of(headers)
        if code == 423:
            return self.lose("another process has it")
        # The server says these also while nobody is pinned. They count only in time, while that cannot be.
        in_time = time.monotonic() < self.sure_until and not self.in_doubt
        if in_time and (code == 404 or text.startswith("Message Size Exceeds")):
            self.sure(self._asked_at)

    async def _ask_who_is_pinned(self) -> None:
        """A request was not answered: the consumer may have moved to a server that knows of no pin."""
        asked = time.monotonic()
        try:
            if pinned_in(await self.info()) == self.pin:
                self.sure(asked)
            else:
                self.lose("the server has forgotten it")
        except (BrokerUnavailable, ApiError) as error:
            log.debug("%s: nobody says whose it is: %s", self.name, error)

    async def info(self) -> dict[str, Any]:
        return await info_of(self._api, self.events)

    def _leader_lost(self) -> None:
        if self.pin:
            self.lose("the server that had it has stopped")

    def lose(self, why: str) -> None:
        """Another process is active, or nobody is: stand by. What runs may still be acknowledged, and no more."""
        if self.pin:
            log.info("%s is not here any more: %s", self.name, why)
        self._tasks.cancel("take over", "verify")
        self._over.forget()
        self._stand_by()
        self.copies.let_go()
        self._owner.lost(self)
        if self.wanted and not self.leaving:
            self.events.start_over()

    # ── letting go ──────────────────────────────────────────────────────────────────────────────────────────────────

    def leave(self) -> None:
        """Let another process have it: finish what runs, give the rest back, and unpin."""
        if not self.leaving:
            self._tasks.spawn("leave", self._leave())

    async def _leave(self) -> None:
        link = self.connection.link
        if link is None:
            return  # with the next link it is seen anew who is to have it
        self._tasks.cancel("take over", "verify")
        self.copies.pause()
        self._seen_pin = ""
        try:
            await heard_out(self, hear_out(self), link)
            if not self.pin:
                await self.unpin()  # now, also if the share stays: what was heard may have made us the pinned one
            self.refuse_gathered()
            if not await self._owner.emptied(self, LEAVE_PATIENCE):
                log.info("%s stays here for now: an event of it takes long", self.name)
                self.stays_until = time.monotonic() + STAY
                return self._stay(link)
            await link.round_trip(2.0)  # the server has heard all that we said
            await self.unpin()
        except BrokerUnavailable as error:
            log.debug("%s was not given back properly: %s", self.name, error)
        self._tasks.cancel("take over", "verify")
        self.events.detach()  # a link that came meanwhile was asked for it anew
        self._over.forget()
        self.copies.let_go()
        self.wanted = False
        self._stand_by()
        self._owner.lost(self)
        asyncio.get_running_loop().call_soon(self._owner.left)

    def _stay(self, link: Link) -> None:
        if not self.pin:
            self.events.blocked = False  # with another link, too: there it was asked for, or will be
        if not link.up:
            return
        self.copies.let_go()
        if self.pin:
            self._begin()
        self.events.attach(link)

    def leftover(self, subject: bytes, reply: bytes, headers: bytes | None, data: bytes) -> None:
        """Give back what came when we did not ask any more. It may have made us the pinned one."""
        link = self.connection.link
        if link is not None and reply.startswith(b"$JS.ACK."):
            self._seen_pin = pin_of(headers) or self._seen_pin
            link.send(b"PUB %b 4\r\n-NAK\r\n" % reply)

    def refuse_gathered(self) -> None:
        """Give back what was not handed over yet."""
        for token, _ in self._over.sorted():
            self._owner.refuse(token, b"-NAK")
        self.copies.refuse_gathered()

    async def unpin(self) -> None:
        """Let the next process be active at once, and not only after the server's patience; never unpin another."""
        pin, pull = self.pin or self._seen_pin, self.events
        if not pin or self.connection.link is None:
            return
        try:
            info = await find_consumer(self._api, pull.stream, pull.durable, timeout=2.0, patience=0.0) or {}
            if pinned_in(info) == pin:
                where = f"CONSUMER.UNPIN.{pull.stream}.{pull.durable}"
                await self._api.call(where, {"group": GROUP}, timeout=2.0, patience=0.0)
        except (BrokerUnavailable, ApiError) as error:
            log.debug("%s: the pin was not given back: %s", self.name, error)
        self.pin = self._seen_pin = ""

    # ── the link comes and goes ─────────────────────────────────────────────────────────────────────────────────────

    def link_up(self, link: Link) -> None:
        """On a new link the pin may still be ours, but deliveries may have been lost with the old one."""
        self.copies.look_soon()
        if self.wanted:
            self.restart(link)

    def link_down(self) -> None:
        self._tasks.cancel("take over", "verify")
        self.copies.link_down()
        self._answer = b""
        self.active = False
        self.in_doubt = bool(self.pin)

    def restart(self, link: Link | None = None) -> None:
        """Forget what was asked for, and sort what is open anew."""
        self.events.detach()
        if self.pin:
            self._begin()
        if (link := link or self.connection.link) is not None:
            self.events.attach(link)

    def stop(self) -> None:
        """Begin nothing any more. The pin is kept until everything was given back."""
        self._tasks.cancel()
        self.copies.pause()
        self.refuse_gathered()
        self.active = False

    def detach(self) -> list[int]:
        """Take nothing more; what comes all the same goes back, until the returned ids are forgotten."""
        sids, link = hear_out(self), self.connection.link
        if self.events.asked and link is not None:
            self._tasks.spawn("hear out", self._hear_out(link))
        return sids

    async def _hear_out(self, link: Link) -> None:
        try:
            await heard_out(self, [], link)
            await self.unpin()
        except BrokerUnavailable as error:
            log.debug("%s: it may be kept for us for a while: %s", self.name, error)

    async def gone(self) -> None:
        """Return when nobody else is kept from having it any more."""
        await self._tasks.over("hear out")
        await self.unpin()
