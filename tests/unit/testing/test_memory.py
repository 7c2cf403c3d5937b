"""The memory broker where it differs from others: what tests ask it, and what they do to it.

What it shares with every broker is shown by the conformance suite.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from tidings.delivery import ACK, Delivery, Message, Release, Route
from tidings.envelope import envelope_of, to_structured
from tidings.errors import BrokerUnavailable, ConfigurationError, MisuseError, NotStored
from tidings.event import Event
from tidings.ports import Plan, StreamPlan, Subscription
from tidings.testing import MemoryBroker

SUBSCRIPTION = Subscription(position="stock.reserve", stream="order", types=("order.placed",))
PLAN = Plan(service="stock", streams=(StreamPlan(name="order"),), subscriptions=(SUBSCRIPTION,))


class OrderPlaced(Event, type="order.placed", version=1, key="order_id"):
    order_id: str


def message(id: str, **more: Any) -> Message:
    return Message(**{"id": id, "stream": "order", "type": "order.placed", "body": id.encode(), **more})


def subscription(**more: Any) -> Subscription:
    return Subscription(**{"position": "stock.reserve", "stream": "order", "types": ("order.placed",), **more})


class Taken(list[Delivery]):
    """A sink that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.grown = asyncio.Event()
        self.began = 0.0
        """When the first came, by the monotonic clock."""

    def append(self, delivery: Delivery) -> None:
        self.began = self.began or time.monotonic()
        super().append(delivery)
        self.grown.set()


async def wait_for(taken: Taken, count: int) -> None:
    async with asyncio.timeout(5):
        while len(taken) < count:
            taken.grown.clear()
            await taken.grown.wait()


async def acked(broker: MemoryBroker, deliveries: list[Delivery]) -> None:
    assert await broker.settle([(one, ACK) for one in deliveries]) == [None] * len(deliveries)


@pytest_asyncio.fixture
async def broker() -> AsyncIterator[MemoryBroker]:
    broker = MemoryBroker(ack_wait=0.2)
    await broker.open(PLAN)
    yield broker
    await broker.close()


async def test_deliveries_of_a_crashed_feed_come_again_after_the_ack_wait_and_not_before(broker: MemoryBroker) -> None:
    first = Taken()
    second = Taken()
    dying = await broker.subscribe(SUBSCRIPTION, first.append)
    await broker.publish([message("a")], timeout=1)
    await wait_for(first, 1)
    began = time.monotonic()
    dying.crash()
    await broker.subscribe(SUBSCRIPTION, second.append)
    await wait_for(second, 1)
    assert second.began - began >= 0.2
    assert second[0].delivered == 2
    (refused,) = await broker.settle([(first[0], ACK)])
    assert isinstance(refused, BrokerUnavailable)
    await acked(broker, second)


async def test_a_crashed_feed_gives_nothing_back_when_it_is_closed(broker: MemoryBroker) -> None:
    first = Taken()
    second = Taken()
    dying = await broker.subscribe(SUBSCRIPTION, first.append)
    await broker.publish([message("a")], timeout=1)
    await wait_for(first, 1)
    began = time.monotonic()
    dying.crash()
    await dying.close()
    await broker.subscribe(SUBSCRIPTION, second.append)
    await wait_for(second, 1)
    assert second.began - began >= 0.2, "not before the ack wait is over"


async def test_what_a_living_feed_holds_is_kept_alive(broker: MemoryBroker) -> None:
    taken = Taken()
    await broker.subscribe(SUBSCRIPTION, taken.append)
    await broker.subscribe(SUBSCRIPTION, taken.append)
    await broker.publish([message("a")], timeout=1)
    await asyncio.sleep(0.5)
    assert len(taken) == 1


async def test_an_ordered_standby_waits_for_what_a_crashed_feed_had(broker: MemoryBroker) -> None:
    first = Taken()
    second = Taken()
    ordered = subscription(ordered=True, max_in_flight=2)
    await broker.open(Plan(service="stock", streams=PLAN.streams, subscriptions=(ordered,)))
    active = await broker.subscribe(ordered, first.append)
    await broker.subscribe(subscription(ordered=True), second.append)
    await broker.publish([message(one) for one in "abc"], timeout=1)
    await wait_for(first, 2)
    began = time.monotonic()
    active.crash()
    await wait_for(second, 3)
    assert second.began - began >= 0.2
    assert [one.body for one in second] == [b"a", b"b", b"c"]
    await broker.close()


