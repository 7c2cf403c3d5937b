"""Publishing: what is said to be stored is, and what no queue takes is said so (traps 105 to 108)."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.integration.rabbitmq.conftest import Connect, plan, position, until
from tidings.brokers.rabbitmq import names, topology
from tidings.brokers.rabbitmq.broker import RabbitBroker
from tidings.brokers.rabbitmq.frames import Content
from tidings.brokers.rabbitmq.reading import read_log
from tidings.delivery import Message
from tidings.errors import EventTooLarge, InvalidEvent, NotStored
from tidings.ports import Plan, StreamPlan
from tools.services.rabbitmq import RabbitMQ

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="rabbitmq")]


async def unrouted(broker: RabbitBroker, stream: str) -> list[Content]:
    assert broker._inward is not None
    log = read_log(broker._inward, names.UNROUTED)
    return [content async for content in log if content.routing_key.startswith(stream)]


async def test_P1_trap_105_what_no_queue_takes_from_is_not_stored(rabbitmq_url: str, connect: Connect) -> None:
    rig = await connect(rabbitmq_url, subscribe=False)
    other = f"{rig.stream}-empty"
    await rig.broker.open(Plan(service="p", streams=(StreamPlan(name=other),)))
    message = rig.message(stream=other, type=f"{other}.placed")
    good = rig.message(b"good")
    lost, stored = await rig.broker.publish([message, good], timeout=30)
    assert isinstance(lost, NotStored)
    assert "no queue takes from the exchange" in str(lost)
    assert "optional=True" in str(lost)
    assert stored is None


async def test_P1_P13_a_type_that_nobody_asked_for_is_kept_beside(rabbitmq_url: str, connect: Connect) -> None:
    rig = await connect(rabbitmq_url)
    message = rig.message(b"nobody's", type=f"{rig.stream}.closed")
    assert await rig.broker.publish([message], timeout=30) == [None]
    (found,) = await unrouted(rig.broker, rig.stream)
    assert (found.body, found.id) == (b"nobody's", message.id)
    assert rig.got == []


async def test_trap_108_the_same_id_on_two_roads_at_once_is_told_apart(rabbitmq_url: str, connect: Connect) -> None:
    rig = await connect(rabbitmq_url)
    nowhere = rig.copy(position=f"{rig.stream}.nobody")
    for _ in range(20):
        event = rig.message(b"event", id=nowhere.id)
        stored, lost = await rig.broker.publish([event, nowhere], timeout=30)
        assert stored is None
        assert isinstance(lost, NotStored)
    assert len(await rig.settled(20)) == 20


async def test_a_stream_that_somebody_removed_is_said_to_be_gone(rabbitmq_url: str, connect: Connect) -> None:
    from pamqp import commands

    rig = await connect(rabbitmq_url, subscribe=False)
    await rig.publish(b"before")
    connection = rig.broker._inward
    assert connection is not None
    channel = await (await connection.ready(5)).channel(5)
    await channel.call(commands.Exchange.Delete(0, rig.stream, False, False), 5)
    results = [(await rig.broker.publish([rig.message()], timeout=20))[0] for _ in range(2)]
    assert all(isinstance(error, Exception) for error in results)
    assert "there is no exchange" in str(results[-1])
    await rig.broker.open(plan(rig.subscription))
    await rig.publish(b"after")


async def test_a_message_that_cannot_travel_takes_no_other_with_it(rabbitmq_url: str, connect: Connect) -> None:
    rig = await connect(rabbitmq_url)
    messages = [
        rig.message(b"a"),
        rig.message(headers={"n" * 300: "v"}),
        rig.message(headers={"h": "v" * 200_000}),
        rig.message(type=f"{rig.stream}.#"),
        rig.message(b"b", id="x" * 300),
    ]
    found = await rig.broker.publish(messages, timeout=30)
    assert [type(error) for error in found] == [type(None), InvalidEvent, EventTooLarge, InvalidEvent, type(None)]
    assert [one.body for one in await rig.settled(2)] == [b"a", b"b"]


async def test_P1_nothing_may_come_into_a_queue_before_the_server_has_it_on_disk(rabbitmq_url: str) -> None:
    """Killed before that, the server would bring the queue back empty."""
    subscription = position()
    broker = RabbitBroker(rabbitmq_url)
    other = RabbitBroker(rabbitmq_url)
    await other.open(Plan(service="p", streams=(StreamPlan(name=subscription.stream),)))
    began = time.monotonic()
    opening = asyncio.create_task(broker.open(plan(subscription)))
    try:
        stored = 0.0
        while not stored:
            (error,) = await other.publish([_event(subscription.stream)], timeout=2)
            stored = time.monotonic() - began if error is None else 0.0
        await opening
        assert stored >= topology.ON_DISK
        began = time.monotonic()
        again = RabbitBroker(rabbitmq_url)
        await again.open(plan(subscription))
        await again.close()
    finally:
        await opening
        await broker.close()
        await other.close()


async def test_P10_what_was_refused_goes_over_a_new_channel_and_others_get_their_answers(
    server: RabbitMQ, connect: Connect
) -> None:
    """A channel may refuse for ever what another one takes."""
    rig = await connect(server.url, subscribe=False)
    other = position()
    await rig.broker.open(plan(other))
    policy = ["full", rig.subscription.position, '{"max-length":1,"overflow":"reject-publish"}']
    await asyncio.to_thread(server.control, "set_policy", *policy, "--apply-to", "queues")
    await rig.publish(b"1")
    async with asyncio.timeout(60):
        while (await rig.broker.publish([rig.message(b"2")], timeout=30))[0] is None:  # noqa: ASYNC110  # it fills
            await asyncio.sleep(0.05)
    before = await rig.broker._publisher._ready(time.monotonic() + 30)
    many = [Message(id=f"{one}", stream=other.stream, type=other.types[0], body=b"x" * 1000) for one in range(3000)]
    others = asyncio.create_task(rig.broker.publish(many, timeout=30))
    (error,) = await rig.broker.publish([rig.message(b"3")], timeout=30)
    assert isinstance(error, NotStored)
    assert await others == [None] * len(many)
    assert await rig.broker._publisher._ready(time.monotonic() + 30) is not before
    await until(lambda: not before.channel.open)


def _event(stream: str) -> Message:
    return Message(id="1", stream=stream, type=f"{stream}.placed", body=b"{}")
