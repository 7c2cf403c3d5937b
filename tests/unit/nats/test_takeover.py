"""What a successor makes of what it gathers: deliveries that change places on their way, and those that go nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.consumers import ORDERED_ACK_PENDING
from tidings.brokers.nats.pull import Pull
from tidings.brokers.nats.takeover import TakeOver
from tidings.brokers.nats.tokens import Token
from tidings.delivery import Delivery

PIN = "me"


class Link:
    """Says yes to everything, and remembers what was said."""

    def __init__(self) -> None:
        self.said = b""
        self._answer: Callable[..., None] | None = None

    def own_subject(self) -> bytes:
        return b"inbox"

    def expect(self, answer: Callable[..., None]) -> bytes:
        self._answer = answer
        return b"answer"

    def forget(self, reply: bytes) -> None: ...

    def send(self, frames: bytes) -> None:
        self.said += frames
        assert self._answer is not None
        self._answer(0, None, b"")

    async def drained(self) -> None: ...

    async def round_trip(self, timeout: float) -> None: ...


class Events:
    """The pull; `refilled` is called whenever it may ask."""

    held = 0
    ceiling: int | None = None
    only_one = blocked = True

    def __init__(self) -> None:
        self.refilled: Callable[[], None] = lambda: None
        self.begun = 0

    def hold_pin(self, link: object, reply: bytes) -> None: ...

    def refill(self) -> None:
        self.refilled()

    def start_over(self) -> None:
        self.begun += 1


class Share:
    """What is taken over: events 1 to 3 are open, and belonged to somebody who is gone."""

    name, pin, in_doubt = "stock.reserve, share 0", PIN, True

    def __init__(self) -> None:
        self.link, self.pull = Link(), Events()
        self.connection = cast(Connection, self)
        self.held: dict[Token, Delivery] = {}
        self.numbers = 3
        """The number of the last delivery, as the server says it."""
        self.last = self.open = 3
        """The last event that was delivered, and how many are open."""
        self.floor = 0
        """Up to which event all are acknowledged."""
        self.asked = 0
        self.takeover = TakeOver(cast(Any, self))

    async def info(self) -> dict[str, Any]:
        self.asked += 1
        groups = [{"group": "one", "pinned_client_id": PIN}]
        delivered = {"consumer_seq": self.numbers, "stream_seq": self.last}
        return {
            "priority_groups": groups,
            "delivered": delivered,
            "ack_floor": {"stream_seq": self.floor},
            "num_ack_pending": self.open,
        }

    def sure(self, since: float) -> None: ...

    def held_here(self) -> dict[Token, Delivery]:
        return self.held

    def come(self, seq: int, number: int) -> None:
        """An event comes, as `share.py` takes it in."""
        reply = b"$JS.ACK.order.stock_reserve_0.2.%d.%d.0.0" % (seq, number)
        token = Token(reply, cast(Pull, self.pull), 1, seq, number)
        delivery = Delivery(
            body=b"", stream="order", origin=("order", seq), token=token, headers={}, slot=0, delivered=2
        )
        self.takeover.pinned_by(token)
        self.takeover.note(token, counts=True)
        self.held[token] = delivery
        self.takeover.take(token, delivery)

    def settle(self, seq: int) -> None:
        """An acknowledgement is on its way."""
        (token,) = [token for token in self.held if token.seq == seq]
        token.is_open = False

    def come_once(self, *pairs: tuple[int, int]) -> None:
        """These come when they are asked for."""

        def refilled() -> None:
            self.pull.refilled = lambda: None
            for pair in pairs:
                self.come(*pair)

        self.pull.refilled = refilled


def _next(number: int) -> Token:
    return Token(b"", cast(Pull, None), 1, 9, number)


def _share() -> Share:
    share = Share()
    share.takeover.pinned_by(Token(b"$JS.ACK.order.stock_reserve_0.1.3.3.0.0", cast(Pull, None), 1, 3, 3))
    return share


async def test_deliveries_that_change_places_on_their_way_are_all_there() -> None:
    share = _share()
    share.come_once((3, 6), (1, 4), (2, 5))
    async with asyncio.timeout(30):
        await share.takeover.run()
    assert share.pull.begun == 0, "it was gathered twice"
    assert share.takeover.follows(_next(7)), "the next delivery counts as one that was lost"
    assert [token.seq for token, _ in share.takeover.sorted()] == [1, 2, 3]


async def test_the_last_word_is_about_no_event_that_is_open() -> None:
    share = _share()
    share.come_once((1, 4), (2, 5), (3, 6))
    async with asyncio.timeout(30):
        await share.takeover.run()
    given_back, _, asked = share.link.said.rpartition(b"PUB ")
    assert given_back.count(b"-NAK") == 3
    assert asked.startswith(b"$JS.ACK.order.stock_reserve_0.1.4.")
    assert asked.endswith(b"+WPI\r\n")


async def test_what_went_to_nobody_is_given_back_once_more() -> None:
    """With replicas a delivery may be under way, to a process that is dead, when the server is asked what is open."""
    share = _share()
    share.come_once((1, 4), (2, 5))

    def asked_anew() -> None:
        share.numbers = 6
        share.come_once((3, 7))

    share.pull.start_over = asked_anew  # type: ignore[method-assign]  # the server's side  # what the server has done meanwhile
    async with asyncio.timeout(30):
        await share.takeover.run()
    assert sorted(token.seq for token, _ in share.takeover.sorted()) == [1, 2, 3]


async def test_what_is_new_does_not_stand_for_what_is_missing() -> None:
    """A server whose own replica lacks an event leaves it out when it is to come again, and goes on behind it."""
    share = _share()
    share.come_once((1, 4), (2, 5), (9, 6))

    def asked_anew() -> None:
        share.numbers, share.last, share.open = 6, 9, 4
        share.come_once((3, 7))

    share.pull.start_over = asked_anew  # type: ignore[method-assign]  # the server's side
    async with asyncio.timeout(30):
        await share.takeover.run()
    assert [token.seq for token, _ in share.takeover.sorted()] == [1, 2, 3, 9]


async def test_what_is_acknowledged_and_not_confirmed_yet_hides_nothing_that_got_lost() -> None:
    """A connection went: with it the third event, and the answer to the acknowledgement of the first."""
    share = _share()
    share.come(1, 1)
    share.come(2, 2)
    share.settle(1)
    share.floor, share.open = 1, 2
    share.come_once((3, 4))
    async with asyncio.timeout(30):
        await share.takeover.run()
    assert [token.seq for token, _ in share.takeover.sorted()] == [1, 2, 3]
    assert b"_0.1.1." not in share.link.said, "it was given back what is in hand"


async def test_what_is_acknowledged_is_waited_for_until_the_server_has_heard_it() -> None:
    share = _share()
    share.come(1, 1)
    share.come(2, 2)
    share.settle(1)
    share.come_once((3, 4))

    def heard() -> None:
        share.floor, share.open, share.numbers = 1, 2, 4

    share.pull.start_over = heard  # type: ignore[method-assign]  # the server's side
    async with asyncio.timeout(30):
        await share.takeover.run()
    assert share.asked == 2
    assert [token.seq for token, _ in share.takeover.sorted()] == [1, 2, 3]
    assert share.link.said.count(b"-NAK") == 1


async def test_P11_of_more_than_fits_into_memory_nothing_is_gathered_and_all_is_given_back_in_its_order() -> None:
    share = _share()
    share.last = share.open = share.numbers = ORDERED_ACK_PENDING + 1
    async with asyncio.timeout(30):
        await share.takeover.run()
    assert share.pull.ceiling is None, "all of it was asked for"
    said = [int(frame.split(b".")[5]) for frame in share.link.said.split(b"PUB ")[1:-1]]
    assert said == list(range(1, ORDERED_ACK_PENDING + 2))
    assert share.takeover.follows(_next(ORDERED_ACK_PENDING + 2))


async def test_what_is_left_with_others_is_not_spoken_of_and_the_numbers_are_known() -> None:
    share = _share()
    await share.takeover.skip()
    assert share.link.said == b""
    assert share.takeover.follows(_next(4))