async def test_a_client_that_crashed_answers_nothing_any_more(broker: MemoryBroker) -> None:
    other = broker.client()
    await other.open(PLAN)
    taken = Taken()
    await other.subscribe(SUBSCRIPTION, taken.append)
    await broker.publish([message("a")], timeout=1)
    await wait_for(taken, 1)
    other.crash()
    assert other.trouble
    assert not broker.trouble
    (published,) = await other.publish([message("b")], timeout=1)
    (settled,) = await other.settle([(taken[0], ACK)])
    assert isinstance(published, BrokerUnavailable)
    assert isinstance(settled, BrokerUnavailable)
    with pytest.raises(BrokerUnavailable):
        await other.open(PLAN)


async def test_a_client_cannot_settle_what_another_was_given(broker: MemoryBroker) -> None:
    other = broker.client()
    await other.open(PLAN)
    taken = Taken()
    await broker.subscribe(SUBSCRIPTION, taken.append)
    await broker.publish([message("a")], timeout=1)
    await wait_for(taken, 1)
    (refused,) = await other.settle([(taken[0], ACK)])
    assert isinstance(refused, MisuseError)
    await acked(broker, taken)


async def test_an_outage_is_seen_and_what_was_in_flight_comes_again(broker: MemoryBroker) -> None:
    taken = Taken()
    await broker.subscribe(SUBSCRIPTION, taken.append)
    await broker.publish([message("a")], timeout=1)
    await wait_for(taken, 1)
    async with broker.outage():
        assert broker.trouble
        (refused,) = await broker.publish([message("b")], timeout=0.01)
        assert isinstance(refused, BrokerUnavailable)
        (settled,) = await broker.settle([(taken[0], ACK)])
        assert isinstance(settled, BrokerUnavailable)
        waiting = asyncio.create_task(broker.publish([message("c")], timeout=5))
        await asyncio.sleep(0.01)
        assert len(taken) == 1
    assert not broker.trouble
    assert await waiting == [None]
    await wait_for(taken, 3)
    assert sorted(one.body for one in taken[1:]) == [b"a", b"c"]


async def test_services_that_share_an_object_close_it_together(broker: MemoryBroker) -> None:
    taken = Taken()
    await broker.open(Plan(service="orders"))
    await broker.subscribe(SUBSCRIPTION, taken.append)
    await broker.close()
    assert await broker.publish([message("a")], timeout=1) == [None]
    await wait_for(taken, 1)
    await broker.close()
    (refused,) = await broker.publish([message("b")], timeout=1)
    assert isinstance(refused, MisuseError)


async def test_a_start_that_failed_does_not_close_what_others_opened(broker: MemoryBroker) -> None:
    renamed = subscription(position="stock.renamed")
    with pytest.raises(ConfigurationError, match=r"stock\.renamed is new"):
        await broker.open(Plan(service="stock", streams=PLAN.streams, subscriptions=(renamed,)))
    await broker.close()
    assert await broker.publish([message("a")], timeout=1) == [None]


async def test_positions_and_messages_outlive_the_services(broker: MemoryBroker) -> None:
    taken = Taken()
    feed = await broker.subscribe(SUBSCRIPTION, taken.append)
    await broker.publish([message("a")], timeout=1)
    await wait_for(taken, 1)
    await acked(broker, taken)
    await feed.close()
    await broker.publish([message("b")], timeout=1)
    await broker.close()
    await broker.open(PLAN)
    await broker.subscribe(SUBSCRIPTION, taken.append)
    await wait_for(taken, 2)
    assert [one.body for one in taken] == [b"a", b"b"]


async def test_idle_waits_for_what_is_in_flight_and_for_retries_that_are_due_soon(broker: MemoryBroker) -> None:
    taken = Taken()
    await broker.subscribe(SUBSCRIPTION, taken.append)
    late = message("c", route=Route.RETRY, position="stock.reserve", due=time.time() + 60)
    await broker.publish([message("a"), late], timeout=1)
    await wait_for(taken, 1)
    with pytest.raises(TimeoutError, match=r"stock\.reserve \(0 pending, 1 in flight, 1 scheduled\)"):
        await broker.idle(timeout=0.05)
    await acked(broker, taken)
    copy = message("b", route=Route.RETRY, position="stock.reserve", due=time.time() + 0.2)
    await broker.publish([copy], timeout=1)
    waiting = asyncio.create_task(broker.idle())
    await wait_for(taken, 2)
    assert not waiting.done()
    await acked(broker, taken[1:])
    await waiting


async def test_idle_does_not_wait_for_positions_that_nobody_takes_from(broker: MemoryBroker) -> None:
    await broker.publish([message("a")], timeout=1)
    await broker.idle(timeout=0.5)


