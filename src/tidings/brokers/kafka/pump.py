"""The thread of one position: polls its group's consumer, hands batches to the event loop, commits, and rebalances.

The client library calls back on the thread that polls it, and keeps the group's membership only while it is polled. So
the thread polls whatever happens. Where there is no room for more it takes nothing for a moment, and pauses the
partitions when that lasts. A batch crosses to the event loop in one hop; what is settled there crosses back as a number
that this thread reads when it commits.

Each partition of the stream brings its twin along, the partition of the retry route with the same number: who has a key
gets its copies. The twin belongs to the same group, so its commits are fenced alike.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Record

from tidings.brokers.kafka.arrivals import Arrivals
from tidings.brokers.kafka.clients import reason
from tidings.brokers.kafka.commits import Commits
from tidings.brokers.kafka.link import ASKED, Link
from tidings.brokers.kafka.names import retry_topic
from tidings.brokers.kafka.progress import Progress
from tidings.brokers.kafka.tracks import Batch, Track
from tidings.delivery import Route
from tidings.ports import Subscription

log = logging.getLogger("tidings.kafka")

MOST: Final = 1000
"""Records in one batch: each costs both threads a few turns of the interpreter's lock."""
POLL: Final = 0.1
"""Seconds that a poll waits for the first record."""
GATHER: Final = 0.002  # seconds that are waited for more room where it is for a few only: what is here lasts longer
UNPOLLED: Final = 0.5
"""Seconds without room after which the partitions are paused and polling goes on."""
BEGIN_WITHIN: Final = 30.0  # seconds until it must be known of a new partition how far its predecessor was
AGAIN: Final = 1.0
"""Seconds until a consumer that cannot go on is made anew."""
LEAVE_WITHIN: Final = 5.0
"""Seconds that the last partitions may take to be taken away; then the consumer is closed all the same."""
LOOK_FOR_TWINS: Final = 5.0
"""Seconds between two looks whether a partition without a twin has one by now."""


class Owner(Protocol):
    """What the pump needs of the feed it works for; called in the event loop, but for what is read only."""

    released: int
    released_bytes: int

    def take(self, batch: Batch) -> None: ...
    def began(self) -> None: ...
    async def let_go(self, tracks: Sequence[Track]) -> None: ...
    def lost(self, tracks: Sequence[Track]) -> None: ...


