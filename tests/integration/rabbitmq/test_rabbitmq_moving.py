"""Copies on their way through the queues they wait in: never early, never gone, and never held up by a start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from pamqp import commands

from tests.integration.rabbitmq.conftest import Connect, Rig, plan, position, until
from tidings.brokers.rabbitmq import frames, moving, names, waiting
from tidings.brokers.rabbitmq.broker import RabbitBroker
from tidings.brokers.rabbitmq.connection import Connection
from tidings.brokers.rabbitmq.frames import Content
from tidings.brokers.rabbitmq.moving import Mover
from tidings.brokers.rabbitmq.options import parse
from tidings.delivery import Header
from tidings.errors import BrokerUnavailable
from tools.services.rabbitmq import RabbitMQ

MANY = 500
"""Queues that keep a server busy for some seconds when it starts."""


async def test_P6_copies_that_waited_come_at_once_when_a_server_of_many_queues_was_killed(
    server: RabbitMQ, connect: Connect
) -> None:
    """What is bound to what it knows last of all: until then it could hand nothing on."""
    rig = await connect(server.url, subscribe=False)
    await make_queues(rig, MANY)
    due = time.time() + 2
    assert await rig.broker.publish([rig.copy(b"%d" % one, due=due) for one in range(40)], timeout=30) == [None] * 40
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)
    await rig.broker.open(plan(rig.subscription))
    await rig.subscribe()
    assert len(await rig.settled(40, timeout=60)) == 40
    assert time.time() >= due


async def make_queues(rig: Rig, count: int) -> None:
    connection = rig.broker._inward
    assert connection is not None
    channel = await (await connection.ready(5)).channel(5)
    for number in range(count):
        asked = {"x-queue-type": "quorum"}
        declare = commands.Queue.Declare(0, f"many.{number}", False, True, False, False, False, asked)  # type: ignore[arg-type]
        await channel.call(declare, 30)


async def test_P6_a_copy_comes_when_whoever_took_it_has_died(rabbitmq_url: str, connect: Connect) -> None:
    rig, taken = await connect(rabbitmq_url, subscribe=False), asyncio.Event()

    async def never(copies: Sequence[Content]) -> Sequence[Exception | None]:
        taken.set()
        await asyncio.sleep(3600)
        return []

    other = Connection(parse(rabbitmq_url), "who dies")
    link = await other.start()
    running = asyncio.create_task(mover(rig, other, never).run())
    try:
        await one_that_waits(rig)
        await taken.wait()
        assert await left(rig) == 0
        await rig.subscribe()
        link.abandon("it died")
        assert [one.body for one in await rig.settled(1)] == [b"copy"]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await other.close()


async def test_P6_a_copy_that_cannot_be_stored_where_it_is_to_go_stays(rabbitmq_url: str, connect: Connect) -> None:
    rig, tried = await connect(rabbitmq_url, subscribe=False), list[float]()

    async def fails(copies: Sequence[Content]) -> Sequence[Exception | None]:
        tried.append(time.time())
        return [BrokerUnavailable("not now")] * len(copies)

    assert rig.broker._inward is not None
    broken = mover(rig, rig.broker._inward, fails)
    running = asyncio.create_task(broken.run())
    over = await one_that_waits(rig)
    await until(lambda: len(tried) >= 2)
    assert tried[0] >= over
    await broken.stop()
    await running
    await rig.subscribe()
    assert [one.body for one in await rig.settled(1)] == [b"copy"]


async def test_P6_who_stops_while_a_copy_is_stored_elsewhere_lets_go_of_it_here(
    rabbitmq_url: str, connect: Connect
) -> None:
    rig, taken = await connect(rabbitmq_url, subscribe=False), asyncio.Event()

    async def slow(copies: Sequence[Content]) -> Sequence[Exception | None]:
        taken.set()
        await asyncio.sleep(0.5)
        return [None] * len(copies)

    assert rig.broker._inward is not None
    stopping = mover(rig, rig.broker._inward, slow)
    running = asyncio.create_task(stopping.run())
    await one_that_waits(rig)
    await taken.wait()
    await stopping.stop()
    running.cancel()  # as a feed that closes does
    await asyncio.gather(running, return_exceptions=True)
    await asyncio.sleep(0.3)
    assert await left(rig) == 0, "it is there twice"


async def test_P6_copies_that_wait_for_long_are_in_their_queue_and_not_with_a_process(
    rabbitmq_url: str, connect: Connect
) -> None:
    rig = await connect(rabbitmq_url)
    copies = [rig.copy(b"%d" % one, due=time.time() + 120) for one in range(100)]
    assert await rig.broker.publish(copies, timeout=30) == [None] * 100
    other = RabbitBroker(rabbitmq_url)
    await other.open(plan(rig.subscription))
    try:
        async with asyncio.timeout(60):
            while await other.copies(rig.subscription.position) < 100:  # noqa: ASYNC110  # the server's to change
                await asyncio.sleep(0.05)
    finally:
        await other.close()


async def test_P6_a_copy_that_was_put_back_is_taken_again_in_time(
    rabbitmq_url: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "HOLD", 0.1)
    rig, due = await connect(rabbitmq_url), time.time() + 0.9
    assert await rig.broker.publish([rig.copy(due=due)], timeout=30) == [None]
    assert [one.body for one in await rig.settled(1)] == [b"copy"]
    assert time.time() >= due


async def test_P6_a_copy_of_an_ordered_position_waits_too(rabbitmq_url: str, connect: Connect) -> None:
    """There is no queue for it to wait in."""
    rig, due = await connect(rabbitmq_url, position(ordered=True)), time.time() + 0.7
    assert await rig.broker.publish([rig.copy(due=due)], timeout=30) == [None]
    assert [one.body for one in await rig.settled(1)] == [b"copy"]
    assert time.time() >= due
    assert await rig.broker.copies(rig.subscription.position) == 0


async def test_P6_a_copy_that_comes_before_its_time_waits(rabbitmq_url: str, connect: Connect) -> None:
    """As where the clock of whoever moved it goes ahead of ours."""
    rig, due = await connect(rabbitmq_url), time.time() + 1.0
    assert rig.broker._main is not None
    channel = await (await rig.broker._main.ready(5)).channel(5)
    key = names.copy_key(names.copy_place(rig.subscription.position, "k"), 0, 0)
    header = frames.properties({Header.DUE: waiting.due_text(due)}, "early", 4)
    channel.link.send(frames.message(channel.number, names.RETRY, key, header, b"copy", frames.MOST_FRAME))
    assert [one.body for one in await rig.settled(1)] == [b"copy"]
    assert time.time() >= due


def mover(rig: Rig, connection: Connection, move: object) -> Mover:
    return Mover(connection, names.wait_queue(rig.subscription.position, waiting.STEPS[0]), 0.1, move)  # type: ignore[arg-type]


async def one_that_waits(rig: Rig) -> float:
    """When its time there is over, which is the first step of it: a copy that is late by a little waits as well."""
    began = time.time()
    assert await rig.broker.publish([rig.copy(due=began + 0.6)], timeout=30) == [None]
    return began + waiting.STEPS[0] / 1000


async def left(rig: Rig) -> int:
    return await rig.broker._topology.scheduled(rig.subscription.position)
