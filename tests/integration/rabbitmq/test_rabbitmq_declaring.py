"""What a plan makes at the server, and what is said where something else stands there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import msgspec
import pytest
from pamqp import commands

from tests.integration.rabbitmq.conftest import Connect, plan, position
from tidings.brokers.rabbitmq import names, topology
from tidings.brokers.rabbitmq.broker import JUST_NOW, RabbitBroker
from tidings.brokers.rabbitmq.channel import Channel
from tidings.brokers.rabbitmq.connection import Connection
from tidings.brokers.rabbitmq.frames import Content
from tidings.brokers.rabbitmq.options import parse
from tidings.brokers.rabbitmq.reading import read_log
from tidings.brokers.rabbitmq.topology import Position, Topology
from tidings.errors import BrokerUnavailable, ConfigurationError, NotStored
from tidings.ports import Subscription
from tools.services.rabbitmq import RabbitMQ

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="rabbitmq")]


async def by_hand(url: str, *asked: commands.Queue.Declare | commands.Exchange.Declare) -> None:
    connection = Connection(parse(url), "by hand")
    try:
        channel = await (await connection.start()).channel(5)
        for one in asked:
            await channel.call(one, 5)
    finally:
        await connection.close()


def queue(name: str, **arguments: Any) -> commands.Queue.Declare:
    return commands.Queue.Declare(0, name, False, True, False, False, False, cast(Any, arguments))


async def opened(url: str, subscription: Subscription) -> Any:
    broker = RabbitBroker(url)
    try:
        return await broker.open(plan(subscription))
    finally:
        await broker.close()


async def test_trap_117_a_classic_queue_in_the_place_of_ours_is_refused(rabbitmq_url: str) -> None:
    subscription = position()
    await by_hand(rabbitmq_url, queue(subscription.position))
    with pytest.raises(ConfigurationError, match="is another than Tidings needs"):
        await opened(rabbitmq_url, subscription)


async def test_an_exchange_of_another_kind_is_refused(rabbitmq_url: str) -> None:
    subscription = position()
    asked = commands.Exchange.Declare(0, subscription.stream, "fanout", False, True, False, False, False, {})
    await by_hand(rabbitmq_url, asked)
    with pytest.raises(ConfigurationError, match=f"the exchange '{subscription.stream}' is there, and is another"):
        await opened(rabbitmq_url, subscription)


async def test_other_arguments_are_told_and_not_changed(rabbitmq_url: str) -> None:
    subscription = position()
    await by_hand(rabbitmq_url, queue(subscription.position, **{"x-queue-type": "quorum", "x-delivery-limit": 20}))
    (drift,) = await opened(rabbitmq_url, subscription)
    assert "x-delivery-limit" in drift.found
    assert f"rabbitmqctl delete_queue {subscription.position}" in drift.remedy


async def test_an_ordered_queue_without_a_single_active_consumer_is_refused(rabbitmq_url: str) -> None:
    subscription = position(ordered=True)
    await by_hand(rabbitmq_url, queue(names.share_queue(subscription.position, 0), **{"x-queue-type": "quorum"}))
    with pytest.raises(ConfigurationError, match="is another than Tidings needs"):
        await opened(rabbitmq_url, subscription)


async def test_a_position_stays_ordered_or_not(rabbitmq_url: str) -> None:
    subscription = position(ordered=True)
    await opened(rabbitmq_url, subscription)
    with pytest.raises(ConfigurationError, match="is ordered at the broker"):
        await opened(rabbitmq_url, msgspec.structs.replace(subscription, ordered=False))


async def test_a_renamed_handler_is_refused_with_the_commands_that_remove_it(rabbitmq_url: str) -> None:
    subscription = position("old")
    await opened(rabbitmq_url, subscription)
    renamed = msgspec.structs.replace(subscription, position=subscription.position.replace("old", "new"))
    with pytest.raises(ConfigurationError, match=r"rabbitmqctl delete_queue .*old\._retry"):
        await opened(rabbitmq_url, renamed)


async def test_a_type_that_nobody_asks_for_any_more_does_not_come(rabbitmq_url: str, connect: Connect) -> None:
    both = position()
    other = f"{both.stream}.closed"
    rig = await connect(rabbitmq_url, msgspec.structs.replace(both, types=(*both.types, other)))
    await rig.broker.publish([rig.message(b"1"), rig.message(b"2", type=other)], timeout=30)
    assert {one.body for one in await rig.settled(2)} == {b"1", b"2"}
    await rig.broker.open(plan(both))
    await rig.broker.publish([rig.message(b"as ever", type=other)], timeout=30)
    assert {one.body for one in await rig.settled(3)} == {b"1", b"2", b"as ever"}, "somebody may ask for it"
    await rig.broker.remember(both.position, both.types)
    assert await rig.broker.publish([rig.message(b"3", type=other), rig.message(b"4")], timeout=30) == [None, None]
    assert [one.body for one in await rig.settled(4)][3:] == [b"4"]
    assert await rig.broker.positions(both.stream) == {both.position: both.types}
    await rig.broker.remember(both.position, [*both.types, other])
    await rig.broker.publish([rig.message(b"5", type=other)], timeout=30)
    assert [one.body for one in await rig.settled(5)][4:] == [b"5"], "somebody did ask for it"


async def test_P3_a_type_that_could_not_be_bound_again_is_not_said_to_be_taken(
    rabbitmq_url: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody would look again, and of what is published nothing would come."""
    one = position()
    other = f"{one.stream}.closed"
    rig = await connect(rabbitmq_url, one)
    bind = Topology._bind

    async def cut_off(self: Topology, channel: Channel, queue: str, exchange: str, key: str) -> None:
        await channel.close(5)
        await bind(self, channel, queue, exchange, key)

    monkeypatch.setattr(Topology, "_bind", cut_off)
    with pytest.raises(BrokerUnavailable):
        await rig.broker.remember(one.position, [*one.types, other])
    await asyncio.sleep(JUST_NOW)
    assert await rig.broker.taken(one.position) == one.types


