"""Copies that wait for their time: in memory as far as they fit, else by their place, to be fetched when they are due.

A log has no way to deliver later, so a process reads the retry route to its end and keeps for each copy when it is due.
Its bytes are kept up to a limit. What is done is removed from the topic from time to time, which keeps all else for
ever: no copy may be gone before its time.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import accumulate, count
from typing import Final

from confluent_kafka import Message as Record
from confluent_kafka import TopicPartition

from tidings.brokers.kafka.clients import code_of, reason
from tidings.brokers.kafka.link import Link
from tidings.brokers.kafka.records import delivery_of, pairs_of
from tidings.brokers.kafka.tracks import Place, Track, place_of
from tidings.delivery import Delivery, Route
from tidings.errors import TidingsError

log = logging.getLogger("tidings.kafka")

LONGEST: Final = 60.0
"""Seconds that a timer may run: the clock of the day may be set meanwhile."""
NEAR: Final = 200
"""Records that are read over rather than asked for anew."""
FETCH_WITHIN: Final = 10.0
AGAIN: Final = 1.0
LOOK: Final = 0.02

Due = tuple[float, int, Place, Delivery | None]


class Waiting:
    """What may not be handed over before its time, by when that is."""

    def __init__(
        self,
        link: Link,
        limit: int,
        ready: Callable[[Delivery], None],
        forgotten: Callable[[Delivery], None],
        queued: Callable[[Collection[Delivery]], list[Delivery]],
        slots: bool,
    ) -> None:
        self._link = link
        self._limit = limit
        self._ready = ready
        self._forgotten = forgotten
        """Told of events, which keep their room while they wait, when they do not any more."""
        self._queued = queued
        self._slots = slots
        self._heap: list[Due] = []
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._bytes = 0
        self._fetching: asyncio.Task[None] | None = None
        self._lacking: list[Place] = []
        """They are due, and are being fetched."""
        self._ended = False

    def add(self, delivery: Delivery, due: float) -> None:
        place = place_of(delivery)
        kept: Delivery | None = delivery
        if place.track.route is Route.RETRY and self._bytes + place.size > self._limit:
            kept = None
        else:
            self._bytes += place.size
        heapq.heappush(self._heap, (due, next(self._numbers), place, kept))
        if self._heap[0][2] is place:
            self._set_timer()

    def copies(self) -> int:
        """How many copies on the retry route wait."""
        waiting = [place for _, _, place, _ in self._heap] + self._lacking
        return sum(place.track.route is Route.RETRY and not place.track.gone for place in waiting)

    def drop(self, tracks: Collection[Track]) -> None:
        """Forget those of partitions that go."""
        before, self._heap = self._heap, [one for one in self._heap if one[2].track not in tracks]
        self._forget(one for one in before if one[2].track in tracks)
        heapq.heapify(self._heap)
        self._bytes = sum(place.size for _, _, place, kept in self._heap if kept is not None)
        self._lacking = [place for place in self._lacking if place.track not in tracks]
        self._set_timer()

    def end(self) -> None:
        """Hand nothing over any more."""
        self._ended = True
        self._forget(self._heap)
        self._heap.clear()
        self._lacking.clear()
        self._set_timer()
        if self._fetching is not None:
            self._fetching.cancel()

    def _forget(self, some: Iterable[Due]) -> None:
        for _, _, place, delivery in some:
            if delivery is not None and place.track.route is Route.EVENT:
                self._forgotten(delivery)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap and not self._ended:
            wait = max(0.0, self._heap[0][0] - time.time())
            self._timer = asyncio.get_running_loop().call_later(min(wait + 0.001, LONGEST), self._look)

    def _look(self) -> None:
        self._timer = None
        now = time.time()
        while self._heap and self._heap[0][0] <= now and not self._ended:
            first = heapq.heappop(self._heap)
            _, _, place, delivery = first
            if place.track.gone:
                self._forget([first])
                continue
            if delivery is None:
                self._lacking.append(place)
            else:
                self._bytes -= place.size
                self._ready(delivery)
        if self._lacking and (self._fetching is None or self._fetching.done()):
            self._fetching = asyncio.create_task(self._fetch(), name="tidings-kafka-copies")
        self._set_timer()

    async def _fetch(self) -> None:
        """Get those back whose bytes were not kept: a few, and the next when these were handed over."""
        brought: list[Delivery] = []
        while self._lacking:
            if brought := self._queued(brought):
                await asyncio.sleep(LOOK)
                continue
            places = self._portion()
            try:
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(self._link.reads, fetch, self._link, places)
            except Exception as error:
                log.warning("%d copies that are due cannot be fetched yet: %s", len(places), reason(error))
                await asyncio.sleep(AGAIN)
                continue
            for place in places:
                at = (place.track.number, place.offset)
                if place not in self._lacking or at not in found:
                    continue
                self._lacking.remove(place)
                if (record := found[at]) is None:
                    text = (
                        "%s, partition %d: the copy at %d was removed before its time, and its event is not tried again"
                    )
                    log.error(f"{text}. Let that topic keep all: retention.ms=-1", place.track.topic, *at)
                    place.track.progress.done(place.offset)
                else:
                    brought.append(delivery := _delivery(record, place, self._slots))
                    self._ready(delivery)
            if not found:
                await asyncio.sleep(AGAIN)

    def _portion(self) -> list[Place]:
        """Neighbours among what is due, as many as may be here."""
        places = sorted(self._lacking, key=lambda one: (one.track.number, one.offset))[:NEAR]
        sizes = accumulate(place.size for place in places)
        return [place for place, size in zip(places, sizes, strict=True) if size <= self._limit] or places[:1]


def _delivery(record: Record, place: Place, slots: bool) -> Delivery:
    delivery = delivery_of(record, pairs_of(record), Route.RETRY, token=place.track, slots=slots)
    delivery.delivered = 1 + place.track.progress.delivered(place.offset)
    return delivery


def fetch(link: Link, places: Sequence[Place]) -> dict[tuple[int, int], Record | None]:
    """Records by their places, in the order of which they are asked for; what cannot be had in time is left out.

    None stands for what was removed before its topic's beginning: nobody can have it, and the others need not wait.
    """
    found: dict[tuple[int, int], Record | None] = {}
    begins: dict[int, int] = {}
    consumer = link.clients.consumer(link.options.reader())
    ends = time.monotonic() + FETCH_WITHIN
    at = (-1, -1)
    try:
        for place in places:
            number, offset = place.track.number, place.offset
            if number not in begins:
                where = TopicPartition(place.track.topic, number)
                begins[number] = consumer.get_watermark_offsets(where, timeout=FETCH_WITHIN / 2)[0]
            if offset < begins[number]:
                found[number, offset] = None
                continue
            if at[0] != number or not at[1] <= offset <= at[1] + NEAR:
                consumer.assign([TopicPartition(place.track.topic, number, offset)])
                at = (number, offset)
            while at[1] <= offset and time.monotonic() < ends:
                record = consumer.poll(0.2)
                if record is not None and record.error() is None:
                    at = (number, (record.offset() or 0) + 1)
                    if record.offset() == offset:
                        found[number, offset] = record
        return found
    finally:
        consumer.close()


async def trim(link: Link, tracks: Sequence[Track]) -> None:
    """Remove from the retry route what is done, up to what was committed."""
    for track in tracks:
        until = track.text[0]
        if track.route is not Route.RETRY or until <= track.trimmed or track.gone:
            continue
        place = TopicPartition(track.topic, track.number, until)
        try:
            (answer,) = await link.answers(partial(link.admin.delete_records, [place], request_timeout=5.0))
        except TidingsError as error:
            log.debug("%s is not trimmed: %s", track.topic, error)
            return
        if isinstance(answer, Exception):
            log.debug("%s is not trimmed (%d): %s", track.topic, code_of(answer), reason(answer))
            return
        track.trimmed = until
