"""What an ordered feed knows of its shares, and what it drops when it cannot know: a clock and a server of paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from tidings.brokers.nats import consumers
from tidings.brokers.nats.api import Api
from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.link import Link
from tidings.brokers.nats.options import parse
from tidings.brokers.nats.ordered import OrderedFeed
from tidings.brokers.nats.share import SURE, Share
from tidings.brokers.nats.tokens import Token
from tidings.brokers.nats.watch import Watch
from tidings.delivery import Delivery
from tidings.ports import Subscription

LASTS = SURE * consumers.PIN_TIMEOUT


class Sink:
    """Keeps what it is handed, and gives up all of it at once."""

    def __init__(self) -> None:
        self.got: list[Delivery] = []
        self.gone: list[Delivery] = []

    def __call__(self, delivery: Delivery, /) -> None:
        self.got.append(delivery)

    async def give_up(self, deliveries: Sequence[Delivery], patience: float) -> Sequence[Delivery]:
        self.gone += deliveries
        return ()


class Paper:
    """A link that only takes down what is sent, and who waits for an answer."""

    up = True

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.asked: list[object] = []

    def send(self, frames: bytes) -> None:
        self.sent.append(frames)

    def expect(self, answer: object, tag: int = 0) -> bytes:
        self.asked.append(answer)
        return b"in.%d" % len(self.asked)

    def forget(self, reply: bytes) -> None: ...

    def answer(self, status: bytes) -> None:
        self.asked[-1](0, b"NATS/1.0 " + status + b"\r\n\r\n", b"")  # type: ignore[operator]  # kept as objects


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    for module in ("share", "ordered"):
        monkeypatch.setattr(f"tidings.brokers.nats.{module}.time.monotonic", lambda: now[0])
    return now


class Desk:
    """A feed with two shares that are ours, one delivery in hand of each."""

    def __init__(self, clock: list[float]) -> None:
        self.sink, self.link = Sink(), Paper()
        connection = Connection(parse("nats://localhost"), "desk")
        api = Api(connection)
        subscription = Subscription(position="stock.reserve", stream="order", types=("order.placed",), ordered=True)
        self.feed = OrderedFeed(connection, subscription, self.sink, watch=Watch(api, subscription), api=api)
        for number in (2, 5):
            share = self.feed.shares[number]
            share.pin, share.active, share.exposed = f"pin {number}", True, True
            share.sure(clock[0])
            token = Token(b"$JS.ACK.order.c.1.1.1.1.0", share.events, 10, number, 1)
            share.events.held += 1
            one = Delivery(body=b"%d" % number, stream="order", origin=("order", number), token=token)
            self.feed.take_event(token, one)

    def share(self, number: int) -> Share:
        return self.feed.shares[number]

    def hold(self, number: int) -> None:
        self.share(number).hold(cast(Link, self.link))


@pytest.fixture
async def desk(clock: list[float]) -> Desk:
    return Desk(clock)


async def test_P8_what_was_not_confirmed_in_time_is_dropped_before_it_is_begun(desk: Desk, clock: list[float]) -> None:
    assert desk.feed.fence() == ""
    clock[0] += LASTS - 0.1
    assert desk.feed.fence() == ""
    assert not any(one.withdrawn for one in desk.sink.got)
    clock[0] += 0.2  # as after a SIGSTOP: nothing was read meanwhile, and no task has run
    assert desk.feed.fence() == ""
    assert [one.withdrawn for one in desk.sink.got] == [True, True]
    assert all(one.token.lost and one.token.stale for one in desk.sink.got)  # type: ignore[attr-defined]  # tokens are this broker's


@pytest.mark.parametrize("status", [b"404 No Messages", b"409 Message Size Exceeds MaxBytes"])
async def test_an_answer_in_time_makes_a_share_sure_from_the_moment_of_the_question(
    desk: Desk, clock: list[float], status: bytes
) -> None:
    clock[0] += 1.0
    desk.hold(2)
    clock[0] += 1.0
    desk.link.answer(status)
    assert desk.share(2).sure_until == pytest.approx(1001.0 + LASTS)
    clock[0] = 1000.5 + LASTS
    assert desk.feed.fence() == ""
    assert [one.withdrawn for one in desk.sink.got] == [False, True], "the other one had no answer"


async def test_P8_an_answer_to_a_question_that_came_too_late_proves_nothing(desk: Desk, clock: list[float]) -> None:
    # The server says so to anybody while nobody is pinned; and this may be the first that runs after a SIGSTOP.
    clock[0] += LASTS + 0.1
    desk.hold(2)
    desk.link.answer(b"404 No Messages")
    desk.feed.fence()
    assert all(one.withdrawn for one in desk.sink.got)


async def test_P8_a_share_that_another_process_has_is_dropped_at_once(desk: Desk) -> None:
    desk.hold(5)
    desk.link.answer(b"423 Nats-Pin-Id mismatch")
    assert [one.withdrawn for one in desk.sink.got] == [False, True]
    assert desk.share(5).pin == ""


async def test_P8_nothing_is_begun_without_a_link_until_the_server_has_said_whose_it_is(
    desk: Desk, clock: list[float]
) -> None:
    for share in desk.feed.shares:
        share.link_down()
    desk.feed.sure_again()
    assert "still ours" in desk.feed.fence()
    desk.share(2).sure(clock[0])
    assert "still ours" in desk.feed.fence(), "one of the two is in doubt"
    clock[0] += 1.0
    desk.share(5).sure(clock[0])
    assert desk.feed.fence() == ""
    assert not any(one.withdrawn for one in desk.sink.got)


async def test_P11_the_shares_of_a_process_have_its_limits_together(desk: Desk) -> None:
    def most() -> int:
        return sum(share.events._most + share.retries._most for share in desk.feed.shares if share.wanted)

    for share in desk.feed.shares:
        share.wanted = True
    desk.feed._divide()
    assert most() == 1024
    for share in desk.feed.shares[2:]:
        share.wanted = False
    desk.feed._divide()
    assert most() == 1024
