"""A running subscription in the event loop: what is with us of a position, in which order it is handed over, and what
becomes of it.

Copies on the retry route whose time has not come wait here, beside the limits: they occupy nothing that others need.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final

from tidings.brokers.kafka.left import Left
from tidings.brokers.kafka.link import Link
from tidings.brokers.kafka.names import retry_topic
from tidings.brokers.kafka.offsets import LATEST, committed_of, left, offsets
from tidings.brokers.kafka.pump import Pump
from tidings.brokers.kafka.topics import lasts, topic_settings
from tidings.brokers.kafka.tracks import Batch, Track, again, mark, offset_of, track_of
from tidings.brokers.kafka.waiting import Waiting, trim
from tidings.delivery import ACK, Ack, Delivery, Route, Verdict
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
        self._given = self._given_bytes = 0
        """Handed over and not settled. What is with us stands in `Progress.open` of its track."""
        self._queue: deque[Delivery] = deque()
        """With us, and not handed over yet: the limits are reached."""
        self._returned: list[Delivery] = []
        slots = subscription.ordered and subscription.slots
        owner = (self._came, self._let, self._queued)
        self._waiting = Waiting(link, subscription.max_in_flight_bytes // 4, *owner, slots)
        """What may not be handed over before its time: copies, and what was given back for a while."""
        self._left = None if subscription.ordered else Left()
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
        for track, end in batch.ends.items():
            track.came = max(track.came, end)
        if self._stopping or batch.due or any(track.gone for track in batch.ends):
            self._queue.extend(self._to_be_handed(batch))
        else:
            self._queue.extend(batch.deliveries)
        self._fill()
        self._nudge()

    def _to_be_handed(self, batch: Batch) -> Iterator[Delivery]:
        """Those of a batch that are for now, and ours."""
        now = time.time()
        for delivery in batch.deliveries:
            if track_of(delivery).gone or self._stopping:
                self._let(delivery)
            elif (due := batch.due.get(delivery, 0.0)) > now:
                self._let(delivery)
                self._waiting.add(delivery, due)
            else:
                yield delivery

    def _fill(self) -> None:
        """Hand over what there is room for; one may always be."""
        queue = self._queue
        room = min(self.subscription.max_in_flight - self._given, len(queue))
        if room <= 0 or self._stopping:
            return
        some = [queue.popleft() for _ in range(room)]
        size = sum([len(delivery.body) for delivery in some])
        left = self.subscription.max_in_flight_bytes - self._given_bytes
        while size > left and len(some) > (not self._given):
            size -= len(some[-1].body)
            queue.appendleft(some.pop())
        if some:
            self._given += len(some)
            self._given_bytes += size
            mark(some)
            self._hand(some)

    def _hand(self, deliveries: Sequence[Delivery]) -> None:
        if self._many is None:
            for delivery in deliveries:
                self._sink(delivery)
        else:
            self._many(deliveries)

    def sift(self, theirs: Collection[str], until: float) -> None:
        """See `rolling.Sifts`."""
        self.pump.arrivals.sift(theirs, until)
        if self._left is not None:
            self._left.sift(theirs)

    def _nudge(self) -> None:
        """There may be room for more: once for many that were let go."""
        if self.pump.waits:
            self.pump.wake.set()

    def _let(self, delivery: Delivery) -> None:
        """It is not with us any more, and counts no more as taken by the pump."""
        track_of(delivery).progress.open[offset_of(delivery)] = None
        self.released += 1
        self.released_bytes += len(delivery.body)

    def _keep(self, delivery: Delivery) -> None:
        """It is with us again."""
        track_of(delivery).progress.open[offset_of(delivery)] = delivery
        self.released -= 1
        self.released_bytes -= len(delivery.body)

    def _came(self, delivery: Delivery) -> None:
        """Its time has come."""
        if track_of(delivery).route is Route.EVENT:
            self._let(delivery)  # which had kept its room
        self._keep(delivery)
        self._queue.append(delivery)
        self._fill()

    def _queued(self, deliveries: Collection[Delivery]) -> list[Delivery]:
        """Those for which there was no room yet."""
        queued = set(self._queue) if deliveries else ()
        return [delivery for delivery in deliveries if delivery in queued]

    # ── what becomes of them ────────────────────────────────────────────────────────────────────────────────────────

    def settle(self, verdicts: Sequence[tuple[Delivery, Verdict]]) -> list[Exception | None]:
        """Note what became of deliveries; with the next commit the cluster knows. There may be room for more then."""
        results: list[Exception | None] = [None] * len(verdicts)
        count, size = 0, 0
        known: object = None
        is_ours = False
        still: dict[Any, Delivery | None] = {}
        for place, (delivery, verdict) in enumerate(verdicts):  # neighbours mostly are of one partition
            if delivery.token is not known:
                known = track = track_of(delivery)
                still, is_ours = track.progress.open, track.owner is self and not track.gone
            offset = delivery.origin[2]  # `offset_of`, written out
            if is_ours and verdict is ACK and still.get(offset) is delivery:
                del still[offset]
                count += 1
                size += len(delivery.body)
            else:
                results[place] = self._settle(delivery, verdict)
        self._given -= count
        self._given_bytes -= size
        self.released += count
        self.released_bytes += size
        self._settled()
        return results

    def _settle(self, delivery: Delivery, verdict: Verdict) -> Exception | None:
        track, offset = track_of(delivery), offset_of(delivery)
        is_open = track.progress.open.get(offset) is delivery
        if is_open:
            self._take_back(delivery)
        if track.gone:
            return BrokerUnavailable(f"{delivery!r} went to another process with its partition, and is delivered there")
        if not is_open:
            return MisuseError(f"{delivery!r} is not ours to settle: it was settled or given back before")
        if isinstance(verdict, Ack):
            track.progress.done(offset)
        elif not self._stopping:
            self._again(delivery, verdict.after)
        return None

    def _again(self, delivery: Delivery, after: float) -> None:
        """It was given back: it comes again, not before `after` seconds have passed, and before what is new."""
        if after > 0 and self._left is not None and self._left.take(delivery):
            return
        fresh = again(delivery)
        if after > 0:
            if track_of(fresh).route is Route.EVENT:  # it keeps its room, or all that is stored would come to wait here
                self.released -= 1
                self.released_bytes -= len(fresh.body)
            self._waiting.add(fresh, time.time() + after)
            return
        self._keep(fresh)
        self._returned.append(fresh)

    def _settled(self) -> None:
        """What came back goes first, in its order."""
        if self._returned:
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
        self._drop(set(tracks))
        ends = time.monotonic() + PATIENCE
        if isinstance(self._sink, Recalls):
            running = self._given_of(tracks)
            for delivery in running:
                delivery.withdrawn = True
            if running and not await self._sink.give_up(running, PATIENCE):
                await self._told(tracks, ends)
                self.lost(tracks)
                return
        while self._given_of(tracks) and time.monotonic() < ends and not self._closed:  # noqa: ASYNC110  # limited
            await asyncio.sleep(LOOK)
        self.lost(tracks)

    async def _told(self, tracks: Sequence[Track], ends: float) -> None:
        """Nothing of it runs any more. What has run is told in a moment, and what was not begun never is."""
        before = -1
        while True:
            left = len(self._given_of(tracks))
            if left in (0, before) or time.monotonic() > ends:
                return
            before = left
            await asyncio.sleep(TOLD)

    def lost(self, tracks: Sequence[Track]) -> None:
        """They are another process's: whatever runs here of them may not be begun, nor settled, any more."""
        for track in tracks:
            track.gone = True
        self._drop(set(tracks))
        for delivery in self._given_of(tracks):
            delivery.withdrawn = True
            self._take_back(delivery)
        self._fill()
        self._nudge()

    def _given_of(self, tracks: Iterable[Track]) -> list[Delivery]:
        """What of these is with a handler: all that came and is open, but for what is to be handed over yet."""
        queued = set(self._queue)
        return [
            delivery
            for track in tracks
            for offset, delivery in track.progress.open.copy().items()  # the pump adds to it meanwhile
            if delivery is not None and offset < track.came and delivery not in queued
        ]

    def _take_back(self, delivery: Delivery) -> None:
        """It was handed over, and is not with us any more."""
        self._let(delivery)
        self._given -= 1
        self._given_bytes -= len(delivery.body)

    def _drop(self, tracks: Collection[Track]) -> None:
        """Forget what is with us of these and not handed over."""
        for delivery in [one for one in self._queue if track_of(one) in tracks]:
            self._let(delivery)
        self._queue = deque(one for one in self._queue if track_of(one) not in tracks)
        self._waiting.drop(tracks)
        if self._left is not None:
            self._left.drop(tracks)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def stop(self) -> None:
        """Take no new messages; what was handed over stays ours to settle. Polling, and so membership, goes on."""
        if self._stopping:
            return
        self._stopping = self.pump.stopping = True
        self.pump.wake.set()
        self._waiting.end()
        for delivery in self._queue:
            self._let(delivery)
        self._queue.clear()

    async def close(self) -> None:
        """End, and give back at once whatever was handed over and not settled. Safe to call twice."""
        if self._closed:
            return
        await self.stop()
        self._closed = self.pump.closing = True
        for delivery in self._given_of(list(self.pump.tracks.values())):
            self._take_back(delivery)
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
        """How long an event may stand in its topic as that is now, whatever the code says; None is without end."""
        return lasts(await topic_settings(self._link, self.subscription.stream))


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
