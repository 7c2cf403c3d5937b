"""Publishing to a real Kafka: within its time, once in one process, and where every client of Kafka would put it."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from zlib import crc32

import pytest

from tests.integration.kafka.conftest import QUICK, Connect, Rig, plan, position, remove, until, until_equal
from tidings.brokers.kafka import publishing
from tidings.brokers.kafka.admin import AdminClient, NewTopic
from tidings.brokers.kafka.broker import KafkaBroker
from tidings.delivery import Route
from tidings.errors import BrokerUnavailable
from tidings.partition import slot_of
from tools.services.kafka import Kafka

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="kafka")]


async def test_P1_a_publish_ends_in_its_time_and_a_repeat_of_it_is_stored_once(tmp_path: Path) -> None:
    with Kafka(tmp_path / "own") as own:
        rig = Rig(KafkaBroker(f"{own.url}?{QUICK}"), position())
        try:
            await rig.broker.open(plan(rig.subscription))
            await rig.publish(rig.message(b"warm"))
            message = rig.message(b"1", id="the-same")
            own.pause()
            began = time.monotonic()
            for _ in range(2):
                (error,) = await rig.broker.publish([message], timeout=0.7)
                assert isinstance(error, BrokerUnavailable)
            assert time.monotonic() - began < 30, "the time that was given did not count"
            own.resume()
            assert await rig.broker.publish([message], timeout=20) == [None]
            stored = [one.body async for one in rig.broker.read(Route.EVENT, rig.subscription.stream)]
            assert stored == [b"warm", b"1"]
        finally:
            own.resume()
            await rig.broker.close()


async def test_P1_P10_a_producer_that_cannot_go_on_is_made_anew(tmp_path: Path) -> None:
    """A cluster that has lost what it had stored, and with it how far each producer was, refuses what comes next."""
    with Kafka(tmp_path / "own") as own:
        rig = Rig(KafkaBroker(f"{own.url}?{QUICK}"), position())
        try:
            await rig.broker.open(plan(rig.subscription))
            await rig.publish(rig.message(b"kept"))
            own.stop()
            shutil.copytree(own.folder / "data", tmp_path / "copy")
            own.start()
            for _ in range(2):
                await rig.publish(rig.message(b"lost by the cluster"))
            own.stop()
            shutil.rmtree(own.folder / "data")
            shutil.copytree(tmp_path / "copy", own.folder / "data")
            own.start()
            message = rig.message(b"after")

            async def publish() -> object:
                return await rig.broker.publish([message], timeout=3)

            await until_equal(publish, [None], 60)
            await rig.publish(*(rig.message(b"%d" % n) for n in range(3)))
            stored = [one.body async for one in rig.broker.read(Route.EVENT, rig.subscription.stream)]
            assert stored == [b"kept", b"after", b"0", b"1", b"2"]
        finally:
            await rig.broker.close()


@pytest.mark.parametrize(("noticed", "away"), [(False, 5.0), (True, 2.0)], ids=["by the producer", "by a question"])
async def test_P1_a_topic_that_is_denied_for_a_moment_is_asked_for_again(
    connect: Connect, kafka: Kafka, noticed: bool, away: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a broker that has just started may do, where ZooKeeper is to tell it of its topics."""
    monkeypatch.setattr(publishing, "KNOWN_WITHIN", 30.0)
    rig = await connect(subscribe=False)
    await rig.publish(rig.message(b"before"))
    stream, admin = rig.subscription.stream, AdminClient({"bootstrap.servers": kafka.address})
    await remove(kafka, stream)
    if noticed:
        assert rig.broker._link is not None
        await rig.broker._link.refresh()
    storing = asyncio.create_task(rig.broker.publish([rig.message(b"1"), rig.message(b"2")], timeout=60))
    await asyncio.sleep(away)  # the library looks for it for three seconds before it says anything
    assert not storing.done()
    await asyncio.wrap_future(admin.create_topics([NewTopic(stream, 4, 1)])[stream])
    assert await storing == [None, None]
    assert [one.body async for one in rig.broker.read(Route.EVENT, stream)] == [b"1", b"2"]


async def test_P8_a_key_has_the_partition_that_every_client_gives_it(connect: Connect) -> None:
    rig = await connect()
    keys = ["k", "key é", "0123456789abcdef", "x" * 200]
    await rig.publish(*(rig.message(key.encode(), key) for key in keys))
    await until(lambda: len(rig.got) == len(keys))
    assert {bytes(one.body).decode(): one.origin[1] for one in rig.got} == {key: slot_of(key, 4) for key in keys}


async def test_P8_another_partitioner_gives_an_event_and_its_copies_the_same_partition(
    connect: Connect, kafka: Kafka
) -> None:
    rig = await connect(url=f"{kafka.url}?{QUICK}&partitioner=consistent_random")
    keys = ["k", "key é", "0123456789abcdef", "x" * 200]
    wanted = {key: crc32(key.encode()) % 4 for key in keys}
    assert wanted != {key: slot_of(key, 4) for key in keys}
    await rig.publish(*(make(key.encode(), key=key) for key in keys for make in (rig.message, rig.copy)))
    await until(lambda: len(rig.got) == 2 * len(keys))
    assert sorted((bytes(one.body).decode(), one.origin[1]) for one in rig.got) == sorted([*wanted.items()] * 2)


async def test_what_has_no_key_keeps_the_order_of_its_call(connect: Connect) -> None:
    rig = await connect()
    for begin in (0, 50):
        await rig.publish(*(rig.message(b"%d" % n, None) for n in range(begin, begin + 50)))
    stored = [int(one.body) async for one in rig.broker.read(Route.EVENT, rig.subscription.stream)]
    assert stored == list(range(100))


async def test_a_closed_broker_says_that_nothing_was_sent(connect: Connect) -> None:
    rig = await connect(subscribe=False)
    publisher = rig.broker._publisher
    assert publisher is not None
    await rig.broker.close()
    (error,) = await publisher.publish([rig.message(b"1")], 1.0)
    assert isinstance(error, BrokerUnavailable)
    assert "nothing was sent" in str(error)