async def test_P3_P13_newer_code_that_starts_while_its_type_is_taken_away_gets_what_is_published(
    rabbitmq_url: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written down that nobody asks for it; before its bindings go, a process starts that does."""
    monkeypatch.setattr(topology, "until_all_know", lambda: asyncio.sleep(0))
    one = position()
    both = msgspec.structs.replace(one, types=(*one.types, f"{one.stream}.closed"))
    rig, new = await connect(rabbitmq_url, both), RabbitBroker(rabbitmq_url)
    write_down = rig.broker._write_down

    async def and_then_it_starts(news: Sequence[Position]) -> None:
        await write_down(news)
        await new.open(plan(both))

    monkeypatch.setattr(rig.broker, "_write_down", and_then_it_starts)
    await rig.broker.remember(both.position, one.types)
    await asyncio.sleep(JUST_NOW)
    assert set(await new.taken(both.position)) == set(both.types)
    assert await new.publish([rig.message(b"closed", type=both.types[-1])], timeout=30) == [None]
    assert [each.body for each in await rig.settled(1)] == [b"closed"]
    await new.close()


async def test_all_who_ask_together_what_they_take_wait_for_two_readings_at_most(
    rabbitmq_url: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty handlers start at once, and the server is far away."""
    rig = await connect(rabbitmq_url, subscribe=False)
    began: list[str] = []

    async def from_afar(connection: Connection, queue: str) -> AsyncIterator[Content]:
        began.append(queue)
        await asyncio.sleep(1.2 * JUST_NOW)
        async for one in read_log(connection, queue):
            yield one

    monkeypatch.setattr(topology, "read_log", from_afar)
    first = asyncio.create_task(rig.broker.taken(rig.subscription.position))
    await asyncio.sleep(JUST_NOW / 2)
    answers = await asyncio.gather(first, *(rig.broker.taken(rig.subscription.position) for _ in range(50)))
    assert answers == [rig.subscription.types] * 51
    assert len(began) <= 2


async def test_a_start_in_the_past_is_refused_because_there_is_none(rabbitmq_url: str) -> None:
    from datetime import UTC, datetime

    with pytest.raises(ConfigurationError, match="keeps no history"):
        await opened(rabbitmq_url, position(since=datetime.now(UTC)))


async def test_P3_P13_a_type_that_a_position_gains_is_written_down_and_told_before_its_first_event_can_come(
    rabbitmq_url: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await connect(rabbitmq_url)
    one = old.subscription
    closed = f"{one.stream}.closed"
    gains = msgspec.structs.replace(one, types=(*one.types, closed))
    waited: list[object] = []

    async def look() -> None:
        waited.append(sorted(await old.broker.taken(one.position)))
        waited.extend(await old.broker.publish([old.message(b"1", type=closed)], timeout=30))

    monkeypatch.setattr(topology, "until_all_know", look)
    new = RabbitBroker(rabbitmq_url)
    (drift,) = await new.open(plan(gains))
    assert waited[0] == sorted(gains.types)
    assert isinstance(waited[1], NotStored), "nothing of it can come yet"
    assert drift.what == f"types of {one.position}"
    assert f"What of {closed} comes to a process of the older code waits" in drift.remedy
    assert await new.open(plan(gains)) == []
    (drift,) = await old.broker.open(plan(one))
    assert f"What of {closed} comes to this process waits for one that asks for it" in drift.remedy
    assert await new.taken(one.position) == tuple(sorted(gains.types))
    await old.broker.remember(one.position, one.types)
    await asyncio.sleep(JUST_NOW)
    assert await new.taken(one.position) == one.types
    await old.broker.remember("nobody.there", one.types)
    assert await new.taken("nobody.there") == ()
    for broker in (old.broker, old.broker, new, new):
        await broker.close()


async def test_processes_that_start_at_once_wait_for_the_logs_that_one_of_them_is_making(server: RabbitMQ) -> None:
    """A log is known before its replica runs, and may not be read yet; here it is made anew, in some rounds."""
    subscription = position()
    connection = Connection(parse(server.url), "by hand")
    link = await connection.start()
    try:
        for _ in range(6):
            brokers = [RabbitBroker(server.url) for _ in range(8)]
            try:
                async with asyncio.timeout(60):
                    await asyncio.gather(*(broker.open(plan(subscription)) for broker in brokers))
            finally:
                for broker in brokers:
                    await broker.close()
            channel = await link.channel(20)
            for log in topology.LOGS:
                await channel.call(commands.Queue.Delete(0, log, False, False, False), 20)
            await channel.close(20)
    finally:
        await connection.close()
