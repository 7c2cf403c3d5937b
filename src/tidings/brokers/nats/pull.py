"""A continuous pull from one consumer: a few requests outstanding, each on a subject of its own.

The server serves waiting requests in turn, and a message does not say which request it answers. With a subscription for
each, the count is exact, and with it the bound on what may arrive: that one sum is the memory limit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from tidings.brokers.nats.headers import RawHeaders, own, status_of, unserved_of
from tidings.brokers.nats.names import type_and_slot
from tidings.brokers.nats.tokens import Token
from tidings.delivery import NO_HEADERS, Delivery, Route

if TYPE_CHECKING:
    from tidings.brokers.nats.link import Link, RawSink

log = logging.getLogger("tidings.nats")

EXPIRES: Final = 15.0
"""Seconds that a request lasts. What a server has sent into a dead connection meanwhile comes again later."""
HEARTBEAT: Final = 5.0
"""Seconds between two signs of life while nothing comes. The first request alone asks for them."""
SILENCE: Final = 2 * HEARTBEAT + 1.0
"""Seconds without message or heartbeat after which a request is lost: a new leader does not know it, say."""
SLOTS: Final = 4
LARGEST: Final = 1024 * 1024 + 128 * 1024
"""What a message of Tidings weighs at most, with its headers: a request is not for less, where the limits allow it."""
ACK_PREFIX: Final = b"$JS.ACK."
BEFORE_PULL_AGAIN: Final = 0.25
"""Seconds until a request is repeated that was refused for a reason that passes."""

UNSEEN: Final = -1
UNWANTED: Final = -2

_WAIT: Final = 5.0
_encode = msgspec.json.Encoder().encode


Take = Callable[[Token, Delivery, bytes, bytes | None], None]
"""Takes a delivery in, with its subject and raw headers."""


class Slot:
    """One request at a time."""

    __slots__ = ("asked", "inbox", "left", "left_bytes", "pull", "quiet", "serial", "sid", "until")

    def __init__(self, pull: Pull) -> None:
        self.pull = pull
        self.inbox = b""
        self.sid = 0
        self.serial = self.left = self.left_bytes = self.asked = 0
        self.until = self.quiet = 0.0

    def take(self, subject: bytes, reply: bytes, headers: bytes | None, data: bytes) -> None:
        """A message, or a word about the request, as it came."""
        self.quiet = 0.0
        if not reply.startswith(ACK_PREFIX):
            if headers is not None:
                self.pull.told(self, subject, headers)
            return
        parts = reply.split(b".")
        # $JS.ACK.<stream>.<consumer>.<delivered>.<sequence>…, or with domain and account before the stream (trap 44)
        at = 4 if len(parts) == 9 else 6
        size = len(subject) + len(reply) + len(data) + (0 if headers is None else len(headers))
        self.left -= 1
        self.left_bytes -= size
        pull = self.pull
        pull.held += 1
        pull.held_bytes += size
        seq = int(parts[at + 1])
        token = Token(reply, pull, size, seq, int(parts[at + 2]))
        if parts[at] != b"1" and pull.has(token, headers):
            return
        if (slot := pull.slots_seen.get(subject, UNSEEN)) == UNSEEN:
            slot = pull.remember_slot(subject)
        if slot == UNWANTED:
            pull.skip(token, headers)
            return
        pull.take(
            token,
            Delivery(
                body=data,
                stream=pull.stream,
                origin=(pull.stream, seq),
                token=token,
                headers=NO_HEADERS if headers is None else RawHeaders(headers),
                slot=slot,
                delivered=int(parts[at]),
                route=pull.route,
                stored=int(parts[at + 3]) / 1e9,
            ),
            subject,
            headers,
        )
        if self.left <= 0:
            pull.refill()


class Pull:
    """Keeps asking one consumer for messages, as far as the limits allow."""

    def __init__(
        self,
        stream: str,
        durable: str,
        route: Route,
        prefix: str,
        *,
        most: int,
        most_bytes: int,
        take: Take,
        types: Sequence[str] = (),
        slots: int = SLOTS,
    ) -> None:
        self.stream = stream
        self.durable = durable
        self.route = route
        self.take = take
        self.held = self.held_bytes = 0
        """What was delivered and not settled."""
        self.trouble = ""
        self.check_consumer = False
        """Set when the consumer may be gone; the feed looks."""
        self.group: dict[str, str] = {}
        """What a consumer with a priority group wants to read in each request."""
        self.only_one = False
        """A standby asks for one message alone."""
        self.expires = EXPIRES
        """Seconds that a request lasts; the signs of life are for long ones."""
        self.ceiling: int | None = None
        """How many may be here in place of the limit, while what a predecessor left is gathered."""
        self.blocked = False
        """Nothing is asked for now."""
        self.restart: Callable[[], None] = self.start_over
        """What to do when requests got lost."""
        self.mine: Callable[[Token], Token | None] = _nobody
        """Finds what is with us already of a message that comes again."""
        self.note: Callable[[Token, bytes | None], None] = _nothing_with
        """Called for what arrives and goes no further."""
        self.on_pin_lost: Callable[[], None] = _nothing
        self.on_leader_lost: Callable[[], None] = _nothing
        """Whoever serves the consumer next may not know whom it was pinned to."""
        self.settled: Callable[[Sequence[Token]], None] = _nothing_of
        """Called with what is not ours any more; whoever made this pull gives the room back."""
        self.slots_seen: dict[bytes, int | None] = {}
        self._types = frozenset(one.encode() for one in types)
        self._next = f"{prefix}.CONSUMER.MSG.NEXT.{stream}.{durable}".encode()
        self._slots = [Slot(self) for _ in range(slots if most > 1 else 1)]
        self.limit(most, most_bytes)
        self._too_small = False
        """The next message is larger than what was asked for: wait for room, or take it alone."""
        self._link: Link | None = None
        self._paused_until = 0.0

    def limit(self, most: int, most_bytes: int) -> None:
        """How much may be with us. What was asked for before stays asked for."""
        self._most, self._most_bytes = most, most_bytes
        self._chunk = max(1, most // len(self._slots))
        self._portion = max(most_bytes // len(self._slots), min(most_bytes, LARGEST))

    @property
    def attached(self) -> bool:
        """It asks on a link."""
        return self._link is not None

    @property
    def asked(self) -> int:
        return sum(slot.left for slot in self._slots)

    def attach(self, link: Link) -> None:
        """Start over on a link: whatever was asked before is forgotten there as well as here."""
        self._link = link
        for slot in self._slots:
            slot.inbox = link.own_subject()
            slot.sid = link.subscribe_raw(slot.inbox + b".*", slot.take)
            slot.left = slot.left_bytes = 0
        self._paused_until = 0.0
        self.refill()

    def detach(self, leftover: RawSink | None = None) -> list[int]:
        """Ask no more; what is still on its way goes to `leftover` until the returned ids are forgotten."""
        link, self._link = self._link, None
        self.ended()
        sids = []
        for slot in self._slots:
            if link is not None and link.up:
                if leftover is not None:
                    link.replace_sink(slot.sid, leftover)
                link.unsubscribe_raw(slot.sid, forget=leftover is None)
                sids.append(slot.sid)
        return sids

    def hear_out(self, sink: RawSink) -> None:
        """Ask no more, and have what comes of what was asked for go to a sink, which says when that has ended."""
        self.blocked = True
        if (link := self._link) is not None:
            for slot in self._slots:
                link.replace_sink(slot.sid, sink)

    def ended(self) -> None:
        """Nothing more comes of what was asked for."""
        for slot in self._slots:
            slot.left = slot.left_bytes = 0

    def start_over(self) -> None:
        """Forget the requests that are out, and ask anew."""
        link = self._link
        self.detach()
        if link is not None and link.up:
            self.attach(link)

    def refill(self) -> None:
        """Ask for as much as there is room for, in portions worth asking for."""
        link = self._link
        if (
            link is None
            or not link.up
            or self.blocked
            or (self._paused_until and time.monotonic() < self._paused_until)
        ):
            return
        asked = asked_bytes = 0
        for slot in self._slots:
            if slot.left > 0:
                asked += slot.left
                asked_bytes += slot.left_bytes
        for slot in self._slots:
            if slot.left > 0:
                continue
            if self.only_one and asked:
                return
            room = (self._most if self.ceiling is None else self.ceiling) - self.held - asked
            room_bytes = self._most_bytes - self.held_bytes - asked_bytes
            if room <= 0 or (asked and room < (self._chunk + 1) // 2):
                return
            if self._too_small or room_bytes <= 0:
                if (self.held or asked) and self.ceiling is None:
                    return  # until something is settled
                self._ask(link, slot, 1, 0)
                return
            batch = 1 if self.only_one else min(room, self._chunk)
            most_bytes = min(room_bytes, self._portion)
            self._ask(link, slot, batch, most_bytes)
            asked += batch
            asked_bytes += most_bytes

    def made_room(self) -> None:
        """Something was settled: a message that did not fit may fit now."""
        self._too_small = False

    def _ask(self, link: Link, slot: Slot, batch: int, most_bytes: int) -> None:
        slot.serial += 1
        slot.left = slot.asked = batch
        slot.left_bytes, slot.quiet = most_bytes, 0.0
        slot.until = time.monotonic() + self.expires + 2.0
        request: dict[str, object] = {
            "batch": batch,
            "expires": int(self.expires * 1e9),
            **self.group,
        }
        if slot is self._slots[0] and self.expires == EXPIRES:
            request["idle_heartbeat"] = int(HEARTBEAT * 1e9)
        if most_bytes:
            request["max_bytes"] = most_bytes
        self._send(link, slot.inbox + b".%d" % slot.serial, request)

    def hold_pin(self, link: Link, reply: bytes) -> None:
        """Tell the server that we are there, though we may have no room: a request that nothing can fit into.

        The server answers at once: 423 where somebody else is pinned.
        """
        self._send(link, reply, {"batch": 1, "max_bytes": 1, "no_wait": True, **self.group})

    def _send(self, link: Link, reply: bytes, request: dict[str, object]) -> None:
        payload = _encode(request)
        link.send(b"PUB %b %b %d\r\n%b\r\n" % (self._next, reply, len(payload), payload))

    def told(self, slot: Slot, subject: bytes, headers: bytes) -> None:
        """What the server says about a request."""
        code, text = status_of(headers)
        if code == 423:
            self.on_pin_lost()
            return
        if code == 100 or not subject.endswith(b".%d" % slot.serial):
            return
        ended = code in (404, 408) or text.startswith(("Message Size Exceeds", "Batch Completed"))
        unserved = unserved_of(headers, slot.left) if ended else slot.left
        if text.startswith("Message Size Exceeds") and unserved == slot.asked:
            self._too_small = True
        slot.left -= unserved  # with replicas the server says so before it sends the last of what it delivered
        if ended:
            self.trouble = ""
            self.refill()
        elif code == 503 or text.startswith(("Consumer Deleted", "Leadership Change", "Server Shutdown")):
            # The server is on its way down, the consumer is gone: not at once again.
            self.check_consumer = self.check_consumer or code == 503 or "Deleted" in text
            self.pause(BEFORE_PULL_AGAIN)
            self.on_leader_lost()
        elif text.startswith("Exceeded MaxWaiting"):
            self.pause(_WAIT)  # many processes ask; our first request is among them
        else:
            self.trouble = f"the server refuses to deliver from {self.durable} of {self.stream}: {code} {text}"
            log.error("%s", self.trouble)
            self.pause(_WAIT)

    def pause(self, seconds: float) -> None:
        self._paused_until = time.monotonic() + seconds

    def tend(self, seconds: float) -> None:
        """Called every so many seconds: repeat what was lost, go on after a pause."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.left <= 0:
                continue
            slot.quiet += seconds
            if slot.quiet > SILENCE and slot is self._slots[0]:
                log.warning("no heartbeat from %s of %s: asking again", self.durable, self.stream)
                self.check_consumer = True
                self.restart()
                return
            if slot.until < now:
                slot.left = 0
        if self._paused_until and now >= self._paused_until:
            self._paused_until = 0.0
        self.refill()

    def remember_slot(self, subject: bytes) -> int | None:
        """The partition in a subject, worked out once; `UNWANTED` for a type that nobody asked for.

        The filter ``order.placed.*.*`` also lets ``order.placed.once.more`` pass, another type's event without key.
        """
        if len(self.slots_seen) > 10_000:
            self.slots_seen.clear()
        slot = None
        if self.route is Route.EVENT:
            type, slot = type_and_slot(subject)
            if self._types and type not in self._types:
                slot = UNWANTED
        self.slots_seen[subject] = slot
        return slot

    def has(self, token: Token, headers: bytes | None) -> bool:
        """Whether a message that comes again is still with us: then it is ours anew, and not handed over twice."""
        known = self.mine(token)
        if known is None:
            return False
        self.held -= 1
        self.held_bytes -= token.size
        self.note(token, headers)
        known.reply, known.touched, known.stale = token.reply, token.touched, False
        return True

    def skip(self, token: Token, headers: bytes | None) -> None:
        """Acknowledge what nobody asked for. If that gets lost it comes again, and is skipped again."""
        self.note(token, headers)
        token.is_open = False
        self.held -= 1
        self.held_bytes -= token.size
        if self._link is not None and self._link.up:
            self._link.send(b"PUB %b 4\r\n+ACK\r\n" % token.reply)
        self.refill()


def pin_of(headers: bytes | None) -> str:
    """The id that the server gave the active one of a priority group."""
    return own(headers, b"Nats-Pin-Id") or ""


def _nothing() -> None:
    """Where nobody cares."""


def _nobody(token: Token) -> Token | None:
    """Where nothing is kept."""
    return None


def _nothing_with(token: Token, headers: bytes | None) -> None:
    """Where nobody cares."""


def _nothing_of(tokens: Sequence[Token]) -> None:
    """Where nobody cares."""