async def test_what_was_published_can_be_read_as_events_and_as_bytes(broker: MemoryBroker) -> None:
    event = OrderPlaced(order_id="1")
    body = to_structured(envelope_of(event, "orders"))
    await broker.publish([message("a", body=body), message("b", type="order.closed", body=b"?")], timeout=1)
    assert broker.published(OrderPlaced) == [event]
    assert [one.body for one in broker.messages()] == [body, b"?"]
    assert [one.body for one in broker.messages("order.closed")] == [b"?"]


async def test_dead_letters_are_listed(broker: MemoryBroker) -> None:
    await broker.publish([message("a", route=Route.DEAD, headers={"x": "y"})], timeout=1)
    (letter,) = broker.dead_letters
    assert (letter.body, letter.headers, letter.route) == (b"a", {"x": "y"}, Route.DEAD)


async def test_a_publish_can_be_made_to_fail(broker: MemoryBroker) -> None:
    error = NotStored("full")
    broker.fail_publish(error, times=2)
    messages = [message(one) for one in "abc"]
    assert await broker.publish(messages, timeout=1) == [error, error, None]
    assert [one.body for one in broker.messages()] == [b"c"]


async def test_a_publish_can_be_stored_and_its_answer_lost(broker: MemoryBroker) -> None:
    error = BrokerUnavailable("no answer")
    broker.fail_publish(error, stored=True)
    assert await broker.publish([message("a")], timeout=1) == [error]
    assert await broker.publish([message("a")], timeout=1) == [None]
    assert [one.body for one in broker.messages()] == [b"a"]


@pytest.mark.parametrize("settled", [False, True])
async def test_a_verdict_can_be_made_to_fail_and_its_answer_to_be_lost(broker: MemoryBroker, settled: bool) -> None:
    taken = Taken()
    await broker.subscribe(SUBSCRIPTION, taken.append)
    await broker.publish([message("a")], timeout=1)
    await wait_for(taken, 1)
    error = BrokerUnavailable("no answer")
    broker.fail_settle(error, settled=settled)
    assert await broker.settle([(taken[0], Release())]) == [error]
    await asyncio.sleep(0.01)
    assert len(taken) == (2 if settled else 1)


async def test_a_position_that_nobody_declared_is_refused(broker: MemoryBroker) -> None:
    with pytest.raises(MisuseError, match=r"stock\.other"):
        await broker.subscribe(subscription(position="stock.other"), Taken().append)
    with pytest.raises(ConfigurationError, match="stock"):
        await broker.open(Plan(service="stock", subscriptions=(SUBSCRIPTION, subscription(stream="elsewhere"))))
    await broker.close()


async def test_a_stream_that_is_kept_otherwise_is_reported(broker: MemoryBroker) -> None:
    (drift,) = await broker.open(Plan(service="a", streams=(StreamPlan(name="order", keep=timedelta(days=1)),)))
    assert "order" in str(drift)
    await broker.close()


async def test_what_was_stored_cannot_be_changed_afterwards(broker: MemoryBroker) -> None:
    headers = {"x": "1"}
    await broker.publish([message("a", headers=headers)], timeout=1)
    headers["x"] = "2"
    (stored,) = broker.messages()
    stored.headers["y"] = "3"  # type: ignore[index]  # what a careless handler would do
    assert broker.messages()[0].headers == {"x": "1"}


async def test_a_copy_for_a_handler_that_is_gone_waits_for_it(broker: MemoryBroker) -> None:
    await broker.publish([message("a", route=Route.RETRY, position="stock.later")], timeout=1)
    taken = Taken()
    later = subscription(position="stock.later", types=("order.closed",))
    await broker.open(Plan(service="stock", streams=PLAN.streams, subscriptions=(SUBSCRIPTION, later)))
    await broker.subscribe(later, taken.append)
    await wait_for(taken, 1)
    assert (taken[0].body, taken[0].route) == (b"a", Route.RETRY)
    await broker.close()


def test_one_object_serves_one_loop_after_another() -> None:
    broker = MemoryBroker()

    async def once(id: str) -> None:
        taken = Taken()
        await broker.open(PLAN)
        await broker.subscribe(SUBSCRIPTION, taken.append)
        await broker.publish([message(id)], timeout=1)
        await wait_for(taken, 1)
        await acked(broker, taken)
        await broker.close()

    asyncio.run(once("a"))
    asyncio.run(once("b"))


async def test_where_there_is_no_stream_yet_none_is_named() -> None:
    broker = MemoryBroker()
    await broker.open(Plan(service="stock"))
    with pytest.raises(ConfigurationError, match="no stream 'order'; the streams are: none"):
        [one async for one in broker.read(Route.EVENT, "order")]
    await broker.close()
