"""What a position tells its group: how far it is, and with each answer that this process still belongs to it.

The coordinator takes a commit as a sign of life, and expels nobody before the session's time has passed since the last.
So each commit that was answered makes the partitions certainly ours for that time, counted from the question. (Of the
classic protocol; with ``group.protocol=consumer`` only the members' own signs count, and the certainty is a guess.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from tidings.brokers.kafka.clients import code_of, reason
from tidings.brokers.kafka.link import ASKED, DENIED
from tidings.brokers.kafka.progress import MOST_TEXT
from tidings.brokers.kafka.tracks import Track

log = logging.getLogger("tidings.kafka")

COMMIT_EVERY: Final = 0.5
"""Seconds between two commits of what was settled."""
SIGN_EVERY: Final = 1.0
"""Seconds between two commits of an ordered position where nothing was settled."""
PATIENCE: Final = 3.0
"""Seconds that the last word about a partition may take."""
AGAIN: Final = 0.05
LATE: Final = 0.5
"""Seconds in which the library has tried again what was refused for the moment: twice, after 0.1 and 0.2 seconds."""
_PASSING: Final = frozenset(
    {
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._WAIT_COORD,
    }
)
"""What is said while the group is between two generations, or its coordinator moves. The library gives up soon."""
SURE: Final = 0.8
"""The part of the session's time for which partitions count as ours without a new answer."""
LEAST_TEXT: Final = 60
"""Below this nothing is said beside an offset."""


