"""Publishing: the broker's report on each message before anybody is told that it is stored.

The reports come on a thread, and cross to the event loop once for each call, when the last one has come. A message that
is given up in time may still be on its way: if the same id is published again meanwhile, it waits for the same report
rather than be stored twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from tidings.brokers.kafka.clients import code_of, reason
from tidings.brokers.kafka.link import Link
from tidings.brokers.kafka.names import topic_of
from tidings.brokers.kafka.records import Outgoing, record_of
from tidings.brokers.kafka.topics import MAX_MESSAGE
from tidings.delivery import MAX_EVENT_BYTES, Message
from tidings.errors import BrokerUnavailable, ConfigurationError, EventTooLarge, NotStored, TidingsError

log = logging.getLogger("tidings.kafka")

PAUSE: Final = 0.01
"""Seconds until there may be room again where too much is on its way."""
MADE_AGAIN: Final = 2.0
"""Seconds from one producer to the next: it may meet what the last one could not go on with."""
KNOWN_WITHIN: Final = 5.0
"""Seconds until a topic that was there, and is denied, is taken for gone."""
DENIED_PAUSE: Final = 0.1
FLUSH: Final = 5.0
"""Seconds that a close waits for what is on its way."""

_TOO_LARGE: Final = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})
_NOWHERE: Final = frozenset(
    {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}
)
_FEW: Final = frozenset({KafkaError.NOT_ENOUGH_REPLICAS, KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND})
_DENIED: Final = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED})
_MAYBE: Final = "the event may be stored or not; publishing it again under the same id is safe"


class _Waits:
    """One call of `publish`, waiting for its reports."""

    def __init__(self, count: int) -> None:
        self.answers: list[KafkaError | None] = [None] * count
        self.missing = set[int]()
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self.sending = True

    def report(self, place: int, error: KafkaError | None) -> None:
        """On the thread: a message has its end."""
        self.answers[place] = error
        self.missing.discard(place)
        if not self.missing and not self.sending:
            self.wake()

    def wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._over.set)
        except RuntimeError:
            pass  # the loop has ended, and with it whoever waited

    async def over(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            pass


class Publisher:
    """Stores messages through one producer, which is made anew when it cannot go on."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._where = link.options.where
        self.max_event = MAX_EVENT_BYTES
        self._lock = threading.Lock()
        self._pending: dict[str, list[tuple[_Waits, int]]] = {}
        """By id: who waits for the report."""
        self._checking = asyncio.Lock()
        self._closed = self._closing = False
        self._loop = asyncio.get_running_loop()
        self._begin()

    def _begin(self) -> None:
        """Have a producer, and hear its reports."""
        self._made_at = time.monotonic()
        settings = {"message.max.bytes": MAX_MESSAGE, **self._link.options.producer()}
        self._producer = producer = self._link.clients.producer(settings)
        # Not before it is the one that counts: a thread that is begun may run first.
        threading.Thread(target=self._poll, args=(producer,), name="tidings-kafka-reports", daemon=True).start()

    def _poll(self, producer: Producer) -> None:
        """Hear the reports, until this producer is replaced or closed and all have come.

        What it cannot go on with (trap 77) the library says once, and only to whoever polls.
        """
        fatal = ""
        while producer is self._producer and not self._closed:
            try:
                producer.poll(0.1)
                if fatal and time.monotonic() - self._made_at > MADE_AGAIN:
                    self._loop.call_soon_threadsafe(self._replace, producer, fatal)
            except KafkaException as error:
                fatal = reason(error)
                time.sleep(PAUSE)
            except RuntimeError:
                return  # the loop has ended
        if not self._closed:
            producer.flush(FLUSH)  # it was replaced: what it had is told that it is not known to be stored

    async def publish(self, messages: Sequence[Message], timeout: float) -> list[Exception | None]:
        """Store messages; see `ports.Broker.publish`."""
        end = time.monotonic() + timeout
        results: list[Exception | None] = [None] * len(messages)
        waits = _Waits(len(messages))
        places: dict[str, int] = {}
        sent: list[int] = []
        denied: dict[str, list[int]] = {}
        for place, message in enumerate(messages):
            try:
                record = record_of(message, self.max_event)
                if record.topic not in self._link.partitions:
                    await self._find(record.topic, message, end)
                partition = self._partition(record, places)
                if not self._send(record, partition, message.id, waits, place):
                    await self._send_soon(record, partition, message.id, waits, place, end)
                sent.append(place)
            except TidingsError as error:
                results[place] = error
        with self._lock:
            waits.sending = False
            waiting = bool(waits.missing)
        if waiting:
            await waits.over(max(0.0, end - time.monotonic()))
        with self._lock:
            missing = set(waits.missing)
        for place in sent:
            if place in missing:
                results[place] = BrokerUnavailable(f"{_MAYBE}: no report in time from {self._where}{self._because()}")
            elif (answer := waits.answers[place]) is not None:
                results[place] = self._meaning(answer, messages[place])
                if self._went_away(answer):
                    denied.setdefault(topic_of(messages[place]), []).append(place)
        for topic, some in denied.items():
            whole = all(place in some for place in sent if topic_of(messages[place]) == topic)
            answers = await self._after_all(topic, [messages[place] for place in some], whole, end)
            for place, outcome in zip(some, answers, strict=True):
                results[place] = outcome
        return results

    async def _after_all(
        self, topic: str, messages: Sequence[Message], whole: bool, end: float
    ) -> Sequence[Exception | None]:
        """A topic that was there is denied: by a broker that has just started, and does not know its topics yet.

        The library believes that at once, and until it looks again by itself. What was denied is sent once more, unless
        others of its call were stored: then it would come behind them.
        """
        patience = min(end, time.monotonic() + KNOWN_WITHIN)
        producer, partitions = self._producer, 0
        while not partitions:
            why: Exception | None = None
            try:
                found = await self._link.ask(lambda: producer.list_topics(topic, timeout=1.0), 2.0)
                partitions = len(found.topics[topic].partitions)
            except BrokerUnavailable as unavailable:
                why = unavailable
            if not partitions and time.monotonic() > patience:
                self._link.partitions.pop(topic, None)
                self._link.seen.discard(topic)
                return [why or _nowhere(topic, message) for message in messages]
            await asyncio.sleep(DENIED_PAUSE)
        self._link.partitions[topic] = partitions
        if whole and time.monotonic() < end:
            return await self.publish(messages, end - time.monotonic())
        return [BrokerUnavailable(f"{_MAYBE}: {self._where} did not know {topic!r} for a moment")] * len(messages)

    async def write(self, topic: str, values: Mapping[str, bytes], timeout: float = 10.0) -> None:
        """Store a value under each key of a topic of our own.

        Raises:
            BrokerUnavailable: not all of them are stored.
        """
        end = time.monotonic() + timeout
        waits = _Waits(len(values))
        for place, (key, value) in enumerate(values.items()):
            record = Outgoing(topic, key.encode(), value, [])
            if not self._send(record, -1, f"{topic}/{key}/{random.random()}", waits, place):
                await self._send_soon(record, -1, f"{topic}/{key}/{random.random()}", waits, place, end)
        with self._lock:
            waits.sending = False
            waiting = bool(waits.missing)
        if waiting:
            await waits.over(max(0.0, end - time.monotonic()))
        if waits.missing or any(waits.answers):
            why = next((error.str() for error in waits.answers if error is not None), "no report in time")
            raise BrokerUnavailable(f"{topic} at {self._where} cannot be written: {why}{self._because()}")

    def _partition(self, record: Outgoing, places: dict[str, int]) -> int:
        """Where what has no key goes: of one call all to one partition, so that they keep their order."""
        if record.key is not None:
            return -1
        if record.topic not in places:
            places[record.topic] = random.randrange(self._link.partitions[record.topic])
        return places[record.topic]

    def _send(self, record: Outgoing, partition: int, id: str, waits: _Waits, place: int) -> bool:
        """Hand a message to the library; False where it has no room just now."""
        if self._closing:
            raise BrokerUnavailable(f"nothing was sent: the connection to {self._where} is being closed")
        with self._lock:
            waits.missing.add(place)
            if (others := self._pending.get(id)) is not None:
                others.append((waits, place))
                return True
            self._pending[id] = [(waits, place)]
        more: dict[str, Any] = {} if partition < 0 else {"partition": partition}
        try:
            self._producer.produce(
                record.topic,
                record.value,
                record.key,
                headers=record.headers,
                on_delivery=lambda error, _: self._reported(id, error),
                **more,
            )
            return True
        except BufferError:
            self._forget(id)
            return False
        except KafkaException as error:
            if code_of(error) in _NOWHERE:
                self._reported(id, error.args[0])
                return True
            self._forget(id)
            if code_of(error) in _TOO_LARGE:
                raise _too_large(f"{record.topic}: {reason(error)}") from None
            raise BrokerUnavailable(f"nothing was sent to {self._where}: {reason(error)}") from None

    async def _send_soon(
        self, record: Outgoing, partition: int, id: str, waits: _Waits, place: int, end: float
    ) -> None:
        while time.monotonic() < end:
            await asyncio.sleep(PAUSE)
            if self._send(record, partition, id, waits, place):
                return
        raise BrokerUnavailable(f"nothing was sent: too much is on its way to {self._where} already{self._because()}")

    def _forget(self, id: str) -> None:
        with self._lock:
            for waits, place in self._pending.pop(id, ()):
                waits.missing.discard(place)

    def _reported(self, id: str, error: KafkaError | None) -> None:
        """On the thread: the cluster has stored a message, or will not."""
        with self._lock:
            for waits, place in self._pending.pop(id, ()):
                waits.report(place, error)

    async def _find(self, topic: str, message: Message, end: float) -> None:
        """A topic that is not known: it is looked for, and never made by a publish.

        Raises:
            NotStored: there is none.
            BrokerUnavailable: the cluster cannot be asked.
        """
        patience = min(end, time.monotonic() + KNOWN_WITHIN)
        while True:
            async with self._checking:
                if topic not in self._link.partitions:
                    await self._link.refresh(min(5.0, max(0.1, end - time.monotonic())))
            if topic in self._link.partitions:
                return
            if topic not in self._link.seen or time.monotonic() > patience:
                self._link.seen.discard(topic)
                raise _nowhere(topic, message)
            await asyncio.sleep(DENIED_PAUSE)  # a broker that has just started may not know its topics yet

    def _went_away(self, error: KafkaError) -> bool:
        """Whether what was to keep a message is denied, or went while it was on its way: the library ends those."""
        return error.code() in _NOWHERE or (error.code() == KafkaError._DESTROY and not self._closing)

    def _meaning(self, error: KafkaError, message: Message) -> Exception:
        code = error.code()
        if code in _TOO_LARGE:
            return _too_large(f"{message.type} {message.id}: {error.str()}")
        if code in _NOWHERE:
            return _nowhere(topic_of(message), message)
        if code in _FEW:
            return NotStored(
                f"{message.type} {message.id} was not stored, because too few brokers have a copy ({error.str()}):"
                " start those that are away; min.insync.replicas says how many it takes"
            )
        if code in _DENIED:
            return ConfigurationError(
                f"the user at {self._where} may not publish {message.type} ({error.str()}): grant it with kafka-acls"
            )
        return BrokerUnavailable(f"{_MAYBE}: {error.str()}{self._because()}")

    def _replace(self, old: Producer, why: str) -> None:
        """After a fatal error a producer stores nothing any more (trap 77)."""
        if self._closing or old is not self._producer:
            return
        log.error("the producer for %s cannot go on and is made anew: %s", self._where, why)
        try:
            self._begin()
        except TidingsError as error:
            log.error("the producer for %s cannot be made anew yet: %s", self._where, error)
        else:
            old.purge()

    def _because(self) -> str:
        return f" ({self._link.trouble})" if self._link.trouble else ""

    async def close(self) -> None:
        """Wait a little for what is on its way; what has no report then is not known to be stored."""
        if self._closing:
            return
        self._closing = True
        producer = self._producer
        try:
            await self._link.ask(lambda: producer.flush(FLUSH), FLUSH + 2.0)
        except TidingsError as error:
            log.debug("flushing: %s", error)
        self._closed = True
        with self._lock:
            waiting = [one for entry in self._pending.values() for one in entry]
            self._pending.clear()
            for waits, place in waiting:
                waits.report(place, KafkaError(KafkaError._DESTROY, "closed before there was a report"))


def _too_large(what: str) -> EventTooLarge:
    return EventTooLarge(f"{what}. Store the large part elsewhere and publish where it stands")


def _nowhere(topic: str, message: Message) -> NotStored:
    return NotStored(
        f"there is no topic {topic!r}, so nothing would keep {message.type} {message.id}. Start a service that"
        " publishes or handles its events first, or name the type in publishes="
    )
