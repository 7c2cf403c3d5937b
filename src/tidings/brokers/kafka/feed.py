"""A running subscription in the event loop: what is with us of a position, in which order it is handed over, and what
becomes of it.

Copies on the retry route whose time has not come wait here, beside the limits: they occupy nothing that others need.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Final

from tidings.brokers.kafka.link import Link
from tidings.brokers.kafka.names import retry_topic
from tidings.brokers.kafka.offsets import LATEST, committed_of, left, offsets
from tidings.brokers.kafka.pump import Pump
from tidings.brokers.kafka.topics import keeps, topic_settings
from tidings.brokers.kafka.tracks import Batch, Token, Track, token_of
from tidings.brokers.kafka.waiting import Waiting, trim
from tidings.delivery import Ack, Delivery, Route, Verdict
from tidings.errors import BrokerUnavailable, MisuseError
from tidings.ports import Backlog, Recalls, Sink, Subscription

log = logging.getLogger("tidings.kafka")

PATIENCE: Final = 20.0
"""Seconds that partitions which are to go to another process wait for the events of them that run."""
ENDS_WITHIN: Final = 30.0
LOOK: Final = 0.02
TOLD: Final = 0.1
"""Seconds in which the outcome of an event that has run is told, unless a copy of it has to be stored first."""
TRIM_EVERY: Final = 60.0
SOON: Final = 1.0


class KafkaFeed:
    """See `ports.Feed`."""

    def __init__(self, link: Link, subscription: Subscription, sink: Sink) -> None:
        self.subscription = subscription
        self._link = link
        self._sink = sink
        self._many: Callable[[Sequence[Delivery]], None] | None = getattr(sink, "take", None)
        """For whatever came together; see `ports.Sink`."""
        self.held: dict[Token, Delivery] = {}
        """Whatever is with us and not settled, but for copies that wait for their time."""
        self._given = self._given_bytes = 0
        self._queue: deque[Token] = deque()
        """With us, and not handed over yet: the limits are reached."""
        self._returned: list[Token] = []
        slots = subscription.ordered and subscription.slots
        self._waiting = Waiting(link, subscription.max_in_flight_bytes // 4, self._came, slots)
        """What may not be handed over before its time: copies, and what was given back for a while."""
        self._tending: asyncio.Task[None] | None = None
        self.released = self.released_bytes = 0
        """How much of what the pump has sent is not with us any more; it reads this."""
        self.tenure = 0
        self._stopping = self._closed = False
        self.pump = Pump(self, link, subscription, PATIENCE)

    def start(self) -> None:
        self.pump.start()
        self._tending = asyncio.create_task(self._tend(), name=f"tidings-kafka-{self.subscription.position}")

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(TRIM_EVERY)
            try:
                await trim(self._link, list(self.pump.tracks.values()))
            except Exception:
                log.exception("the retry route of %s could not be trimmed", self.subscription.position)

    async def joined(self, seconds: float) -> None:
        """Wait until this process has a part of the position, but no longer than that: others may have all of it."""
        try:
            async with asyncio.timeout(seconds):
                await self.pump.joined.wait()
        except TimeoutError:
            pass

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def trouble(self) -> str:
        if self.pump.died and not self._closed:
            return f"the consumer of {self.subscription.position} died: restart the process"
        return "" if self._closed else self.pump.trouble

    # ── deliveries in ───────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, batch: Batch) -> None:
        """A batch from the pump."""
        now = 0.0
        some: list[Delivery] = []
        for delivery in batch:
            token = token_of(delivery)
            if token.track.gone or self._stopping:
                token.is_open = False
                self._let_pump(token)
            elif token.due and token.due > (now := now or time.time()):
                self._let_pump(token)
                self._waiting.add(token, delivery, token.due)
            else:
                self.held[token] = delivery
                if self._queue or not self._has_room(token):
                    self._queue.append(token)
                else:
                    self._given_now(token)
                    some.append(delivery)
        self._hand(some)
        self._nudge()

    def _has_room(self, token: Token) -> bool:
        """Whether it may be handed over; one may always."""
        given, limits = self._given, self.subscription
        return not given or (
            given < limits.max_in_flight and self._given_bytes + token.size <= limits.max_in_flight_bytes
        )

    def _given_now(self, token: Token) -> None:
        token.given = True
        self._given += 1
        self._given_bytes += token.size
        progress = token.track.progress
        if token.offset >= progress.handed:
            progress.handed = token.offset + 1

    def _hand(self, deliveries: Sequence[Delivery]) -> None:
        if self._many is None:
            for delivery in deliveries:
                self._sink(delivery)
        elif deliveries:
            self._many(deliveries)

    def _let_pump(self, token: Token) -> None:
        """It counts no more as taken by the pump."""
        self.released += 1
        self.released_bytes += token.size

    def _nudge(self) -> None:
        """There may be room for more: once for many that were let go."""
        if self.pump.waits:
            self.pump.wake.set()

    def _let(self, token: Token) -> Delivery | None:
        """It is not with us any more."""
        token.is_open = False
        delivery = self.held.pop(token, None)
        if delivery is not None:
            if token.given:
                self._given -= 1
                self._given_bytes -= token.size
            self._let_pump(token)
        return delivery

    def _fill(self) -> None:
        """Hand over what there is room for."""
        queue, held = self._queue, self.held
        some: list[Delivery] = []
        while queue and not self._stopping:
            token = queue[0]
            if token.is_open:
                if not self._has_room(token):
                    break
                self._given_now(token)
                some.append(held[token])
            queue.popleft()
        self._hand(some)

    def _came(self, token: Token, delivery: Delivery) -> None:
        """Its time has come: it is with us again."""
        self.released -= 1
        self.released_bytes -= token.size
        self.held[token] = delivery
        self._queue.append(token)
        self._fill()

    # ── what becomes of them ────────────────────────────────────────────────────────────────────────────────────────

    def settle(self, verdicts: Iterable[tuple[Delivery, Verdict]]) -> list[Exception | None]:
        """Note what became of deliveries; with the next commit the cluster knows. There may be room for more then."""
        held, count, size = self.held, 0, 0
        results: list[Exception | None] = []
        for delivery, verdict in verdicts:
            token = token_of(delivery)
            plain = type(verdict) is Ack and token.is_open and token.given and not token.track.gone
            if plain and held.pop(token, None) is not None:
                token.is_open = False
                token.track.progress.done(token.offset)
                count += 1
                size += token.size
                results.append(None)
            else:
                results.append(self._settle(delivery, token, verdict))
        self._given -= count
        self._given_bytes -= size
        self.released += count
        self.released_bytes += size
        self._settled()
        return results

    def _settle(self, delivery: Delivery, token: Token, verdict: Verdict) -> Exception | None:
        if not token.is_open or token not in self.held:
            if token.track.gone:
                return BrokerUnavailable(
                    f"{delivery!r} went to another process with its partition, and is delivered there"
                )
            return MisuseError(f"{delivery!r} is not ours to settle: it was settled or given back before")
        self._let(token)
        if token.track.gone:
            return BrokerUnavailable(f"{delivery!r} went to another process with its partition, and is delivered there")
        if isinstance(verdict, Ack):
            token.track.progress.done(token.offset)
        elif not self._stopping:
            self._again(token, delivery, verdict.after)
        return None

    def _again(self, token: Token, delivery: Delivery, after: float) -> None:
        """It was given back: it comes again, not before `after` seconds have passed, and before what is new."""
        again = Token(token.track, token.offset, token.size, time.time() + after)
        fresh = Delivery(
            body=delivery.body,
            stream=delivery.stream,
            origin=delivery.origin,
            token=again,
            headers=delivery.headers,
            slot=delivery.slot,
            delivered=delivery.delivered + 1,
            route=delivery.route,
            stored=delivery.stored,
        )
        if after > 0:
            self._waiting.add(again, fresh, again.due)
            return
        self.released -= 1
        self.released_bytes -= again.size
        self.held[again] = fresh
        self._returned.append(again)

    def _settled(self) -> None:
        """What came back goes first, in its order."""
        self._queue.extendleft(reversed(self._returned))
        self._returned.clear()
        self._fill()
        self._nudge()

    # ── partitions come and go ──────────────────────────────────────────────────────────────────────────────────────

    def began(self) -> None:
        """This process begins to take from partitions that it did not have."""
        if self.subscription.ordered:
            self.tenure += 1

    async def let_go(self, tracks: Sequence[Track]) -> None:
        """Partitions are to go to another process: drop what is not begun, and wait for the events that run."""
        leaving = set(tracks)
        self._drop(leaving, given=False)
        ends = time.monotonic() + PATIENCE
        if isinstance(self._sink, Recalls):
            running = list(self._given_of(leaving).values())
            for delivery in running:
                delivery.withdrawn = True
            if running and not await self._sink.give_up(running, PATIENCE):
                await self._told(leaving, ends)
                self.lost(tracks)
                return
        while self._given_of(leaving) and time.monotonic() < ends and not self._closed:  # noqa: ASYNC110  # limited
            await asyncio.sleep(LOOK)
        self.lost(tracks)

    async def _told(self, leaving: set[Track], ends: float) -> None:
        """Nothing of it runs any more. What has run is told in a moment, and what was not begun never is."""
        before = -1
        while True:
            left = len(self._given_of(leaving))
            if left in (0, before) or time.monotonic() > ends:
                return
            before = left
            await asyncio.sleep(TOLD)

    def lost(self, tracks: Sequence[Track]) -> None:
        """They are another process's: whatever runs here of them may not be begun, nor settled, any more."""
        leaving = set(tracks)
        for track in tracks:
            track.gone = True
        for delivery in self._given_of(leaving).values():
            delivery.withdrawn = True
        self._drop(leaving, given=True)
        self._fill()
        self._nudge()

    def _given_of(self, tracks: set[Track]) -> dict[Token, Delivery]:
        return {token: one for token, one in self.held.items() if token.given and token.track in tracks}

    def _drop(self, tracks: set[Track], *, given: bool) -> None:
        """Forget what is with us of these, handed over or not."""
        for token in [one for one in self.held if one.track in tracks and (given or not one.given)]:
            self._let(token)
        self._queue = deque(token for token in self._queue if token.is_open)
        self._waiting.drop(tracks)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def stop(self) -> None:
        """Take no new messages; what was handed over stays ours to settle. Polling, and so membership, goes on."""
        if self._stopping:
            return
        self._stopping = self.pump.stopping = True
        self.pump.wake.set()
        self._waiting.end()
        for token in [one for one in self.held if not one.given]:
            self._let(token)
        self._queue.clear()

    async def close(self) -> None:
        """End, and give back at once whatever was handed over and not settled. Safe to call twice."""
        if self._closed:
            return
        await self.stop()
        self._closed = self.pump.closing = True
        for token in list(self.held):
            self._let(token)
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)
        self.pump.wake.set()
        try:
            async with asyncio.timeout(ENDS_WITHIN):
                await self.pump.ended.wait()
        except TimeoutError:
            log.warning(
                "%s: its consumer does not come to an end; its partitions go to others when its session has ended",
                self.subscription.position,
            )

    # ── questions ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def backlog(self) -> Backlog:
        """How far behind the position is; raises BrokerUnavailable when the cluster cannot be asked."""
        one = self.subscription
        await self._copies_came()
        topics = (one.stream, retry_topic(one.position))
        committed = await committed_of(self._link, one.position, topics)
        ours: dict[str, dict[int, tuple[int, str]]] = {}
        for track in list(self.pump.tracks.values()):
            ours.setdefault(track.topic, {})[track.number] = track.progress.snapshot(final=True)
        total = 0
        for topic in topics:
            total += await left(self._link, topic, committed, ours.get(topic))
        waiting = self._waiting.copies()
        in_flight = self._given
        return Backlog(pending=max(0, total - in_flight - waiting), in_flight=in_flight, scheduled=waiting)

    async def _copies_came(self) -> None:
        """What is on the retry route comes soon; before that nobody knows how much of it waits for its time."""
        ends = time.monotonic() + SOON
        last = await offsets(self._link, retry_topic(self.subscription.position), LATEST)
        tracks = [track for track in self.pump.tracks.values() if track.route is Route.RETRY]
        while any(one.progress.seen < last.get(one.number, 0) and not one.gone for one in tracks):
            if time.monotonic() > ends or self._stopping:
                return
            await asyncio.sleep(LOOK)

    async def keeps(self) -> timedelta | None:
        """How long the stream keeps its events now, whatever the code says; None is without end."""
        return keeps(await topic_settings(self._link, self.subscription.stream))


class OrderedFeed(KafkaFeed):
    """Of a position that keeps the order of its keys: it knows whether its partitions are certainly still its own."""

    def fence(self) -> str:
        """See `ports.Fenced`."""
        pump = self.pump
        if not pump.tracks or time.monotonic() < pump.commits.sure_until:
            return ""
        return (
            f"whether {self.subscription.position} still has its partitions is not known: its group's coordinator does"
            " not answer"
        )
