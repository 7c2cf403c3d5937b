"""Records that come in one batch are what they are when each comes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pytest
from confluent_kafka import KafkaError
from confluent_kafka import Message as Record
from hypothesis import given
from hypothesis import strategies as st

from tidings.brokers.kafka import arrivals
from tidings.brokers.kafka.arrivals import Arrivals
from tidings.brokers.kafka.progress import Progress
from tidings.brokers.kafka.records import headers_in
from tidings.brokers.kafka.tracks import Track
from tidings.delivery import Delivery, Route
from tidings.ports import Subscription

STREAM: Final = "order"
RETRY: Final = "tidings.retry.stock.reserve"
HEADERS: Final[Sequence[list[tuple[str, str | bytes | None]]]] = (
    [("tidings.type", b"order.placed")],
    [("tidings.type", b"order.placed"), ("traceparent", b"00-1")],
    [("tidings.type", b"order.closed")],
    [("tidings.type", b"order.placed"), ("tidings.stream", b"order"), ("tidings.due", b"17.5")],
    [],
)


def record(offset: int, headers: int = 0, topic: str = STREAM, partition: int = 0, key: bytes | None = b"k") -> Record:
    given = HEADERS[headers] or None
    return Record(topic=topic, partition=partition, offset=offset, key=key, value=b"%d" % offset, headers=given)


class Taken:
    """What was made of records, and what was noted of them."""

    def __init__(self, **options: Any) -> None:
        subscription = Subscription(
            position="stock.reserve", stream=STREAM, types=("order.placed",), ordered=True, **options
        )
        self.errors: list[int] = []
        self.arrivals = Arrivals(subscription, note=lambda error: self.errors.append(error.code()), anew=self._anew)
        places = [(STREAM, 0), (STREAM, 1), (RETRY, 0)]
        self.tracks = {(topic, number): self._track(topic, number, self._before()) for topic, number in places}
        self.gone: list[tuple[str, int, int]] = []

    def _before(self) -> Progress:
        """A process before this one had taken up to the fourth, and done the second."""
        before = Progress(0, None, "another")
        for offset in range(4):
            before.take(offset)
            before.handed = offset + 1
        before.done(1)
        return Progress(*before.snapshot(final=True), "us")

    def _track(self, topic: str, number: int, progress: Progress) -> Track:
        return Track(None, topic, number, Route.EVENT if topic == STREAM else Route.RETRY, progress)

    def _anew(self, track: Track, offset: int) -> Track:
        self.gone.append((track.topic, track.number, offset))
        new = self.tracks[track.topic, track.number] = self._track(
            track.topic, track.number, Progress(offset, None, "us")
        )
        return new

    def all_of(self, batches: Sequence[Sequence[Record]]) -> list[Any]:
        """Whatever can be seen afterwards."""
        came: list[tuple[Delivery, float | None]] = []
        size, ends = 0, dict[Track, int]()
        for records in batches:
            batch = self.arrivals.batch(records, self.tracks)
            came += [(one, batch.due.get(one)) for one in batch.deliveries]
            size += batch.size
            ends |= batch.ends
        found: list[Any] = [size, sorted((track.topic, track.number, end) for track, end in ends.items())]
        for one, due in came:
            what = one.body, one.stream, one.origin, dict(one.headers), one.slot, one.delivered, one.route
            track = next((each for each in self.tracks.values() if each is one.token), None)
            found.append((what, one.stored, track is not None and (track.topic, track.number), due))
        for place, track in self.tracks.items():
            still = {offset: one is not None and one.origin for offset, one in track.progress.open.items()}
            found.append((place, track.progress.seen, still, track.progress.mark))
        return [*found, self.errors, self.gone]


RUNS: Final = st.builds(
    lambda topic, partition, headers, offsets: [record(at, headers, topic, partition) for at in offsets],
    st.sampled_from([STREAM, STREAM, STREAM, RETRY, "unknown"]),
    st.sampled_from([0, 0, 0, 1, 2]),
    st.sampled_from([0, 0, 0, 1, 2, 3, 4]),
    st.one_of(
        st.integers(0, 12).map(lambda first: list(range(first, first + 5))), st.lists(st.integers(0, 12), max_size=4)
    ),
)
BATCHES: Final = st.lists(
    st.lists(RUNS, min_size=1, max_size=5).map(lambda runs: [one for run in runs for one in run]), max_size=3
)


@given(BATCHES, st.booleans(), st.booleans(), st.sampled_from([1, 2, 3]))
def test_P13_what_comes_in_one_batch_is_what_comes_one_by_one(
    batches: list[list[Record]], slots: bool, strangers: bool, many: int
) -> None:
    together, alone = Taken(slots=slots, strangers=strangers), Taken(slots=slots, strangers=strangers)
    one_by_one = [[one] for records in batches for one in records]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrivals, "MANY", many)
        found = together.all_of(batches)
        patch.setattr(arrivals, "MANY", 1 << 30)
        assert found == alone.all_of(one_by_one)


@pytest.mark.parametrize("headers", [0, 1, 4])
def test_events_that_never_came_before_are_taken_together(headers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object) -> None:
        raise AssertionError("taken each")

    monkeypatch.setattr(Arrivals, "_take_each", refused)
    taken = Taken()
    numbers = [*range(4, 74), *range(80, 150)]
    nobodys = [record(number, 2, partition=1) for number in numbers]
    batch = taken.arrivals.batch([*(record(number, headers) for number in numbers), *nobodys], taken.tracks)
    assert [one.origin for one in batch.deliveries] == [(STREAM, 0, number) for number in numbers]
    assert taken.tracks[STREAM, 1].progress.seen == 150, "what is for nobody here is passed over together"


def test_where_partitions_take_turns_nothing_is_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Record] = []

    def counted(record: Record) -> Any:
        looked.append(record)
        return headers_in(record)

    monkeypatch.setattr(arrivals, "headers_in", counted)
    taken = Taken()
    came = [record(number, partition=partition) for number in range(4, 40) for partition in (0, 1)]
    assert len(taken.arrivals.batch(came, taken.tracks).deliveries) == len(looked) == len(came)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few are many."""
    monkeypatch.setattr(arrivals, "MANY", 1)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("headers", [0, 3])
def test_the_copies_of_a_partition_come_between_its_events_and_are_copies(headers: int) -> None:
    taken = Taken()
    came = [record(4), record(5, headers, RETRY), record(6), record(7, headers, RETRY)]
    batch = taken.arrivals.batch(came, taken.tracks)
    assert [one.route for one in batch.deliveries] == [Route.EVENT, Route.RETRY, Route.EVENT, Route.RETRY]
    assert len(batch.due) == (2 if headers == 3 else 0)


@pytest.mark.usefixtures("few")
def test_headers_that_one_among_neighbours_has_are_its_own() -> None:
    taken = Taken()
    batch = taken.arrivals.batch([record(4), record(5, 1), record(6), record(7)], taken.tracks)
    assert [len(one.headers) for one in batch.deliveries] == [0, 1, 0, 0]


@pytest.mark.usefixtures("few")
def test_an_error_that_comes_between_events_is_noted_and_is_none() -> None:
    taken = Taken()
    broken = Record(topic=STREAM, partition=0, offset=5, error=KafkaError(KafkaError._TRANSPORT))
    batch = taken.arrivals.batch([record(4, 4), broken, record(6, 4)], taken.tracks)
    assert [one.origin[2] for one in batch.deliveries] == [4, 6]
    assert taken.errors == [KafkaError._TRANSPORT]