class Pump:
    """One consumer on one thread."""

    def __init__(self, owner: Owner, link: Link, subscription: Subscription, patience: float) -> None:
        self._owner = owner
        self._link = link
        self._subscription = subscription
        self._patience = patience
        self._retry = retry_topic(subscription.position)
        self._who = secrets.token_hex(6)
        self.arrivals = Arrivals(subscription, note=self._note, anew=self._anew)
        self._loop = asyncio.get_running_loop()
        self.tracks: dict[tuple[str, int], Track] = {}
        self.commits = Commits(
            subscription.position,
            self.tracks,
            signs=subscription.ordered,
            session=link.options.session_timeout,
            tell=self._tell,
        )
        self._make: Callable[[], Consumer] = lambda: link.clients.consumer(
            link.options.consumer(subscription.position) | {"on_commit": self.commits.heard}
        )
        self._made: Consumer | None = self._make()  # the first one where a wrong setting can be said
        self._taken = self._taken_bytes = 0
        self._most = max(2, 2 * subscription.max_in_flight)
        self._most_bytes = subscription.max_in_flight_bytes + subscription.max_in_flight_bytes // 4
        self.waits = self.stopping = self.closing = self._paused = False
        self.wake = threading.Event()
        self.trouble = ""
        self._broken = ""
        self._next_look = 0.0
        self.joined = asyncio.Event()
        """The group gave this process a part."""
        self.ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"tidings-kafka-{subscription.position}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def died(self) -> bool:
        return not self._thread.is_alive() and not self.closing

    # ── the thread ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            while not self.closing:
                try:
                    self._live(self._made or self._make())
                except Exception as error:
                    log.exception("%s: its consumer failed, and is made anew", self._subscription.position)
                    self.trouble = f"the consumer of {self._subscription.position} failed: {reason(error)}"
                self._made = None
                if not self.closing:
                    self.wake.wait(AGAIN)
        finally:
            self._soon(self.ended.set)

    def _live(self, consumer: Consumer) -> None:
        self._broken = ""
        self._paused = False
        self.commits.forget()
        try:
            self._get_to_know(consumer)
            consumer.subscribe(
                [self._subscription.stream], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
            )
            while not self.closing and not self._broken:
                room = self._room(consumer)
                if room > 0:
                    self._pull(consumer, room)
                elif room == 0 and (record := consumer.poll(POLL)) is not None:
                    self._hand([record])  # of what is paused nothing should come, and nothing may be passed over
                self.commits.tend(consumer)
                if time.monotonic() > self._next_look:
                    self._next_look = time.monotonic() + LOOK_FOR_TWINS
                    self._look_for_twins(consumer)
            if self.closing:
                # Before the end, which no rebalance can reach any more: what is done is done, and the rest goes back.
                self.commits.now(consumer, list(self.tracks.values()), final=True, between=lambda: consumer.poll(POLL))
            if self._broken:
                self.trouble = self._broken
                log.error("%s, and is made anew", self._broken)
        finally:
            self._leave(consumer)
            consumer.close()
            self._forget()

    def _leave(self, consumer: Consumer) -> None:
        """Have all partitions taken away before the consumer is closed.

        Where they move while it closes, the library may wait for a part of itself that has ended already (librdkafka
        4884), for ever and with the interpreter's lock: the whole process stands still.
        """
        ends = time.monotonic() + LEAVE_WITHIN
        try:
            consumer.unsubscribe()
            consumer.poll(0)
            while (self.tracks or consumer.assignment()) and time.monotonic() < ends:
                consumer.poll(POLL)
        except (KafkaException, RuntimeError) as error:
            log.debug("%s: not left: %s", self._subscription.position, error)

    def _get_to_know(self, consumer: Consumer) -> None:
        """Of a topic that it was not subscribed to the library learns the leaders a second late, unless it asked."""
        try:
            consumer.list_topics(self._retry, timeout=ASKED)
        except KafkaException as error:
            log.debug("%s: %s", self._subscription.position, reason(error))

    def _room(self, consumer: Consumer) -> int:
        """How many records may come; 0 where all is paused; less where nothing is asked for a moment."""
        room = self._has_room()
        if room > 0 and not self.stopping:
            if self._paused:
                self._paused = False
                consumer.resume(consumer.assignment())
            elif room < min(MOST, self._most // 2):  # there is enough to do, and each batch costs a hop
                time.sleep(GATHER)
                room = self._has_room() or -1
            return room
        if self._paused:
            return 0
        if not self.stopping:
            self.wake.clear()
            self.waits = True
            waited = self._has_room() > 0 or self.wake.wait(UNPOLLED)
            self.waits = False
            if waited:
                return -1
        self._paused = True
        consumer.pause(consumer.assignment())
        return 0

    def _has_room(self) -> int:
        if self._taken_bytes - self._owner.released_bytes >= self._most_bytes:
            return 0
        return min(MOST, self._most - (self._taken - self._owner.released))

    def _pull(self, consumer: Consumer, room: int) -> None:
        # Whoever comes back from the library waits for the loop's turn to end: so under load it is asked once.
        if records := consumer.consume(room, 0):
            self._hand(records)
        elif (record := consumer.poll(POLL)) is not None:  # one without bytes counts as false
            self._hand([record])

    def _hand(self, records: Sequence[Record]) -> None:
        """Let the event loop have them, in one hop."""
        batch = self.arrivals.batch(records, self.tracks)
        if batch.deliveries:
            self._taken += len(batch.deliveries)
            self._taken_bytes += batch.size
            self._soon(self._owner.take, batch)

    def _anew(self, old: Track, offset: int) -> Track:
        """A log that goes back was made anew, or has lost its end: what comes now was never taken."""
        log.error(
            "%s: partition %d of %s goes on at %d, and had come to %d: the topic was made anew, or has lost its end."
            " What comes is handled; of what this process had of it before nothing is acknowledged",
            self._subscription.position,
            old.number,
            old.topic,
            offset,
            old.progress.seen,
        )
        old.gone = True
        self._soon(self._owner.lost, [old])
        new = Track(self._owner, old.topic, old.number, old.route, Progress(offset, None, self._who))
        self.tracks[old.topic, old.number] = new
        return new

    def _tell(self, trouble: str = "") -> None:
        self.trouble = trouble

    def _note(self, error: KafkaError) -> None:
        """What came in a record's place."""
        if error.fatal() or error.code() in (KafkaError._MAX_POLL_EXCEEDED, KafkaError._FATAL):
            self._broken = f"the consumer of {self._subscription.position} cannot go on: {error.str()}"
        elif error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            self.trouble = (
                f"the topic {self._subscription.stream} of {self._subscription.position} is gone ({error.str()}):"
                " restart the service to make it anew"
            )
        elif not self.commits.denied(error):
            log.debug("%s: %s", self._subscription.position, error.str())

    def _soon(self, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            self.closing = True  # the loop has ended without a close

    # ── partitions come and go, on this thread, inside of a poll ────────────────────────────────────────────────────

    def _assigned(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        try:
            numbers = [place.partition for place in places]
            asked = [TopicPartition(topic, number) for number in numbers for topic in self._topics(number)]
            begins = self._begins(consumer, asked)
            if begins is None:
                if not self.closing:
                    self._broken = f"the consumer of {self._subscription.position} does not learn how far it is"
                consumer.incremental_assign(places)
                consumer.pause(places)
                return
            new = self._take_up(consumer, begins)
            self._tell()
            if new:
                self._soon(self.joined.set)
        except Exception as error:
            log.exception("%s: new partitions could not be taken", self._subscription.position)
            self._broken = f"the consumer of {self._subscription.position} cannot take partitions: {reason(error)}"

    def _take_up(self, consumer: Consumer, begins: Sequence[TopicPartition]) -> list[Track]:
        """Take from these, each from where its predecessor was."""
        new = []
        for place in begins:
            route = Route.EVENT if place.topic == self._subscription.stream else Route.RETRY
            start = place.offset if place.offset >= 0 else 0
            progress = Progress(start, place.metadata, self._who)
            track = Track(self._owner, place.topic, place.partition, route, progress)
            self.tracks[place.topic, place.partition] = track
            new.append(track)
        if new:
            self._soon(self._owner.began)
        # What is gone from the beginning of a partition is found out by asking for it, without another question.
        starts = [TopicPartition(one.topic, one.partition, max(one.offset, 0)) for one in begins]
        consumer.incremental_assign(starts)
        if starts:  # the library remembers what was paused when it went, and leaves it so when it comes back
            (consumer.pause if self._paused else consumer.resume)(starts)
        self.commits.now(consumer, new, final=False)
        return new

    def _look_for_twins(self, consumer: Consumer) -> None:
        """A twin may be younger than its partition, or not have been known when that came."""
        stream = self._subscription.stream
        alone = [one for topic, one in list(self.tracks) if topic == stream and (self._retry, one) not in self.tracks]
        if not alone or self.stopping:
            return
        try:
            found = consumer.list_topics(self._retry, timeout=ASKED).topics.get(self._retry)
        except KafkaException as error:
            log.debug("%s: %s", self._subscription.position, reason(error))
            return
        asked = [TopicPartition(self._retry, number) for number in alone if found and number in found.partitions]
        if asked and (begins := self._begins(consumer, asked)) is not None:
            self._take_up(consumer, begins)

    def _topics(self, number: int) -> list[str]:
        """The stream's, and the retry route's where it has such a partition."""
        topics = [self._subscription.stream]
        return [*topics, self._retry] if number < self._link.partitions.get(self._retry, 0) else topics

    def _begins(self, consumer: Consumer, asked: list[TopicPartition]) -> list[TopicPartition] | None:
        """How far the predecessor of each was; None where nobody says."""
        if not asked:
            return []
        ends = time.monotonic() + BEGIN_WITHIN
        while time.monotonic() < ends and not self.closing:
            try:
                found = consumer.committed(asked, timeout=ASKED)
                if not any(one.error for one in found):
                    return found
            except KafkaException as error:
                log.debug("%s: %s", self._subscription.position, reason(error))
            time.sleep(POLL)
        return None

    def _revoked(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        tracks = self._leaving(places)
        try:
            if tracks:
                self._let_go(tracks)
        except Exception as error:
            log.warning(
                "%s: %d partitions go to another process while events of them run: %s",
                self._subscription.position,
                len(tracks),
                str(error) or type(error).__name__,
            )
        for track in tracks:
            track.gone = True
        try:
            self.commits.now(consumer, tracks, final=True)
        except Exception:
            log.exception("%s: what was done could not be committed", self._subscription.position)
        self._unassign(consumer, places)

    def _let_go(self, tracks: list[Track]) -> None:
        letting_go = self._owner.let_go(tracks)
        try:
            going = asyncio.run_coroutine_threadsafe(letting_go, self._loop)
        except RuntimeError:  # the loop has ended, and nobody has closed the feed
            letting_go.close()
            raise
        going.result(self._patience + ASKED)

    def _lost(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        """The group has gone on without this process: nothing may be said of them any more."""
        tracks = self._leaving(places)
        for track in tracks:
            track.gone = True
        if tracks:
            log.warning("%s: %d partitions were taken away", self._subscription.position, len(tracks))
            self._soon(self._owner.lost, tracks)
        self._unassign(consumer, places)

    def _leaving(self, places: Sequence[TopicPartition]) -> list[Track]:
        numbers = {place.partition for place in places}
        return [track for (_, number), track in self.tracks.items() if number in numbers]

    def _unassign(self, consumer: Consumer, places: Sequence[TopicPartition]) -> None:
        numbers = {place.partition for place in places}
        ours = {key: track for key, track in self.tracks.items() if key[1] in numbers}
        for key in ours:
            del self.tracks[key]
        known = {(place.topic, place.partition) for place in places} | set(ours)
        try:
            consumer.incremental_unassign([TopicPartition(*one) for one in known])
        except KafkaException as error:
            log.debug("%s: %s", self._subscription.position, reason(error))
            self._broken = self._broken or f"the consumer of {self._subscription.position}: {reason(error)}"

    def _forget(self) -> None:
        """Nothing is ours any more."""
        tracks = list(self.tracks.values())
        self.tracks.clear()
        for track in tracks:
            track.gone = True
        if tracks:
            self._soon(self._owner.lost, tracks)