class Commits:
    """Called on the thread of the position alone, but for `sure_until`."""

    def __init__(
        self,
        position: str,
        tracks: Mapping[tuple[str, int], Track],
        *,
        signs: bool,
        session: float,
        tell: Callable[[str], None],
    ) -> None:
        self._position = position
        self._tracks = tracks
        self._signs = signs
        self._lease = SURE * session
        self._tell = tell
        self.sure_until = 0.0
        """Until when (monotonic) the group's coordinator lets nobody else have what is ours."""
        self._next = 0.0
        self._asked = 0.0
        self._waits = 0
        """How many commits are on their way. The library tries them again by itself, so that they may come late."""
        self._room = MOST_TEXT
        self._denied = 0.0
        """When (monotonic) it was heard last that the user may not read any more; 0 while there is no word of it."""
        self._told = ""

    def forget(self) -> None:
        """The consumer is another one: no answer will come."""
        self._waits = 0

    def tend(self, consumer: Consumer) -> None:
        """Say how far each partition is, not too often."""
        now = time.monotonic()
        if self._waits and now - self._asked < 2 * ASKED:
            return
        if now < self._next and not any(track.progress.hurries for track in self._tracks.values()):
            return
        self._next = now + COMMIT_EVERY
        places = self._changed(list(self._tracks.values()))
        if not places and (self._signs or self._denied) and now > self.sure_until - self._lease + SIGN_EVERY:
            said = [track for track in self._tracks.values() if track.text[0] >= 0]
            places = [_place(track) for track in said[:1]]
        if places:
            self._asked = now
            self._waits += 1
            try:
                consumer.commit(offsets=places, asynchronous=True)
            except KafkaException as error:
                self.heard(error.args[0], places)

    def now(
        self,
        consumer: Consumer,
        tracks: Sequence[Track],
        *,
        final: bool,
        between: Callable[[], object] | None = None,
    ) -> None:
        """Say how far they are, and wait for the answer. Without one they begin where they were: nothing is lost.

        While the coordinator cannot take it, `between` is called, and it is said again. The last word has to be the
        last that is heard: what is on its way could come after it and set the position back. So the answer to that is
        waited for; where none comes, as inside of a poll, the last word is said once more after a while.
        """
        pause = between or partial(time.sleep, AGAIN)
        if final and between is not None:
            self._hear(between)
        doubtful = final and self._waits > 0
        for track in tracks if doubtful else ():
            track.text = (-1, "")  # what was said of it last may come late, or never
        changed = [track for track in tracks if self._say(track, final=final)]
        why = self._insist(consumer, changed, pause, final=final)
        if doubtful and not why:
            self._hear(pause)
            why = self._insist(consumer, changed, pause, final=final)
        if why and final and between is None:  # who stops says it again when its partitions go
            log.warning("%s: what was done last is not known to its group, and may come again: %s", self._position, why)

    def _insist(self, consumer: Consumer, tracks: Sequence[Track], pause: Callable[[], object], *, final: bool) -> str:
        """Say how far these are until it is taken; say why that was not to be had."""
        ends = time.monotonic() + (PATIENCE if final else 0.0)
        while ours := [track for track in tracks if self._is_ours(track)]:
            asked = time.monotonic()
            for track in ours:
                self._say(track, final=final)
            try:
                consumer.commit(offsets=[_place(track) for track in ours], asynchronous=False)
            except KafkaException as error:
                log.debug("%s: not committed: %s", self._position, reason(error))
                for track in ours:
                    track.text = (-1, "")
                if self._shortened(error):
                    continue
                if code_of(error) not in _PASSING or time.monotonic() > ends:
                    return reason(error)
                pause()  # a partition may go meanwhile: then it has its last word there
            else:
                self.sure_until = max(self.sure_until, asked + self._lease)
                return ""
        return ""

    def _hear(self, pause: Callable[[], object]) -> None:
        """Wait a while for the answer to what is on its way."""
        ends = time.monotonic() + LATE
        while self._waits and time.monotonic() < ends:
            pause()

    def _is_ours(self, track: Track) -> bool:
        """Whether it was not taken away, and maybe given to another process, in the meantime."""
        return self._tracks.get((track.topic, track.number)) is track

    def heard(self, error: KafkaError | None, places: list[TopicPartition]) -> None:
        """The coordinator has answered what did not wait for it."""
        self._waits = max(0, self._waits - 1)
        error = error or next((one.error for one in places if one.error), None)
        if error is None:
            self.sure_until = max(self.sure_until, self._asked + self._lease)
            if self._asked > self._denied:  # and not an answer to what was asked while all was well
                self._denied, self._told = 0.0, ""
                self._tell("")
            return
        self._shortened(error)
        for place in places:
            if (track := self._tracks.get((place.topic, place.partition))) is not None:
                track.text = (-1, "")  # to be said again
        if not self.denied(error):
            log.debug("%s: not committed: %s", self._position, error.str())

    def denied(self, error: KafkaError) -> bool:
        """Whether an error says that a right was taken away, which is told until something is committed again.

        The library says it of a partition once, and nothing more comes of it.
        """
        if error.code() not in DENIED:
            return False
        self._denied = time.monotonic()
        if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            what = f"group {self._position}"
        else:
            what = "topics " + (", ".join(sorted({topic for topic, _ in self._tracks})) or f"of {self._position}")
        told = f"the user may not read the {what} any more: grant Read on them with kafka-acls.sh"
        if told != self._told:
            log.error("%s: %s", self._position, told)
        self._told = told
        self._tell(told)
        return True

    def _changed(self, tracks: Sequence[Track], *, final: bool = False) -> list[TopicPartition]:
        return [_place(track) for track in tracks if self._say(track, final=final)]

    def _say(self, track: Track, *, final: bool) -> bool:
        """Whether there is something new to say of a partition."""
        said, track.text = track.text, track.progress.snapshot(final=final, room=self._room)
        return said != track.text

    def _shortened(self, error: KafkaException | KafkaError) -> bool:
        """Whether the brokers keep less beside an offset than was said, so that it is said shorter from now on."""
        if code_of(error) != KafkaError.OFFSET_METADATA_TOO_LARGE or not self._room:
            return False
        if self._room == MOST_TEXT:
            log.warning(
                "%s: the brokers keep less beside an offset than is to be remembered there. Of what is done behind an"
                " event that is not, part may come again after a restart, and is known then; set"
                " offset.metadata.max.bytes=4096 on the brokers",
                self._position,
            )
        self._room = self._room // 2 if self._room >= 2 * LEAST_TEXT else 0
        return True


def _place(track: Track) -> TopicPartition:
    offset, text = track.text
    return TopicPartition(track.topic, track.number, offset, text)
