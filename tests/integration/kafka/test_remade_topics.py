"""A topic that is made anew with fewer partitions while an event is on its way to one of those that are gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.integration.kafka.between import PRODUCE, Between
from tests.integration.kafka.conftest import QUICK, Connect, Rig, remove, until, until_equal
from tidings.brokers.kafka.admin import AdminClient, NewTopic
from tidings.delivery import Route
from tidings.partition import slot_of
from tools.services.kafka import Kafka
from tools.services.ports import free_port

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="kafka")]


async def test_P1_what_was_on_its_way_to_a_partition_that_is_gone_is_sent_to_one_that_is_there(
    tmp_path: Path, connect: Connect
) -> None:
    server = Kafka(tmp_path / "server")
    server.far_advertised = f"127.0.0.1:{free_port()}"
    between = await Between(server.far_port, int(server.far_advertised.rpartition(":")[2])).start()
    with server:
        try:
            rig = await connect(url=f"kafka://{server.far_advertised}?{QUICK}", subscribe=False)
            stream, admin = rig.subscription.stream, AdminClient({"bootstrap.servers": server.address})
            key = next(str(n) for n in range(100) if slot_of(str(n), 4) == 3)
            await rig.publish(rig.message(b"before", key))
            between.keeps = PRODUCE
            both = [rig.message(b"1", key), rig.message(b"2", key)]
            storing = asyncio.create_task(rig.broker.publish(both, timeout=60))
            await until(lambda: between.kept)
            await remove(server, stream)
            await asyncio.wrap_future(admin.create_topics([NewTopic(stream, 1, 1)])[stream])
            await until_equal(lambda: partitions_seen(rig), 1)
            assert not storing.done()
            between.pass_on()  # the library says of both that its handle was destroyed
            assert await storing == [None, None]
            assert [one.body async for one in rig.broker.read(Route.EVENT, stream)] == [b"1", b"2"]
            await rig.broker.close()
        finally:
            await between.stop()


async def partitions_seen(rig: Rig) -> int:
    """How many partitions of the stream the producer has been told of."""
    assert rig.broker._publisher is not None
    producer, stream = rig.broker._publisher._producer, rig.subscription.stream
    return len((await asyncio.to_thread(producer.list_topics, stream, 10)).topics[stream].partitions)
