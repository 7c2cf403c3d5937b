"""What is with a feed and what is not any more, without a cluster: its pump is made, and never started."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from tidings.brokers.kafka.feed import KafkaFeed
from tidings.brokers.kafka.link import Link
from tidings.brokers.kafka.options import parse
from tidings.brokers.kafka.progress import Progress
from tidings.brokers.kafka.tracks import Token, Track
from tidings.delivery import ACK, Delivery, Release, Route
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
    track = feed.pump.tracks.setdefault(key, Track(feed, "order", 0, Route.EVENT, Progress(0)))
    for offset in offsets:
        track.progress.take(offset)
    return [Delivery(b"", "order", (*key, one), Token(track, one, size, 0.0)) for one in offsets]


async def test_what_came_together_is_handed_over_in_one_call_and_the_rest_as_there_is_room(
    feed: KafkaFeed, sink: Many
) -> None:
    came = some(feed, *range(7))
    feed.take(came)
    assert sink.offsets == [[0, 1, 2, 3]], "four may be in flight"
    assert feed.settle([(one, ACK) for one in came[:2]]) == [None, None]
    assert sink.offsets == [[0, 1, 2, 3], [4, 5]]
    assert feed.pump.tracks["order", 0].progress.mark == 2
    assert feed.released == 2, "the pump has room for two more"
    assert feed.released_bytes == 20


async def test_P11_bytes_are_a_limit_as_well_and_one_event_may_always_come(feed: KafkaFeed, sink: Many) -> None:
    feed.take(some(feed, 0, size=1000))
    feed.take(some(feed, 1, size=60) + some(feed, 2, size=60))
    assert sink.offsets == [[0]]
    (big,) = sink.calls[0]
    feed.settle([(big, ACK)])
    assert sink.offsets == [[0], [1]]


async def test_P2_a_delivery_is_settled_once(feed: KafkaFeed, sink: Many) -> None:
    (one,) = came = some(feed, 0)
    feed.take(came)
    assert feed.settle([(one, ACK)]) == [None]
    (again,) = feed.settle([(one, ACK)])
    assert isinstance(again, MisuseError)
    assert feed.released == 1, "it has made room once"
    assert feed._given == 0


async def test_P3_what_went_with_its_partition_is_not_acknowledged(feed: KafkaFeed, sink: Many) -> None:
    came = some(feed, 0, 1)
    feed.take(came)
    feed.pump.tracks["order", 0].gone = True
    for problem in feed.settle([(one, ACK) for one in came]):
        assert isinstance(problem, BrokerUnavailable)
    assert feed.pump.tracks["order", 0].progress.mark == 0


async def test_what_is_given_back_comes_again_before_what_waits(feed: KafkaFeed, sink: Many) -> None:
    came = some(feed, *range(6))
    feed.take(came)
    feed.settle([(came[0], Release(0.0)), (came[1], ACK), (came[2], Release(0.0))])
    assert sink.offsets == [[0, 1, 2, 3], [0, 2, 4]]
    assert [one.delivered for one in sink.calls[1]] == [2, 2, 1]
    assert feed.released == 1


async def test_a_sink_that_takes_one_at_a_time_is_handed_one_at_a_time(link: Link) -> None:
    found: list[Delivery] = []
    feed = KafkaFeed(link, SUBSCRIPTION, found.append)
    feed.take(some(feed, *range(3)))
    assert [one.origin[2] for one in found] == [0, 1, 2]
    assert feed.pump._made is not None
    feed.pump._made.close()
