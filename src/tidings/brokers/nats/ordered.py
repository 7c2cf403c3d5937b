"""An ordered position: one process at a time takes from it, the others stand by.

The server pins one client. What its predecessor had open when it died would come again only after the ack wait, behind
later events of the same keys. So whoever gets the pin takes over first: it gives back, in its predecessor's name, all
that is open and not its own, waits until that has come, and hands everything over in the order of the stream. Until
then nothing is handed over. The same happens when a delivery did not reach us: they are numbered, and a gap tells.

Why not reset the consumer (server 2.14): that forgets how often each message was delivered, and with it the only
witness of an event that kills its process each time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from tidings.brokers.nats.api import Api, ApiError
from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.consumers import GROUP, find_consumer
from tidings.brokers.nats.feed import NatsFeed
from tidings.brokers.nats.pull import Token, pin_of
from tidings.brokers.nats.watch import Watch
from tidings.delivery import Delivery
from tidings.errors import BrokerUnavailable
from tidings.ports import Sink, Subscription

if TYPE_CHECKING:
    from tidings.brokers.nats.link import Link

log = logging.getLogger("tidings.nats")

QUIET: Final = 0.5
"""Seconds without a delivery after which the server is asked whether anything is still open elsewhere."""
LONGEST: Final = 10.0
"""Seconds after which a take-over ends, whatever is still missing."""
PORTION: Final = 2000
"""How many are given back in one write."""
LOOK: Final = 2.0
"""Seconds between two looks of a standby whether copies wait while nobody is active."""


class OrderedFeed(NatsFeed):
    """See `ports.Feed`. It is silent for as long as another process is active."""

    def __init__(
        self, connection: Connection, subscription: Subscription, sink: Sink, *, watch: Watch, api: Api
    ) -> None:
        super().__init__(connection, subscription, sink, watch=watch)
        self._api = api
        self._pin = ""
        self._counter = 0
        """The server's number of the last delivery."""
        self._subject = b""
        """What deliveries are settled under, with places for the numbers."""
        self._gathered: list[tuple[Token, Delivery]] = []
        self._numbers: list[int] = []
        """The numbers of all that came during a take-over."""
        self._arrived = asyncio.Event()
        self._takeover: asyncio.Task[None] | None = None
        self._stands_in = False
        """Copies are asked for, though not active: nobody is, and nobody will be before the next event."""
        self._looking: asyncio.Task[None] | None = None
        self._looked = 0.0
        self.events.note = self._note
        self.events.on_pin_lost = self._pin_lost
        self.events.restart = self._restart
        self._stand_by()

    @property
    def active(self) -> bool:
        """This process is the one that takes."""
        return self.takes_copies

    def _stand_by(self) -> None:
        self._pin = ""
        self.takes_copies = False
        self.events.group = {"group": GROUP}
        self.events.only_one = True
        self.events.blocked = False
        self.events.extra = 0

    def _take_event(self, token: Token, delivery: Delivery, subject: bytes, headers: bytes | None) -> None:
        self._note(token, headers)
        if self.takes_copies:
            super()._take_event(token, delivery, subject, headers)
            return
        self.held[token] = None
        self._gathered.append((token, delivery))
        self._arrived.set()

    def _note(self, token: Token, headers: bytes | None) -> None:
        """See to the pin and the number of a delivery, whoever it is for."""
        counter = _counter_of(token)
        if (pin := pin_of(headers)) and pin != self._pin:
            self._pin, self._subject = pin, _subject_for(token)
            self.events.group = {"group": GROUP, "id": pin}
            self._begin()
        elif self.takes_copies and counter != self._counter + 1:
            log.warning("%s: a delivery did not arrive; what is open is sorted anew", self.subscription.position)
            self._restart()
        self._counter = counter
        if not self.takes_copies:
            self._numbers.append(counter)

    # ── taking over ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self) -> None:
        """Hand nothing over and ask for nothing until it is clear what the predecessor left."""
        self.takes_copies = False
        self.events.blocked = True
        if self._takeover is not None:
            self._takeover.cancel()
        self._takeover = asyncio.create_task(self._take_over(), name=f"tidings-takeover-{self.subscription.position}")

    async def _take_over(self) -> None:
        try:
            async with asyncio.timeout(LONGEST):
                await self._gather()
        except TimeoutError:
            log.warning("%s: what the process before left has not come in full yet", self.subscription.position)
        except (BrokerUnavailable, ApiError) as error:
            # Without an answer nothing is known: stand by, and let the server pin whoever asks next.
            log.warning("%s could not take over: %s", self.subscription.position, error)
            self._pin_lost()
            return
        except Exception:
            log.exception("%s could not take over", self.subscription.position)
            self._pin_lost()
            return
        self._go()

    async def _gather(self) -> None:
        pull = self.events
        if (link := self._connection.link) is not None:
            await link.round_trip(2.0)  # nothing that we do not ask for any more can come after this
        info = await self._info()
        self._counter = info["delivered"]["consumer_seq"]
        missing = info["num_ack_pending"] - len(self._mine(info["delivered"]["stream_seq"]))
        if missing <= 0:
            return
        log.info("%s takes over %d open events", self.subscription.position, missing)
        before = len(self._gathered)
        self._numbers.clear()
        await self._give_back_for_others(info)
        pull.extra, pull.only_one, pull.blocked = missing, False, False
        while not await self._complete(info, before, missing):
            pass
        first = info["delivered"]["consumer_seq"] + 1
        if self._numbers != list(range(first, first + len(self._numbers))):
            raise BrokerUnavailable("deliveries went where nobody is any more")

    async def _complete(self, info: dict[str, Any], before: int, missing: int) -> bool:
        """Wait for a delivery; whether all that was open has come."""
        self._arrived.clear()
        self.events.refill()
        until = info["delivered"]["stream_seq"]
        come = self._gathered[before:]
        if sum(token.seq <= until for token, _ in come) >= missing:
            return True
        if any(token.seq > until and delivery.delivered == 1 for token, delivery in come):
            return True  # what comes again comes before what is new
        try:
            async with asyncio.timeout(QUIET):
                await self._arrived.wait()
        except TimeoutError:
            now = await self._info()
            # The predecessor may live, and have settled the rest.
            return bool(now["num_ack_pending"] <= len(self._mine(now["delivered"]["stream_seq"])))
        return False

    def _mine(self, until: int) -> set[int]:
        return {token.seq for token in self.held if token.pull is self.events and token.seq <= until}

    async def _info(self) -> dict[str, Any]:
        info = await find_consumer(self._api, self.events.stream, self.events.durable)
        if info is None:
            self.events.check_consumer = True
            raise BrokerUnavailable(f"the consumer {self.events.durable} is gone")
        return info

    async def _give_back_for_others(self, info: dict[str, Any]) -> None:
        """Say of all that is open and not ours that it may be delivered again; the server goes by the sequence."""
        link = self._connection.link
        if link is None:
            raise BrokerUnavailable("the connection was just lost")
        first, last = info["ack_floor"]["stream_seq"] + 1, info["delivered"]["stream_seq"]
        mine = self._mine(last)
        subject, counter = self._subject, info["delivered"]["consumer_seq"]
        frames: list[bytes] = []
        for seq in range(first, last + 1):
            if seq in mine:
                continue
            frames.append(b"PUB " + subject % (seq, counter) + b" 4\r\n-NAK\r\n")
            if len(frames) >= PORTION:
                link.send(b"".join(frames))
                await link.drained()
                frames.clear()
        answered = asyncio.Event()
        reply = link.expect(lambda tag, headers, data: answered.set())
        # One goroutine of the server works these off in order: the answer to the last word comes when all are done.
        link.send(b"".join(frames) + b"PUB " + subject % (last, counter) + b" %b 4\r\n+WPI\r\n" % reply)
        try:
            async with asyncio.timeout(LONGEST / 2):
                await answered.wait()
        finally:
            link.forget(reply)

    def _go(self) -> None:
        """Be the active one: hand over what was gathered, in the order of the stream."""
        pull = self.events
        pull.extra, pull.only_one, pull.blocked = 0, False, False
        self.takes_copies = not self._stopping
        self.tenure += 1
        gathered, self._gathered = sorted(self._gathered, key=lambda pair: pair[0].seq), []
        for token, delivery in gathered:
            super()._take_event(token, delivery, b"", None)
        pull.refill()
        link = self._connection.link
        stood_in, self._stands_in = self._stands_in, False
        if link is not None and self.takes_copies and not stood_in:
            self.retries.attach(link)

    # ── while nobody is active ──────────────────────────────────────────────────────────────────────────────────────

    async def _look(self) -> None:
        """The server pins with an event only: without one, copies would wait, redriven letters among them.

        So a standby takes them where nobody asks for them and nobody is pinned, until somebody is.
        """
        link = self._connection.link
        try:
            if self._stands_in:
                if await self._is_anybody_active() and self._stands_in and not self._pin:
                    self._stands_in = False
                    self.retries.detach()
                return
            retries = await find_consumer(self._api, self.retries.stream, self.retries.durable)
            if retries is None or retries["num_waiting"]:
                return
            if not retries["num_pending"] and not retries["num_ack_pending"]:  # a process may have died with a copy
                return
            if await self._is_anybody_active() or not self._is_idle:
                return
            if link is not None and link is self._connection.link:
                self._stands_in = True
                self.tenure += 1
                self.retries.attach(link)
        except (BrokerUnavailable, ApiError) as error:
            log.debug("%s: nobody says whether copies wait: %s", self.subscription.position, error)

    @property
    def _is_idle(self) -> bool:
        return not (self._pin or self._stopping or self.takes_copies)

    async def _is_anybody_active(self) -> bool:
        info = await self._info()
        return any(group.get("pinned_client_id") for group in info.get("priority_groups") or ())

    # ── the pin comes and goes ──────────────────────────────────────────────────────────────────────────────────────

    def _pin_lost(self) -> None:
        """Another process is active, or nobody is: stand by. What was handed over stays ours to settle."""
        if self._pin and not self._stopping:
            log.info(
                "%s: stands by; the server names who is active when the next event comes", self.subscription.position
            )
        if self._takeover is not None and self._takeover is not asyncio.current_task():
            self._takeover.cancel()
        self._takeover = None
        self._stand_by()
        self._stands_in = False
        self.retries.detach()
        gathered, self._gathered = self._gathered, []
        for token, _ in gathered:
            self._refuse(token, b"-NAK")
        self.events.start_over()

    def _attach(self, link: Link) -> None:
        """On a new link the pin may still be ours, but deliveries may have been lost with the old one."""
        self._stands_in = False
        self._restart(link)

    def _restart(self, link: Link | None = None) -> None:
        """Forget what was asked for, and sort what is open anew."""
        self.events.detach()
        if self._pin:
            self._begin()
        link = link or self._connection.link
        if link is not None:
            self.events.attach(link)

    def _round(self) -> None:
        link = self._connection.link
        if link is None:
            return
        if self._pin:
            self.events.hold_pin(link)
        if (self._is_idle or self._stands_in) and time.monotonic() - self._looked > LOOK and not self._is_looking:
            self._looked = time.monotonic()
            self._looking = asyncio.create_task(self._look(), name=f"tidings-look-{self.subscription.position}")

    @property
    def _is_looking(self) -> bool:
        return self._looking is not None and not self._looking.done()

    async def stop(self) -> None:
        for task in (self._takeover, self._looking):
            if task is not None:
                task.cancel()
        gathered, self._gathered = self._gathered, []
        for token, _ in gathered:
            self._refuse(token, b"-NAK")
        await super().stop()

    async def _closing(self) -> None:
        """Let the next process be active at once, and not only after the server's patience."""
        if self._pin and self._connection.link is not None:
            pull = self.events
            try:
                await self._api.call(
                    f"CONSUMER.UNPIN.{pull.stream}.{pull.durable}", {"group": GROUP}, timeout=2.0, patience=0.0
                )
            except (BrokerUnavailable, ApiError) as error:
                log.debug("%s: the pin was not given back: %s", self.subscription.position, error)


def _counter_of(token: Token) -> int:
    parts = token.reply.split(b".")
    return int(parts[6] if len(parts) == 9 else parts[8])


def _subject_for(token: Token) -> bytes:
    """The subject on which deliveries of this consumer are settled, with places for the two sequences."""
    parts = token.reply.replace(b"%", b"%%").split(b".")
    at = 4 if len(parts) == 9 else 6
    parts[at : at + 3] = [b"1", b"%d", b"%d"]
    return b".".join(parts)
