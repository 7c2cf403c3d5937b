"""What is with a feed and what is not any more, without a cluster: its pump is made, and never started."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from tidings.brokers.kafka import left
from tidings.brokers.kafka.broker import KafkaBroker
from tidings.brokers.kafka.feed import KafkaFeed, OrderedFeed
from tidings.brokers.kafka.link import Link
from tidings.brokers.kafka.options import parse
from tidings.brokers.kafka.progress import Progress
from tidings.brokers.kafka.tracks import Batch, Track, track_of
from tidings.delivery import ACK, Delivery, Envelope, Release, Route
from tidings.errors import BrokerUnavailable, MisuseError
from tidings.ports import Subscription

SUBSCRIPTION = Subscription(
    position="stock.reserve", stream="order", types=("order.placed",), max_in_flight=4, max_in_flight_bytes=100
)


class Many:
    """A sink that takes lists, and notes them."""

    def __init__(self) -> None:
        self.calls: list[list[Delivery]] = []

    def __call__(self, delivery: Delivery) -> None:
        self.calls.append([delivery])

    def take(self, deliveries: Sequence[Delivery]) -> None:
        self.calls.append(list(deliveries))

    @property
    def offsets(self) -> list[list[str | int]]:
        return [[one.origin[2] for one in call] for call in self.calls]


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    link = Link(parse("kafka://127.0.0.1:1"), "tidings test")
    yield link
    await link.close()


@pytest.fixture
async def sink() -> Many:
    return Many()


@pytest.fixture
async def feed(link: Link, sink: Many) -> AsyncIterator[KafkaFeed]:
    feed = KafkaFeed(link, SUBSCRIPTION, sink)
    yield feed
    assert feed.pump._made is not None
    feed.pump._made.close()


def some(feed: KafkaFeed, *offsets: int, size: int = 10) -> list[Delivery]:
    """What comes of one partition."""
    key = ("order", 0)
    track = feed.pump.tracks.setdefault(key, Track(feed, "order", 0, Route.EVENT, Progress(0, None, "us")))
    came = [Delivery(b"x" * size, "order", (*key, one), track) for one in offsets]
    for offset, delivery in zip(offsets, came, strict=True):
        track.progress.take(offset, delivery)
    return came


def batch(came: list[Delivery]) -> Batch:
    """What came, as the pump hands it over."""
    ends = {track_of(one): track_of(one).progress.seen for one in came}
    return Batch(came, sum(len(one.body) for one in came), ends, {})


async def test_what_came_together_is_handed_over_in_one_call_and_the_rest_as_there_is_room(
    feed: KafkaFeed, sink: Many
) -> None:
    came = some(feed, *range(7))
    feed.take(batch(came))
    assert sink.offsets == [[0, 1, 2, 3]], "four may be in flight"
    assert feed.settle([(one, ACK) for one in came[:2]]) == [None, None]
    assert sink.offsets == [[0, 1, 2, 3], [4, 5]]
    assert feed.pump.tracks["order", 0].progress.mark == 2
    assert feed.released == 2, "the pump has room for two more"
    assert feed.released_bytes == 20


async def test_P11_bytes_are_a_limit_as_well_and_one_event_may_always_come(feed: KafkaFeed, sink: Many) -> None:
    feed.take(batch(some(feed, 0, size=1000)))
    feed.take(batch(some(feed, 1, size=60) + some(feed, 2, size=60)))
    assert sink.offsets == [[0]]
    (big,) = sink.calls[0]
    feed.settle([(big, ACK)])
    assert sink.offsets == [[0], [1]]


async def test_P2_a_delivery_is_settled_once(feed: KafkaFeed, sink: Many) -> None:
    (one,) = came = some(feed, 0)
    feed.take(batch(came))
    assert feed.settle([(one, ACK)]) == [None]
    (again,) = feed.settle([(one, ACK)])
    assert isinstance(again, MisuseError)
    assert feed.released == 1, "it has made room once"
    assert feed._given == 0


async def test_P3_what_went_with_its_partition_is_not_acknowledged(feed: KafkaFeed, sink: Many) -> None:
    came = some(feed, 0, 1)
    feed.take(batch(came))
    feed.pump.tracks["order", 0].gone = True
    for problem in feed.settle([(one, ACK) for one in came]):
        assert isinstance(problem, BrokerUnavailable)
    assert feed.pump.tracks["order", 0].progress.mark == 0


async def test_what_is_given_back_comes_again_before_what_waits(feed: KafkaFeed, sink: Many) -> None:
    came = some(feed, *range(6))
    feed.take(batch(came))
    feed.settle([(came[0], Release(0.0)), (came[1], ACK), (came[2], Release(0.0))])
    assert sink.offsets == [[0, 1, 2, 3], [0, 2, 4]]
    assert [one.delivered for one in sink.calls[1]] == [2, 2, 1]
    assert feed.released == 1


async def test_a_sink_that_takes_one_at_a_time_is_handed_one_at_a_time(link: Link) -> None:
    found: list[Delivery] = []
    feed = KafkaFeed(link, SUBSCRIPTION, found.append)
    feed.take(batch(some(feed, *range(3))))
    assert [one.origin[2] for one in found] == [0, 1, 2]
    assert feed.pump._made is not None
    feed.pump._made.close()


def other(feed: KafkaFeed, number: int, *offsets: int, route: Route = Route.EVENT) -> list[Delivery]:
    """What comes of another partition."""
    topic = "order" if route is Route.EVENT else "tidings.retry.stock.reserve"
    track = feed.pump.tracks.setdefault((topic, number), Track(feed, topic, number, route, Progress(0, None, "us")))
    came = [Delivery(b"x" * 10, "order", (topic, number, one), track) for one in offsets]
    for offset, delivery in zip(offsets, came, strict=True):
        track.progress.take(offset, delivery)
    return came


async def test_P3_who_gave_an_event_back_cannot_acknowledge_it_any_more(feed: KafkaFeed, sink: Many) -> None:
    (one,) = came = some(feed, 0)
    feed.take(batch(came))
    feed.settle([(one, Release(0.0))])
    (problem,) = feed.settle([(one, ACK)])
    assert isinstance(problem, MisuseError)
    assert feed.pump.tracks["order", 0].progress.mark == 0
    assert feed._given == 1, "it is with whoever it was handed to again"


async def test_P9_what_comes_after_a_stop_is_handed_to_nobody(feed: KafkaFeed, sink: Many) -> None:
    feed.take(batch(some(feed, *range(6))))
    await feed.stop()
    feed.take(batch(some(feed, 6, 7)))
    assert sink.offsets == [[0, 1, 2, 3]]
    assert feed.settle([(one, ACK) for one in sink.calls[0]]) == [None] * 4
    assert feed.released == 8, "nothing is with us any more"
    assert feed.pump.tracks["order", 0].progress.mark == 4


async def test_P8_what_comes_of_a_partition_that_went_is_handed_to_nobody(feed: KafkaFeed, sink: Many) -> None:
    stays, goes = some(feed, 0), other(feed, 1, 0)
    feed.pump.tracks["order", 1].gone = True
    feed.take(batch(stays + goes))
    assert sink.calls == [stays]
    assert feed.released == 1


async def test_P8_a_partition_that_goes_takes_along_what_waits_and_what_runs_and_nothing_of_others(
    feed: KafkaFeed, sink: Many
) -> None:
    came = some(feed, 0, 1) + other(feed, 1, 0, 1) + some(feed, 2) + other(feed, 1, 2)
    feed.take(batch(came))
    on_its_way = other(feed, 1, 3)
    track = feed.pump.tracks["order", 1]
    assert feed._given_of([track]) == came[2:4], "the third waits for room, and the fourth is not here yet"
    feed.lost([track])
    assert [one.withdrawn for one in came] == [False, False, True, True, False, False]
    feed.take(batch(on_its_way))
    assert feed.released == 4
    assert sink.calls == [came[:4], [came[4]]]
    settled = feed.settle([(one, ACK) for one in sink.calls[0] + sink.calls[1]])
    assert [type(problem) for problem in settled] == [type(None)] * 2 + [BrokerUnavailable] * 2 + [type(None)]
    assert track.progress.mark == 0
    assert feed.pump.tracks["order", 0].progress.mark == 3
    assert feed._given == feed._given_bytes == 0
    assert feed.released == len(came) + 1


async def test_each_partition_remembers_how_far_it_was_handed_over(feed: KafkaFeed, sink: Many) -> None:
    feed.take(batch(some(feed, 0, 1) + other(feed, 1, 0) + some(feed, 2, 3)))
    assert [feed.pump.tracks["order", number].progress.handed for number in (0, 1)] == [3, 1]


async def called(sink: Many, times: int) -> None:
    async with asyncio.timeout(30):
        while len(sink.calls) < times:  # noqa: ASYNC110  # what it waits for is a timer
            await asyncio.sleep(0.02)


async def test_P6_a_copy_whose_time_has_not_come_waits_and_takes_no_room(feed: KafkaFeed, sink: Many) -> None:
    later, now = other(feed, 0, 0, 1, route=Route.RETRY)
    came = batch([later, now])
    came.due.update({later: time.time() + 1.0, now: time.time() - 5})
    feed.take(came)
    assert sink.calls == [[now]]
    assert (feed.released, feed._waiting.copies()) == (1, 1)
    await called(sink, 2)
    assert (sink.calls[1], feed.released) == ([later], 0)
    assert feed.settle([(later, ACK), (now, ACK)]) == [None, None]


async def test_P2_a_wave_of_several_feeds_and_of_nobody_is_settled_by_each(link: Link, sink: Many) -> None:
    broker = KafkaBroker("kafka://127.0.0.1:1")
    broker._link = link
    one, two = feeds = KafkaFeed(link, SUBSCRIPTION, sink), KafkaFeed(link, SUBSCRIPTION, sink)
    came = [*some(one, 0), *some(two, 0, 1), *some(one, 1)]
    one.take(batch([came[0], came[3]]))
    two.take(batch(came[1:3]))
    foreign = Delivery(b"", "order", ("order", 7), object())
    answers = await broker.settle([(delivery, ACK) for delivery in [foreign, *came]])
    assert isinstance(answers[0], MisuseError)
    assert answers[1:] == [None] * 4
    assert [feed.released for feed in feeds] == [2, 2]
    for feed in feeds:
        assert feed.pump._made is not None
        feed.pump._made.close()


def closed(feed: KafkaFeed, *offsets: int) -> list[Delivery]:
    """What comes of a type that this process did not ask for, and was read."""
    came = some(feed, *offsets)
    for delivery in came:
        delivery.envelope = Envelope(id="1", source="shop", type="order.closed", version="v1")
    return came


async def test_P3_what_is_for_newer_code_is_left_open_and_takes_no_room(feed: KafkaFeed, sink: Many) -> None:
    feed.sift({"order.closed"}, time.monotonic() + 60)
    some(feed)
    progress, taken = feed.pump.tracks["order", 0].progress, 0
    for first in range(0, 40, 4):
        came = closed(feed, *range(first, first + 4))
        feed.take(batch(came))
        taken += len(came)
        assert feed.settle([(one, Release(0.01)) for one in came]) == [None] * 4
        assert feed.released == taken
    await asyncio.sleep(0.05)
    assert len(sink.calls) == 10, "none of them comes again here"
    assert progress.mark == 0
    assert len(progress.open) == 40
    feed.sift((), time.monotonic() + 60)
    assert progress.mark == 40, "what nobody asks for any more has come to its end"


async def test_what_is_left_is_forgotten_with_its_partition(feed: KafkaFeed) -> None:
    feed.sift({"order.closed"}, time.monotonic() + 60)
    came = closed(feed, 0, 1)
    feed.take(batch(came))
    feed.settle([(one, Release(0.01)) for one in came])
    track = feed.pump.tracks["order", 0]
    await feed.let_go([track])
    feed.sift((), time.monotonic() + 60)
    assert list(track.progress.open) == [0, 1], "whoever has it now says what becomes of them"


async def test_P11_only_so_many_are_left_and_the_others_keep_their_room(
    feed: KafkaFeed, sink: Many, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(left, "MOST", 2)
    feed.sift({"order.closed"}, time.monotonic() + 60)
    came = closed(feed, 0, 1, 2)
    feed.take(batch(came))
    feed.settle([(one, Release(0.01)) for one in came])
    assert feed.released == 2
    await called(sink, 2)
    await asyncio.sleep(0.05)
    assert sink.offsets == [[0, 1, 2], [2]]


async def test_P8_in_order_nothing_is_left_behind(link: Link, sink: Many) -> None:
    feed = OrderedFeed(link, msgspec.structs.replace(SUBSCRIPTION, ordered=True), sink)
    feed.sift({"order.closed"}, time.monotonic() + 60)
    came = closed(feed, 0)
    feed.take(batch(came))
    feed.settle([(one, Release(0.01)) for one in came])
    await called(sink, 2)
    assert sink.offsets == [[0], [0]]
    assert feed.pump._made is not None
    feed.pump._made.close()
