"""Records that came, as deliveries of one position: each is looked at once, and as little as possible.

This is the part of the way that its thread goes for every record. Neighbours mostly are events of one partition with
the same headers, and nothing else is to be said of any of them: so they are taken together, which costs less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby, repeat
from operator import ge
from typing import Final, TypeAlias

from confluent_kafka import KafkaError
from confluent_kafka import Message as Record

from tidings.brokers.kafka.records import Pairs, due_of, headers_in, headers_of, stream_of, type_of
from tidings.brokers.kafka.tracks import Batch, Track
from tidings.delivery import Delivery, Route
from tidings.partition import slot_of
from tidings.ports import Subscription

Tracks: TypeAlias = Mapping[tuple[str, int], Track]

_EVENT: Final = Route.EVENT  # members of an enum take ten times as long to be found as names of a module


class Arrivals:
    """Of one position; `anew` is told of a track whose log has gone back, and gives the one that takes its place."""

    def __init__(
        self,
        subscription: Subscription,
        *,
        note: Callable[[KafkaError], None],
        anew: Callable[[Track, int], Track],
    ) -> None:
        self._types = frozenset(one.encode() for one in subscription.types)
        self._strangers = subscription.strangers
        self._sifted: tuple[Collection[bytes], float] = ((), float("-inf"))
        self._slots = subscription.ordered and subscription.slots
        self._note, self._anew = note, anew
        self._pairs: Pairs = ()
        self._headers: Mapping[str, str] | None = None
        """Of an event with `_pairs`, which is for this position; None while there is none."""

    def sift(self, theirs: Collection[str], until: float) -> None:
        """See `rolling.Sifts`; called in the event loop."""
        self._sifted = (frozenset(one.encode() for one in theirs), until)

    def batch(self, records: Sequence[Record], tracks: Tracks) -> Batch:
        """Those that are for this position; the others are passed over, without a look at their body."""
        batch = Batch([], 0, {}, {})
        now = time.time()
        for _, same in groupby(records, Record.partition):
            run = list(same)
            if not self._take_together(run, tracks, batch, now):
                for record in run:
                    self._take(record, tracks, batch, now)
        return batch

    def _take_together(self, run: Sequence[Record], tracks: Tracks, batch: Batch, now: float) -> bool:
        """Take events of one partition that have the same headers and never came before; no others, and then False."""
        topic, number = run[0].topic() or "", run[0].partition() or 0
        track = tracks.get((topic, number))
        if track is None or track.route is not _EVENT or any([record.error() is not None for record in run]):
            return False
        pairs = headers_in(run[0])
        if not (_all(run, Record.topic, topic) and _all(run, headers_in, pairs)):
            return False
        offsets = [record.offset() or 0 for record in run]
        progress = track.progress
        if offsets[0] < max(progress.seen, progress.known, progress.bound) or any(map(ge, offsets, offsets[1:])):
            return False
        headers = self._headers_of(pairs or ())
        if headers is not None:
            keys = map(Record.key, run) if self._slots else repeat(None)
            deliveries = [
                Delivery(
                    record.value() or b"",
                    topic,
                    (topic, number, offset),
                    track,
                    headers,
                    None if key is None else slot_of(key.decode("utf-8", "replace")),
                    1,
                    _EVENT,
                    0,
                    record.timestamp()[1] / 1000,
                    now,
                )
                for record, offset, key in zip(run, offsets, keys, strict=False)
            ]
            progress.open.update(zip(offsets, deliveries, strict=True))
            batch.deliveries += deliveries
            batch.size += sum([len(delivery.body) for delivery in deliveries])
        progress.seen = batch.ends[track] = offsets[-1] + 1
        return True

    def _take(self, record: Record, tracks: Tracks, batch: Batch, now: float) -> None:
        """Take whatever came."""
        if (error := record.error()) is not None:
            return self._note(error)
        topic, number, offset = record.topic() or "", record.partition() or 0, record.offset() or 0
        track = tracks.get((topic, number))
        if track is None:
            return None
        if offset < track.progress.seen:
            batch.ends[track] = track.progress.seen
            track = self._anew(track, offset)
        progress, is_event = track.progress, track.route is _EVENT
        pairs = headers_in(record) or ()
        headers = self._headers_of(pairs) if is_event else headers_of(pairs)
        batch.ends[track] = offset + 1
        if headers is None or progress.is_done(offset):
            return progress.skip(offset)
        key = record.key() if self._slots else None
        delivery = Delivery(
            record.value() or b"",
            topic if is_event else stream_of(pairs, topic),
            (topic, number, offset),
            track,
            headers,
            None if key is None else slot_of(key.decode("utf-8", "replace")),
            1 + progress.delivered(offset),
            track.route,
            0,
            record.timestamp()[1] / 1000,
            now,
        )
        progress.take(offset, delivery)
        batch.deliveries.append(delivery)
        batch.size += len(delivery.body)
        if not is_event and (moment := due_of(pairs)):
            batch.due[delivery] = moment

    def _headers_of(self, pairs: Pairs) -> Mapping[str, str] | None:
        """The headers of an event; None where its type is nobody's here. One that says none is the handler's."""
        if self._headers is not None and pairs == self._pairs:
            return self._headers
        kind = type_of(pairs)
        if kind is not None and kind not in self._types:
            return headers_of(pairs) if self._strangers and self._may_be_theirs(kind) else None
        self._pairs, self._headers = pairs, headers_of(pairs)
        return self._headers

    def _may_be_theirs(self, kind: bytes) -> bool:
        """Whether somebody has to look at an event of a type that was not asked for."""
        theirs, until = self._sifted
        return time.monotonic() > until or kind in theirs


def _all(run: Sequence[Record], look: Callable[[Record], object], seen: object) -> bool:
    """Whether this is what is seen of each."""
    return list(map(look, run)).count(seen) == len(run)
