"""Records that came, as deliveries of one position: each is looked at once, and as little as possible.

This is the part of the way that its thread goes for every record, so it is written out rather than called. Neighbours
mostly are of one partition and have the same headers: what was found out about one is kept for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from confluent_kafka import KafkaError
from confluent_kafka import Message as Record

from tidings.brokers.kafka.records import Pairs, RecordHeaders, due_of, headers_of, pairs_of, stream_of, type_of
from tidings.brokers.kafka.tracks import Batch, Token, Track
from tidings.delivery import Delivery, Route
from tidings.partition import slot_of
from tidings.ports import Subscription


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
        self._slots = subscription.ordered and subscription.slots
        self._note, self._anew = note, anew
        self._pairs: Pairs = ()
        self._headers: Mapping[str, str] | None = None
        """Of an event with `_pairs`, which is for this position; None while there is none."""

    def batch(self, records: Sequence[Record], tracks: Mapping[tuple[str, int], Track]) -> Batch:
        """Those that are for this position; the others are passed over, without a look at their body."""
        batch: Batch = []
        place: tuple[str | None, int | None] | None = None
        topic, number, event = "", 0, Route.EVENT
        track: Track | None = None
        for record in records:
            if (error := record.error()) is not None:
                self._note(error)
                continue
            if (here := (record.topic(), record.partition())) != place:
                place = here
                topic, number = here[0] or "", here[1] or 0
                track = tracks.get((topic, number))
            if track is None:
                continue
            offset = record.offset() or 0
            if offset < track.progress.seen:
                track = self._anew(track, offset)
            progress, is_event = track.progress, track.route is event
            pairs = pairs_of(record)
            headers = self._headers_of(pairs) if is_event else headers_of(pairs)
            if headers is None or (offset < progress.known and progress.is_done(offset)):
                progress.skip(offset)
                continue
            progress.take(offset)
            body = record.value() or b""
            token = Token(track, offset, len(body), 0.0 if is_event else due_of(pairs))
            delivery = Delivery(
                body, topic if is_event else stream_of(pairs, topic), (topic, number, offset), token, headers
            )
            delivery.route = track.route
            delivery.stored = record.timestamp()[1] / 1000
            if self._slots and (key := record.key()) is not None:
                delivery.slot = slot_of(key.decode("utf-8", "replace"))
            if offset < progress.bound:
                delivery.delivered = 1 + progress.delivered(offset)
            batch.append(delivery)
        return batch

    def _headers_of(self, pairs: Pairs) -> Mapping[str, str] | None:
        """The headers of an event; None where its type was not asked for. One that says none is the handler's."""
        if self._headers is not None and pairs == self._pairs:
            if isinstance(self._headers, RecordHeaders):  # for the second time: then most likely for many
                self._headers = MappingProxyType(dict(self._headers))
            return self._headers
        kind = type_of(pairs)
        if kind is not None and kind not in self._types:
            return None
        self._pairs, self._headers = pairs, headers_of(pairs)
        return self._headers
