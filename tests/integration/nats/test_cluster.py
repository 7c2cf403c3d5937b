"""What is different at a cluster: copies, elections, and consumers whose deliveries wait for a majority."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import nats
import pytest

from tests.integration.nats.cluster import NatsCluster
from tests.integration.nats.conftest import Connect, divided, plan, position, until
from tidings.brokers.nats.names import DEAD_STREAM, NOTE_STREAM, RETRY_STREAM
from tidings.delivery import ACK

pytestmark = pytest.mark.server

ELECTED = 60.0
"""Seconds in which an election, and whatever waits for it, has to be over."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    made = NatsCluster(tmp_path / "cluster").start()
    try:
        yield made
    finally:
        made.stop()


async def test_every_stream_and_position_has_as_many_copies_as_the_url_says(
    cluster: NatsCluster, connect: Connect
) -> None:
    await connect(cluster.url, position(ordered=True))
    await connect(cluster.url, position("post.count"))
    client = await nats.connect([node.url for node in cluster.nodes])
    jetstream = client.jetstream()
    for stream in ("order", RETRY_STREAM, DEAD_STREAM, NOTE_STREAM):
        assert (await jetstream.stream_info(stream)).config.num_replicas == 3
    for stream in ("order", RETRY_STREAM):
        for consumer in await jetstream.consumers_info(stream):
            assert consumer.cluster is not None
            assert len(consumer.cluster.replicas or []) == 2, f"{consumer.name} of {stream} has fewer copies"
    await client.close()


async def test_streams_with_other_numbers_of_copies_are_told(cluster: NatsCluster, connect: Connect) -> None:
    await connect(cluster.url.partition("?")[0])
    rig = await connect(cluster.url, subscribe=False)
    drifts = await rig.broker.open(plan(rig.subscription))
    assert "num_replicas of stream order: the code says 3, the broker has 1" in "\n".join(map(str, drifts))
    await rig.broker.close()


async def test_P11_what_a_majority_has_to_confirm_is_counted_before_it_comes(
    cluster: NatsCluster, connect: Connect
) -> None:
    """The server says that a request is served before it sends what it serves it with."""
    rig = await connect(cluster.url, position(max_in_flight=2), subscribe=False)
    await rig.publish(*(b"%d" % number for number in range(20)))
    await rig.subscribe()
    for done in range(0, 20, 2):
        await until(partial(rig.has, done + 2))
        await asyncio.sleep(0.05)
        backlog = await rig.feed.backlog()
        assert (backlog.in_flight, len(rig.got)) == (2, done + 2), "more was asked for than may be in flight"
        await rig.broker.settle([(delivery, ACK) for delivery in rig.open])


async def test_P8_a_successor_gathers_in_one_go_what_replicas_send_in_another_order(
    cluster: NatsCluster, connect: Connect
) -> None:
    subscription = position(ordered=True)
    first = await connect(cluster.url, subscription)
    second = await connect(cluster.url, subscription)
    await divided(first, second)
    bodies = [b"%d" % number for number in range(100)]
    await first.publish(*bodies)
    await until(lambda: len(first.got) + len(second.got) == len(bodies))
    leaving, staying = (first, second) if first.got else (second, first)
    await leaving.feed.close()
    await staying.settled(len(bodies), ELECTED)
    assert staying.bodies == bodies
    assert max(Counter(delivery.delivered for delivery in staying.got)) == 2, "some came more often than twice"


@pytest.mark.parametrize("count", [1, 40], ids=["alone", "a batch"])
async def test_P1_what_a_leader_that_hangs_never_answers_goes_to_its_successor(
    cluster: NatsCluster, connect: Connect, count: int
) -> None:
    rig = await connect(cluster.url, subscribe=False)
    hanging = cluster.nodes[await asyncio.to_thread(cluster.leader, "order")]
    other = next(node for node in cluster.nodes if node is not hanging)
    publisher = await connect(other.url, subscribe=False)
    bodies = [b"%d" % number for number in range(count)]
    hanging.pause()
    try:
        await publisher.publish(*bodies, timeout=ELECTED)
    finally:
        hanging.resume()
    await rig.subscribe()
    await rig.settled(count, ELECTED)
    await asyncio.sleep(0.5)
    assert sorted(rig.bodies) == sorted(bodies)


async def test_P10_a_service_that_starts_while_nobody_leads_the_cluster_waits_for_that(
    cluster: NatsCluster, connect: Connect
) -> None:
    await asyncio.to_thread(cluster.stop)
    await asyncio.to_thread(cluster.nodes[0].start)
    began = time.monotonic()
    opening = asyncio.ensure_future(connect(cluster.url))
    await asyncio.sleep(6.0)
    for node in cluster.nodes[1:]:
        await asyncio.to_thread(node.start)
    rig = await opening
    assert time.monotonic() - began >= 6.0
    await rig.publish(b"stored", timeout=ELECTED)
    await rig.settled(1, ELECTED)
