"""Taking and settling: what is acknowledged stays away, what is not comes again, and copies wait for their time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

import pytest

from tests.integration.rabbitmq.conftest import Connect, Rig, position, until
from tidings.brokers.rabbitmq import frames, topology
from tidings.brokers.rabbitmq.ordered import OrderedFeed
from tidings.brokers.rabbitmq.source import Token
from tidings.delivery import ACK, Delivery, Release
from tidings.errors import BrokerUnavailable

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="rabbitmq")]


async def test_trap_111_a_message_that_is_given_back_again_and_again_is_not_dropped(
    rabbitmq_url: str, connect: Connect
) -> None:
    """Servers from 4.0 on drop after 20, unless they are told otherwise."""
    rig = await connect(rabbitmq_url)
    await rig.publish(b"stubborn")
    for times in range(1, 31):
        await until(lambda times=times: len(rig.got) == times)  # type: ignore[misc]
        assert rig.got[-1].delivered == times
        assert await rig.broker.settle([(rig.got[-1], Release())]) == [None]
    await rig.settled(31)


async def test_P2_acknowledgements_out_of_order_are_each_their_own(rabbitmq_url: str, connect: Connect) -> None:
    rig = await connect(rabbitmq_url)
    await rig.publish(*(b"%d" % number for number in range(10)))
    await until(lambda: len(rig.got) == 10)
    for places in ([7, 2], [0, 1, 3], [9]):
        assert await rig.broker.settle([(rig.got[place], ACK) for place in places]) == [None] * len(places)
    await rig.feed.close()
    await rig.subscribe()
    await rig.settled(14)
    assert sorted(rig.bodies[10:]) == [b"4", b"5", b"6", b"8"]


async def test_trap_110_what_came_by_a_channel_that_ended_is_not_settled_by_another(
    rabbitmq_url: str, connect: Connect
) -> None:
    rig = await connect(rabbitmq_url)
    await rig.publish(b"a", b"b")
    await until(lambda: len(rig.got) == 2)
    token = rig.got[0].token
    assert isinstance(token, Token)
    token.channel.link.send(frames.acknowledge(token.channel.number, 4711))  # a tag that there is not ends the channel
    await until(lambda: len(rig.got) == 4)
    errors = await rig.broker.settle([(one, ACK) for one in rig.got])
    assert [type(error) for error in errors] == [BrokerUnavailable, BrokerUnavailable, type(None), type(None)]
    assert [one.delivered for one in rig.got] == [1, 1, 2, 2]


async def test_P6_a_copy_for_days_is_there_and_waits(rabbitmq_url: str, connect: Connect) -> None:
    rig = await connect(rabbitmq_url)
    copies = [rig.copy(due=time.time() + days * 86_400) for days in (0.5, 3, 30)]
    assert await rig.broker.publish(copies, timeout=30) == [None] * 3
    await waiting(rig, 3)  # whoever looked whether their time is over has put them back
    backlog = await rig.feed.backlog()
    assert (backlog.pending, backlog.in_flight, backlog.scheduled) == (0, 0, 3)
    assert await rig.broker.copies(rig.subscription.position) == 3
    assert rig.got == []


async def waiting(rig: Rig, count: int) -> None:
    async with asyncio.timeout(40):
        while rig.feed.moving or (await rig.feed.backlog()).scheduled != count:  # noqa: ASYNC110  # the server's to change
            await asyncio.sleep(0.05)


async def test_P6_copies_of_many_delays_each_come_in_time(rabbitmq_url: str, connect: Connect) -> None:
    rig = await connect(rabbitmq_url)
    now = time.time()
    due = {b"%d" % number: now + number * 0.13 for number in range(20)}
    copies = [rig.copy(body, due=at) for body, at in due.items()]
    arrived: dict[bytes, float] = {}
    assert await rig.broker.publish(copies, timeout=30) == [None] * 20
    async with asyncio.timeout(60):
        while len(arrived) < 20:
            for one in rig.open:
                arrived[one.body] = time.time()
                await rig.broker.settle([(one, ACK)])
            await asyncio.sleep(0.005)
    assert all(arrived[body] >= due[body] for body in due)


async def test_P11_large_messages_are_asked_for_in_smaller_numbers(rabbitmq_url: str, connect: Connect) -> None:
    subscription = position(max_in_flight=400, max_in_flight_bytes=1_000_000)
    rig = await connect(rabbitmq_url, subscription, subscribe=False)
    feed = await rig.subscribe()
    await send_large(rig, 200)
    await rig.settled(200)
    await send_large(rig, 200)
    await until(lambda: len(feed.held) >= 15)
    await asyncio.sleep(0.5)
    assert len(feed.held) <= 60, f"{len(feed.held)} messages of 50,000 bytes were here at once"
    await rig.settled(400)
    assert len(rig.got) == 400


async def send_large(rig: Rig, count: int) -> None:
    for _ in range(count // 10):
        await rig.publish(*(b"x" * 50_000 for _ in range(10)))


async def test_trap_109_a_queue_that_was_removed_is_trouble_and_ends_when_it_is_back(
    rabbitmq_url: str, connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pamqp import commands

    from tests.integration.rabbitmq.conftest import plan
    from tidings.brokers.rabbitmq import moving, source

    monkeypatch.setattr(source, "LOOK_AGAIN", 0.3)
    monkeypatch.setattr(moving, "LOOK_AGAIN", 0.3)
    monkeypatch.setattr(topology, "ON_DISK", 0.1)
    rig = await connect(rabbitmq_url)
    await rig.publish(b"before")
    await rig.settled(1)
    connection = rig.broker._inward
    assert connection is not None
    channel = await (await connection.ready(5)).channel(5)
    await channel.call(commands.Queue.Delete(0, rig.subscription.position, False, False, False), 5)
    await until(lambda: "is gone" in rig.broker.trouble)
    await asyncio.sleep(4 * source.LOOK_AGAIN)
    told = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(told) == 1, "it is said once, however often it is looked for"
    assert "is gone" in told[0]
    await rig.broker.open(plan(rig.subscription))
    await until(lambda: rig.broker.trouble == "")
    await channel.call(commands.Queue.Delete(0, f"{rig.subscription.position}._wait.800", False, False, False), 5)
    await until(lambda: "_wait.800 is gone" in rig.broker.trouble)
    await rig.broker.open(plan(rig.subscription))
    await until(lambda: rig.broker.trouble == "")
    await rig.publish(b"after")
    await rig.settled(2)


class Slow:
    """Takes deliveries, and is at work on the first of them whenever it is to give them up."""

    def __init__(self) -> None:
        self.got: list[Delivery] = []

    def __call__(self, delivery: Delivery, /) -> None:
        self.got.append(delivery)

    async def give_up(self, deliveries: Sequence[Delivery], patience: float) -> Sequence[Delivery]:
        return deliveries[:1]


async def test_P11_what_a_share_has_that_stays_after_all_is_counted_once(rabbitmq_url: str, connect: Connect) -> None:
    rig = await connect(rabbitmq_url, position(ordered=True), subscribe=False)
    sink = Slow()
    feed = await rig.broker.subscribe(rig.subscription, sink)
    assert isinstance(feed, OrderedFeed)
    await rig.publish(*(b"%d" % n for n in range(4)))
    await until(lambda: len(sink.got) == 4)
    share = next(share for share in feed.shares if share.channel is not None and share._open)
    for again in range(3):
        share.leave()
        await until(lambda: not share.quiet and len(sink.got) == 4 + 3 * (again + 1))  # noqa: B023  # it is awaited here
        assert feed._held_bytes == 4
    assert await rig.broker.settle([(one, ACK) for one in dict.fromkeys(sink.got)]) == [None] * 4
    assert feed._held_bytes == 0
