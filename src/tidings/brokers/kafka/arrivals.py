"""Records that came, as deliveries of one position: each is looked at as little as possible.

This is the part of the way that its thread goes for every record. Many neighbours mostly are events of one partition
with the same headers, and nothing else is to be said of any of them: so they are taken together. All others are taken
each by itself, which is written out rather than called; what was found out about one is kept for the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby, repeat
from operator import ge
from types import MappingProxyType
from typing import Final, TypeAlias

from confluent_kafka import KafkaError
from confluent_kafka import Message as Record

from tidings.brokers.kafka.records import Pairs, due_of, headers_in, headers_of, stream_of, type_of
from tidings.brokers.kafka.tracks import Batch, Track
from tidings.delivery import Delivery, Route
from tidings.partition import slot_of
from tidings.ports import Subscription

Tracks: TypeAlias = Mapping[tuple[str, int], Track]

MANY: Final = 64
"""So many neighbours of one partition, on the average, may be taken together: to find out costs something too."""
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
        self._common: Mapping[str, str] | None = None
        """The same, once it was met for the second time: then most likely there are many, and they share it."""

    def sift(self, theirs: Collection[str], until: float) -> None:
        """See `rolling.Sifts`; called in the event loop."""
        self._sifted = (frozenset(one.encode() for one in theirs), until)

    def batch(self, records: Sequence[Record], tracks: Tracks) -> Batch:
        """Those that are for this position; the others are passed over, without a look at their body."""
        batch = Batch([], 0, {}, {})
        now = time.time()
        runs = [list(same) for _, same in groupby(records, Record.partition)]
        if MANY * len(runs) > len(records):
            self._take_each(records, tracks, batch, now)
            return batch
        for run in runs:
            if not self._take_together(run, tracks, batch, now):
                self._take_each(run, tracks, batch, now)
        return batch

    def _take_together(self, run: Sequence[Record], tracks: Tracks, batch: Batch, now: float) -> bool:
        """Take events of one partition that have the same headers and never came before; no others, and then False."""
        topic, number = run[0].topic() or "", run[0].partition() or 0
        track = tracks.get((topic, number))
        if track is None or track.route is not _EVENT or any([record.error() is not None for record in run]):
            return False
        pairs = headers_in(run[0])
        if headers_in(run[len(run) // 2]) != pairs or not _all(run, headers_in, pairs):
            return False
        offsets = [record.offset() or 0 for record in run]
        progress = track.progress
        first = max(progress.seen, progress.known, progress.bound)
        if offsets[0] < first or any(map(ge, offsets, offsets[1:])):
            return False
        if not _all(run, Record.topic, topic):
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

    def _take_each(self, records: Sequence[Record], tracks: Tracks, batch: Batch, now: float) -> None:
        """Take whatever came."""
        deliveries, ends, due = batch.deliveries, batch.ends, batch.due
        size, slots, slot = 0, self._slots, None
        topic, number, event, is_event = "", -1, _EVENT, False
        track: Track | None = None
        for record in records:
            if (error := record.error()) is not None:
                self._note(error)
                continue
            if record.partition() != number or record.topic() != topic:
                if track is not None:
                    ends[track] = track.progress.seen
                topic, number = record.topic() or "", record.partition() or 0
                track = tracks.get((topic, number))
                is_event = track is not None and track.route is event
            if track is None:
                continue
            offset, progress = record.offset() or 0, track.progress
            if offset < progress.seen:
                ends[track] = progress.seen
                track = self._anew(track, offset)
                progress = track.progress
            pairs = headers_in(record) or ()
            if not is_event:
                headers: Mapping[str, str] | None = headers_of(pairs)
            elif pairs == self._pairs and self._common is not None:
                headers = self._common
            else:
                headers = self._headers_of(pairs)
            if headers is None or (offset < progress.known and progress.is_done(offset)):
                progress.skip(offset)
                continue
            body = record.value() or b""
            size += len(body)
            if slots:
                slot = None if (key := record.key()) is None else slot_of(key.decode("utf-8", "replace"))
            delivery = Delivery(
                body,
                topic if is_event else stream_of(pairs, topic),
                (topic, number, offset),
                track,
                headers,
                slot,
                1 + progress.delivered(offset) if offset < progress.bound else 1,
                track.route,
                0,
                record.timestamp()[1] / 1000,
                now,
            )
            progress.open[offset] = delivery
            progress.seen = offset + 1
            deliveries.append(delivery)
            if not is_event and (moment := due_of(pairs)):
                due[delivery] = moment
        if track is not None:
            ends[track] = track.progress.seen
        batch.size += size

    def _headers_of(self, pairs: Pairs) -> Mapping[str, str] | None:
        """The headers of an event; None where its type is nobody's here. One that says none is the handler's."""
        if self._headers is not None and pairs == self._pairs:
            self._common = MappingProxyType(dict(self._headers))
            return self._common
        kind = type_of(pairs)
        if kind is not None and kind not in self._types:
            return headers_of(pairs) if self._strangers and self._may_be_theirs(kind) else None
        self._pairs, self._headers, self._common = pairs, headers_of(pairs), None
        return self._headers

    def _may_be_theirs(self, kind: bytes) -> bool:
        """Whether somebody has to look at an event of a type that was not asked for."""
        theirs, until = self._sifted
        return time.monotonic() > until or kind in theirs


def _all(run: Sequence[Record], look: Callable[[Record], object], seen: object) -> bool:
    """Whether this is what is seen of each."""
    return list(map(look, run)).count(seen) == len(run)
