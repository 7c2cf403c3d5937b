"""Reading a topic from its beginning, without a position: bounded by where it ends now, or followed.

Partitions are merged by the time at which the brokers stored their records; within one partition the order is the
log's. Whoever follows hears of new records from one consumer for each topic, however many follow.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka import Message as Record

from tidings.brokers._standing import of_log
from tidings.brokers.kafka.clients import reason
from tidings.brokers.kafka.link import Link
from tidings.brokers.kafka.names import topic_to_read
from tidings.brokers.kafka.offsets import EARLIEST, LATEST, at_time, offsets
from tidings.brokers.kafka.records import POSITION, delivery_of, own, pairs_of
from tidings.delivery import Delivery, Route
from tidings.errors import BrokerUnavailable, ConfigurationError

log = logging.getLogger("tidings.kafka")

MOST: Final = 500
AHEAD: Final = 2000
"""Records of one partition that wait until those of others have come, before it is paused."""
MOST_COMING: Final = 10_000
"""Records that wait for one follower in memory."""
SILENCE: Final = 30.0
"""Seconds without an answer after which a reader gives up."""
PAUSE: Final = 0.2
ASLEEP: Final = 1.0


def _some(consumer: Consumer, seconds: float = PAUSE) -> list[Record]:
    """What has come; waits for the first only."""
    first = consumer.poll(seconds)
    return [] if first is None else [first, *consumer.consume(MOST - 1, 0)]


async def read_records(
    link: Link, topic: str, since: datetime | None = None, seen: Mapping[int, int] = MappingProxyType({})
) -> AsyncIterator[Record]:
    """The records of a topic up to where it ends now, in the order in which they were stored.

    `seen` is the offset of the last one, by partition, behind which to go on.

    Raises:
        BrokerUnavailable: no answer for too long; what was read so far was read.
    """
    ends = await offsets(link, topic, LATEST)
    begins = await offsets(link, topic, EARLIEST)
    if since is not None:
        later = await offsets(link, topic, at_time(since.timestamp()))
        begins = {number: max(begins[number], later[number]) if later[number] >= 0 else ends[number] for number in ends}
    begins = {number: max(begin, seen.get(number, -1) + 1) for number, begin in begins.items()}
    merge = Merge({number: end for number, end in ends.items() if begins[number] < end})
    if not merge.open:
        return
    loop = asyncio.get_running_loop()
    consumer = link.clients.consumer(link.options.reader())
    try:
        consumer.assign([TopicPartition(topic, number, begins[number]) for number in merge.open])
        heard = time.monotonic()
        while True:
            records = await loop.run_in_executor(link.reads, _some, consumer)
            good = [one for one in records if one.error() is None]
            if good:
                heard = time.monotonic()
                merge.take(good)
                merge.balance(consumer, topic)
            elif time.monotonic() - heard > SILENCE:
                why = link.trouble or next((reason(error) for one in records if (error := one.error())), "no answer")
                raise BrokerUnavailable(f"the topic {topic} cannot be read to its end: {why}")
            for record in merge.ready():
                yield record
            if not merge.open:
                return
            if not good:
                merge.gone(consumer, topic)
    finally:
        closing = asyncio.ensure_future(loop.run_in_executor(link.reads, consumer.close))
        try:
            await asyncio.shield(closing)
        except RuntimeError:
            pass  # the executor is closed: so is all that it would have closed


class Merge:
    """Records of several partitions in the order of their time stamps."""

    def __init__(self, ends: dict[int, int]) -> None:
        self.open = dict(ends)
        """The partitions that are not read to their end, and where that is."""
        self._waiting: dict[int, deque[Record]] = {number: deque() for number in ends}
        self._paused = set[int]()

    def take(self, records: list[Record]) -> None:
        for record in records:
            number, offset = record.partition() or 0, record.offset() or 0
            end = self.open.get(number)
            if end is None:
                continue
            if offset < end:
                self._waiting[number].append(record)
            if offset + 1 >= end:
                del self.open[number]

    def ready(self) -> list[Record]:
        """What no record of another partition can come before any more."""
        heads = [(queue[0].timestamp()[1], number) for number, queue in self._waiting.items() if queue]
        heapq.heapify(heads)
        found = []
        missing = sum(not self._waiting[number] for number in self.open)
        while heads and not missing:
            _, number = heapq.heappop(heads)
            queue = self._waiting[number]
            found.append(queue.popleft())
            if queue:
                heapq.heappush(heads, (queue[0].timestamp()[1], number))
            elif number in self.open:
                missing += 1
        return found

    def balance(self, consumer: Consumer, topic: str) -> None:
        """Let those that are far ahead wait for the others."""
        ahead = {number for number in self.open if len(self._waiting[number]) > AHEAD}
        if len(ahead) == len(self.open):
            ahead = set()
        if stop := ahead - self._paused:
            consumer.pause([TopicPartition(topic, number) for number in stop])
        if go := (self._paused - ahead) & set(self.open):
            consumer.resume([TopicPartition(topic, number) for number in go])
        self._paused = ahead

    def gone(self, consumer: Consumer, topic: str) -> None:
        """Nothing came: what lies before the end of a partition may have been removed, or be none of ours."""
        for place in consumer.position([TopicPartition(topic, number) for number in self.open]):
            if place.offset >= self.open[place.partition]:
                del self.open[place.partition]


class Coming:
    """What one follower was told of and has not read yet; beyond a limit it is told nothing more, and reads again."""

    def __init__(self) -> None:
        self.missed = False
        self._records: list[Record] = []
        self._news = asyncio.Event()

    def take(self, records: list[Record]) -> None:
        self.missed |= len(self._records) + len(records) > MOST_COMING
        if not self.missed:
            self._records += records
        self._news.set()

    async def new(self) -> list[Record]:
        """What has come; with `missed`, it is all that will."""
        await self._news.wait()
        self._news.clear()
        records, self._records = self._records, []
        return records


class Tail:
    """Hears of what is stored in a topic from now on, on a thread, and tells all who follow it."""

    def __init__(self, link: Link, topic: str) -> None:
        self._link = link
        self._topic = topic
        self._loop = asyncio.get_running_loop()
        self._followers: set[Callable[[list[Record]], None]] = set()
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = asyncio.Lock()

    async def follow(self, take: Callable[[list[Record]], None]) -> None:
        """Tell `take`, in the event loop, of everything that is stored after this call."""
        self._followers.add(take)
        async with self._starting:
            if self._thread is None:
                ends = await offsets(self._link, self._topic, LATEST)
                consumer = self._link.clients.consumer(self._link.options.reader())
                consumer.assign([TopicPartition(self._topic, number, end) for number, end in ends.items()])
                self._thread = threading.Thread(
                    target=self._run, args=(consumer,), name=f"tidings-kafka-tail-{self._topic}", daemon=True
                )
                self._thread.start()

    def leave(self, take: Callable[[list[Record]], None]) -> None:
        self._followers.discard(take)

    def end(self) -> None:
        self._ends.set()

    def _run(self, consumer: Consumer) -> None:
        try:
            while not self._ends.is_set():
                try:
                    records = [one for one in _some(consumer) if one.error() is None]
                    if records:
                        self._loop.call_soon_threadsafe(self._tell, records)
                except KafkaException as error:
                    log.warning("the topic %s cannot be followed just now: %s", self._topic, reason(error))
                    self._ends.wait(ASLEEP)
        except RuntimeError:
            pass  # the loop has ended
        finally:
            consumer.close()

    def _tell(self, records: list[Record]) -> None:
        for take in list(self._followers):
            take(records)


class Reading:
    """The logs of one cluster, as they are read and followed."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._tails: dict[str, Tail] = {}

    def read(self, route: Route, stream: str, since: datetime | None, follow: bool) -> AsyncIterator[Delivery]:
        """See `ports.Broker.read`."""
        return of_log(route, self._read(route, stream, since, follow))

    async def _read(
        self, route: Route, stream: str, since: datetime | None, follow: bool
    ) -> AsyncIterator[Delivery | None]:
        """The log, and None where all that stood has come."""
        topic = topic_to_read(route, stream)
        if topic not in self._link.partitions:
            await self._link.refresh()
        if topic not in self._link.partitions:
            names = ", ".join(sorted(name for name in self._link.partitions if not name.startswith(("tidings-", "_"))))
            raise ConfigurationError(f"there is no stream {stream!r}; the streams are: {names or 'none'}")
        coming = Coming()
        tail = self._tails.setdefault(topic, Tail(self._link, topic)) if follow else None
        seen: dict[int, int] = {}
        try:
            if tail is not None:
                await tail.follow(coming.take)
            async for record in read_records(self._link, topic, since):
                if (delivery := _logged(record, route, stream, seen)) is not None:
                    yield delivery
            yield None
            while tail is not None:
                for record in await coming.new():
                    if (delivery := _logged(record, route, stream, seen)) is not None:
                        yield delivery
                if coming.missed:
                    coming.missed = False
                    async for record in read_records(self._link, topic, since, seen):
                        if (delivery := _logged(record, route, stream, seen)) is not None:
                            yield delivery
        finally:
            if tail is not None:
                tail.leave(coming.take)

    def close(self) -> None:
        for tail in self._tails.values():
            tail.end()


def _logged(record: Record, route: Route, stream: str, seen: dict[int, int]) -> Delivery | None:
    """A record of a log as a delivery, unless it was seen; of notes, those of one position."""
    number, offset = record.partition() or 0, record.offset() or 0
    if offset <= seen.get(number, -1):
        return None
    seen[number] = offset
    pairs = pairs_of(record)
    if route is Route.NOTE and own(pairs, POSITION) != stream:
        return None
    delivery = delivery_of(record, pairs, route, slots=True)
    delivery.stored = record.timestamp()[1] / 1000
    return delivery
