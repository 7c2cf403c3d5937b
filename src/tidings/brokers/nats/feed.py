"""A running subscription: the pull of a position and that of its retry route, and whatever is with us of both.

Everything that was delivered is kept alive here until it is settled, whether it waits in a queue, runs, or is held by
the core (traps 21 and 30).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.names import RETRY_STREAM, durable_of
from tidings.brokers.nats.pull import Pull
from tidings.brokers.nats.settling import nak, say, say_all
from tidings.brokers.nats.tokens import Token
from tidings.delivery import Delivery, Header, Route
from tidings.errors import BrokerUnavailable
from tidings.partition import slot_of
from tidings.ports import Backlog, Sink, Subscription

if TYPE_CHECKING:
    from tidings.brokers.nats.link import Link
    from tidings.brokers.nats.watch import Watch

log = logging.getLogger("tidings.nats")

RETRY_SHARE: Final = 8
"""One part in so many of the in-flight limits is the retry route's, so that neither road can block the other."""
SMALL_LIMIT: Final = 8
"""Below this many in flight there is nothing to share: one copy may wait here beside the events."""


class NatsFeed:
    """See `ports.Feed`."""

    def __init__(self, connection: Connection, subscription: Subscription, sink: Sink, *, watch: Watch) -> None:
        options = connection.options
        self.subscription = subscription
        self._connection = connection
        self._sink = sink
        self._watch = watch
        self._ack_wait = options.ack_wait
        self._most, self._most_bytes = subscription.max_in_flight, subscription.max_in_flight_bytes
        self.held: dict[Token, Delivery] = {}
        """Whatever was delivered and is not settled, in the order in which it came."""
        self._given = self._given_bytes = 0
        self._queue: deque[tuple[Token, Delivery]] = deque()
        """Delivered, and not handed over yet: the limits are reached."""
        self._stopping = self._closed = False
        self._ending = asyncio.Lock()
        self.tenure = 0
        """See `ports.Feed`."""
        self._task: asyncio.Task[None] | None = None
        self.pulls = self._make_pulls()
        for pull in self.pulls:
            pull.settled = self.let_go
            pull.mine = self._mine_already

    def _make_pulls(self) -> Sequence[Pull]:
        """What this feed takes from: events, and the position's retry route."""
        one, api = self.subscription, self._connection.options.api
        most, bytes_, most_copies, copy_bytes = split(self._most, self._most_bytes)
        durable, types = durable_of(one.position), () if one.strangers else one.types
        self.events = Pull(
            one.stream, durable, Route.EVENT, api, most=most, most_bytes=bytes_, take=self._take_event, types=types
        )
        self.retries = Pull(
            RETRY_STREAM,
            durable,
            Route.RETRY,
            api,
            most=most_copies,
            most_bytes=copy_bytes,
            take=self.take_copy,
            slots=1,
        )
        return (self.events, self.retries)

    @property
    def trouble(self) -> str:
        if self._task is not None and self._task.done() and not self._closed:
            return f"the feed of {self.subscription.position} died: restart the process"
        return next((pull.trouble for pull in self.pulls if pull.trouble), "")

    def start(self) -> None:
        self._connection.on_up.append(self._on_up)
        self._connection.on_down.append(self._on_down)
        if (link := self._connection.link) is not None:
            self._on_up(link)
        self._task = asyncio.create_task(self._tend(), name=f"tidings-feed-{self.subscription.position}")

    # ── deliveries in ───────────────────────────────────────────────────────────────────────────────────────────────

    def _take_event(self, token: Token, delivery: Delivery, subject: bytes, headers: bytes | None) -> None:
        """Hand a delivery over, or keep it until there is room. The hot path: written out rather than called."""
        self.held[token] = delivery
        given = self._given
        if (given and (given >= self._most or self._given_bytes + token.size > self._most_bytes)) or self._queue:
            self._queue.append((token, delivery))
            return
        token.given = True
        self._given = given + 1
        self._given_bytes += token.size
        self._sink(delivery)

    def _mine_already(self, token: Token) -> Token | None:
        """What is with us of a message that the server delivers again, because it was not kept alive in time."""
        for known in self.held:
            if known.seq == token.seq and known.pull is token.pull and known.is_open and not known.lost:
                return known
        return None

    def take_copy(self, token: Token, delivery: Delivery, subject: bytes, headers: bytes | None) -> None:
        """A copy on the retry route: never before its time, whatever the server's clock says."""
        found = delivery.headers
        if (early := _seconds_until(found.get(Header.DUE))) > 0:
            self.refuse(token, nak(early))
            return
        if (key := found.get(Header.KEY)) is not None:
            delivery.slot = slot_of(unquote(key))
        delivery.stream = found.get(Header.STREAM) or delivery.stream
        self._take_event(token, delivery, subject, headers)

    def _give(self, token: Token, delivery: Delivery) -> None:
        token.given = True
        self._given += 1
        self._given_bytes += token.size
        self._sink(delivery)

    def _has_room(self, size: int) -> bool:
        if self._given == 0:
            return True  # or a message larger than the limit would never come
        return self._given < self._most and self._given_bytes + size <= self._most_bytes

    def let_go(self, tokens: Sequence[Token]) -> None:
        """What is not with us any more makes room for others."""
        held = self.held
        for token in tokens:
            token.is_open = False
            if held.pop(token, None) is not None:
                if token.given:
                    self._given -= 1
                    self._given_bytes -= token.size
                token.pull.held -= 1
                token.pull.held_bytes -= token.size
        queue = self._queue
        while queue and self._has_room(queue[0][0].size):
            self._give(*queue.popleft())
        if not self._stopping:
            for pull in {token.pull for token in tokens}:
                pull.made_room()
                pull.refill()

    def refuse(self, token: Token, what: bytes) -> None:
        """Give back what was not handed over."""
        self.held.pop(token, None)
        token.is_open = False
        token.pull.held -= 1
        token.pull.held_bytes -= token.size
        if not token.stale and (link := self._connection.link) is not None:
            link.send(say(token, what))

    # ── the link comes and goes ─────────────────────────────────────────────────────────────────────────────────────

    def _on_up(self, link: Link) -> None:
        if self._stopping:
            return
        self.keep_alive(every=True)
        self._attach(link)

    def _attach(self, link: Link) -> None:
        for pull in self.pulls:
            pull.attach(link)

    def _on_down(self, link: Link) -> None:
        # Nobody knows what the server still heard, so nothing counts that was said after its last sign of life.
        heard = link.heard_at
        for token in self.held:
            token.touched = min(token.touched, heard)
        for pull in self.pulls:
            pull.detach()

    async def _tend(self) -> None:
        every = min(1.0, self._ack_wait / 6)
        while True:
            try:
                await asyncio.sleep(every)
                self.keep_alive()
                self._round()
                if self._connection.link is not None and not self._stopping:
                    for pull in self.pulls:
                        pull.tend(every)
                await self._watch.tend()
            except BrokerUnavailable:
                pass  # the next link brings a new round
            except Exception:
                log.exception("the feed of %s stumbled and goes on", self.subscription.position)
                await asyncio.sleep(1.0)

    def _round(self) -> None:
        """What else there is to do every second or so."""

    def keep_alive(self, *, every: bool = False) -> None:
        """Say of everything that waited for a third of the ack wait that it is still in good hands."""
        link = self._connection.link
        if link is None or not self.held:
            return
        now = time.monotonic()
        young = now if every else now - self._ack_wait / 3
        old = [token for token in self.held if token.touched <= young]
        if not old:
            return
        late = 0
        for token in old:
            if now - token.touched > self._ack_wait and not token.stale:
                token.stale = True
                late += 1
            token.touched = now
        if late:
            log.warning(
                "%s: %d deliveries were not kept alive for %.0f s (a blocked event loop, or no connection): the server"
                " may deliver them twice",
                self.subscription.position,
                late,
                self._ack_wait,
            )
        link.send(say_all(old, b"+WPI"))

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def stop(self) -> None:
        """Take no new messages; what is on its way already goes back at once (trap 59)."""
        if self._stopping:
            return
        self._stopping = True
        link = self._connection.link
        sids = self._detach()
        queued = [token for token, _ in self._queue]
        self._queue.clear()
        for token in queued:
            self.refuse(token, b"-NAK")
        if link is not None and link.up:
            try:
                await link.round_trip(2.0)
            except BrokerUnavailable:
                pass  # then the server has dropped what it sent
            for sid in sids:
                link.drop_sink(sid)

    def _detach(self) -> list[int]:
        """Ask for nothing more; what comes all the same goes back."""
        return [sid for pull in self.pulls for sid in pull.detach(self._leftover)]

    async def close(self) -> None:
        """End, and give back at once whatever was handed over and not settled. Safe to call twice.

        Whoever calls it while it ends waits for that, too: what is said at the end needs the connection.
        """
        async with self._ending:
            if not self._closed:
                await self._end()

    async def _end(self) -> None:
        await self.stop()
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        fresh = sorted((token for token in self.held if not token.stale), key=lambda token: token.seq)
        self.let_go(list(self.held))
        link = self._connection.link
        if link is not None and fresh:
            try:
                link.send(say_all(fresh, b"-NAK"))
                await link.round_trip(2.0)
            except BrokerUnavailable:
                pass  # then it comes again after the ack wait
        await self._closing()
        self._connection.on_up.remove(self._on_up)
        self._connection.on_down.remove(self._on_down)

    async def _closing(self) -> None:
        """What else there is to do when everything was given back."""

    def _leftover(self, subject: bytes, reply: bytes, headers: bytes | None, data: bytes) -> None:
        link = self._connection.link
        if link is not None and reply.startswith(b"$JS.ACK."):
            link.send(b"PUB %b 4\r\n-NAK\r\n" % reply)

    async def backlog(self) -> Backlog:
        return await self._watch.backlog()

    async def keeps(self) -> timedelta | None:
        return await self._watch.keeps()


def split(most: int, most_bytes: int) -> tuple[int, int, int, int]:
    """What events may have of the limits, in messages and bytes, and what copies may."""
    copies = max(1, most // RETRY_SHARE)
    events = most - copies if most >= SMALL_LIMIT else most
    return events, most_bytes - most_bytes // RETRY_SHARE, copies, most_bytes // RETRY_SHARE


def _seconds_until(due: str | None) -> float:
    if not due:
        return 0.0
    try:
        moment = datetime.fromisoformat(due)
    except ValueError:
        return 0.0  # what cannot be read cannot hold anything up
    if moment.tzinfo is None:
        return 0.0
    return (moment - datetime.now(UTC)).total_seconds()
