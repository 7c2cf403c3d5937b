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
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Final

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka import Message as Record

from tidings.brokers.kafka.link import Link, code_of, made, reason
from tidings.brokers.kafka.records import delivery_of, pairs_of
from tidings.brokers.kafka.tracks import Token, Track
from tidings.delivery import Delivery, Route
from tidings.errors import TidingsError

log = logging.getLogger("tidings.kafka")

LONGEST: Final = 60.0
"""Seconds that a timer may run: the clock of the day may be set meanwhile."""
NEAR: Final = 200
"""Records that are read over rather than asked for anew."""
FETCH_WITHIN: Final = 10.0
AGAIN: Final = 1.0

Due = tuple[float, int, Token, Delivery | None]


class Waiting:
    """What may not be handed over before its time, by when that is."""

    def __init__(self, link: Link, limit: int, ready: Callable[[Token, Delivery], None], slots: bool) -> None:
        self._link = link
        self._limit = limit
        self._ready = ready
        self._slots = slots
        self._heap: list[Due] = []
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._bytes = 0
        self._fetching: asyncio.Task[None] | None = None
        self._lacking: list[Token] = []
        """They are due, and are being fetched."""
        self._ended = False

    def add(self, token: Token, delivery: Delivery, due: float) -> None:
        kept: Delivery | None = delivery
        if token.track.route is Route.RETRY and self._bytes + token.size > self._limit:
            kept = None
        else:
            self._bytes += token.size
        heapq.heappush(self._heap, (due, next(self._numbers), token, kept))
        if self._heap[0][2] is token:
            self._set_timer()

    def copies(self) -> int:
        """How many copies on the retry route wait."""
        waiting = [token for _, _, token, _ in self._heap] + self._lacking
        return sum(token.track.route is Route.RETRY and not token.track.gone for token in waiting)

    def drop(self, tracks: set[Track]) -> None:
        """Forget those of partitions that go."""
        self._heap = [one for one in self._heap if one[2].track not in tracks]
        heapq.heapify(self._heap)
        self._bytes = sum(token.size for _, _, token, kept in self._heap if kept is not None)
        self._lacking = [token for token in self._lacking if token.track not in tracks]
        self._set_timer()

    def end(self) -> None:
        """Hand nothing over any more."""
        self._ended = True
        self._heap.clear()
        self._lacking.clear()
        self._set_timer()
        if self._fetching is not None:
            self._fetching.cancel()

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
            _, _, token, delivery = heapq.heappop(self._heap)
            if token.track.gone:
                continue
            if delivery is None:
                self._lacking.append(token)
            else:
                self._bytes -= token.size
                self._ready(token, delivery)
        if self._lacking and (self._fetching is None or self._fetching.done()):
            self._fetching = asyncio.create_task(self._fetch(), name="tidings-kafka-copies")
        self._set_timer()

    async def _fetch(self) -> None:
        """Get those back whose bytes were not kept."""
        while self._lacking:
            tokens = sorted(self._lacking, key=lambda one: (one.track.number, one.offset))[:NEAR]
            try:
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(self._link.reads, fetch, self._link, tokens)
            except Exception as error:
                log.warning("%d copies that are due cannot be fetched yet: %s", len(tokens), reason(error))
                await asyncio.sleep(AGAIN)
                continue
            for token in tokens:
                if token not in self._lacking:
                    continue
                if (record := found.get((token.track.number, token.offset))) is not None:
                    self._lacking.remove(token)
                    self._ready(token, _delivery(record, token, self._slots))
            if not found:
                await asyncio.sleep(AGAIN)


def _delivery(record: Record, token: Token, slots: bool) -> Delivery:
    delivery = delivery_of(record, pairs_of(record), Route.RETRY, token=token, slots=slots)
    delivery.delivered = 1 + token.track.progress.delivered(token.offset)
    return delivery


def fetch(link: Link, tokens: Sequence[Token]) -> dict[tuple[int, int], Record]:
    """Records by their places, in the order of which they are asked for; what cannot be had in time is left out."""
    found: dict[tuple[int, int], Record] = {}
    consumer = made(Consumer, link.settings(link.options.reader()), link.options.where)
    ends = time.monotonic() + FETCH_WITHIN
    at = (-1, -1)
    try:
        for token in tokens:
            place = (token.track.number, token.offset)
            if at[0] != place[0] or not at[1] <= place[1] <= at[1] + NEAR:
                consumer.assign([TopicPartition(token.track.topic, *place)])
                at = place
            while at[1] <= place[1] and time.monotonic() < ends:
                record = consumer.poll(0.2)
                if record is not None and record.error() is None:
                    at = (place[0], (record.offset() or 0) + 1)
                    if record.offset() == place[1]:
                        found[place] = record
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
