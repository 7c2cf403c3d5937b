"""What is made at a start, what is compared, what is refused, and what a publish never does."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # it does not say that it has them

from tests.integration.kafka.conftest import Connect, plan, position
from tidings.brokers.kafka.broker import KafkaBroker
from tidings.errors import BrokerUnavailable, ConfigurationError, NotStored
from tidings.ports import Plan, StreamPlan
from tools.services.kafka import Kafka
from tools.services.ports import free_port

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="kafka")]


async def test_P1_a_publish_to_a_topic_that_is_not_there_raises_and_makes_none(connect: Connect, kafka: Kafka) -> None:
    rig = await connect(subscribe=False)
    (error,) = await rig.broker.publish([rig.message(b"1", stream="nowhere", type="nowhere.placed")], timeout=30)
    assert isinstance(error, NotStored)
    assert "nowhere" not in AdminClient({"bootstrap.servers": kafka.address}).list_topics(timeout=30).topics


async def test_P1_a_topic_that_was_removed_takes_nothing_and_does_not_come_back(connect: Connect, kafka: Kafka) -> None:
    rig = await connect(subscribe=False)
    await rig.publish(rig.message(b"1"))
    admin = AdminClient({"bootstrap.servers": kafka.address})
    admin.delete_topics([rig.subscription.stream])[rig.subscription.stream].result(30)
    (error,) = await rig.broker.publish([rig.message(b"2")], timeout=10)
    assert isinstance(error, (NotStored, BrokerUnavailable))
    assert rig.subscription.stream not in admin.list_topics(timeout=30).topics


async def test_a_name_that_would_collide_is_refused_with_the_reason(kafka: Kafka) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.address})
    one = position(position="collides.here")
    admin.create_topics([NewTopic("tidings-retry_collides.here", 1, 1)])["tidings-retry_collides.here"].result(30)
    broker = KafkaBroker(kafka.url)
    try:
        with pytest.raises(ConfigurationError, match="collides"):
            await broker.open(plan(one))
    finally:
        await broker.close()


@pytest.mark.parametrize("stream", ["Order", "order_lines", "tidings-dead"])
async def test_a_stream_that_cannot_be_a_topic_is_refused_when_it_is_declared(kafka: Kafka, stream: str) -> None:
    broker = KafkaBroker(kafka.url)
    try:
        with pytest.raises(ConfigurationError, match="cannot be a"):
            await broker.open(Plan(service="shop", streams=(StreamPlan(name=stream),)))
    finally:
        await broker.close()


async def test_another_keep_is_reported_and_not_applied(connect: Connect, kafka: Kafka) -> None:
    rig = await connect()
    assert await rig.feed.keeps() == timedelta(days=7 + 7), "and a segment may be open for a week"
    stream = StreamPlan(name=rig.subscription.stream, keep=timedelta(days=1))
    other = KafkaBroker(kafka.url)
    try:
        (drift,) = await other.open(Plan(service="other", streams=(stream,)))
    finally:
        await other.close()
    assert "retention.ms=86400000" in drift.remedy
    assert await rig.feed.keeps() == timedelta(days=7 + 7)


async def test_a_compacted_topic_cannot_keep_events(kafka: Kafka) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.address})
    admin.create_topics([NewTopic("compacted", 1, 1, config={"cleanup.policy": "compact"})])["compacted"].result(30)
    broker = KafkaBroker(kafka.url)
    try:
        with pytest.raises(ConfigurationError, match="compacted"):
            await broker.open(Plan(service="shop", streams=(StreamPlan(name="compacted"),)))
    finally:
        await broker.close()


async def test_a_stream_that_grew_takes_its_retry_routes_along(connect: Connect, kafka: Kafka) -> None:
    from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined]  # as above

    rig = await connect(subscribe=False)
    stream, retry = rig.subscription.stream, f"tidings-retry.{rig.subscription.position}"
    admin = AdminClient({"bootstrap.servers": kafka.address})
    admin.create_partitions([NewPartitions(stream, 6)])[stream].result(30)
    await connect(rig.subscription)
    assert len(admin.list_topics(timeout=30).topics[retry].partitions) == 6


async def test_a_deleted_group_is_no_position_any_more(connect: Connect, kafka: Kafka) -> None:
    rig = await connect(subscribe=False)
    name = rig.subscription.position
    service = name.split(".")[0]
    assert list(await rig.broker.positions(service)) == [name]
    admin = AdminClient({"bootstrap.servers": kafka.address})
    admin.delete_consumer_groups([name])[name].result(30)
    assert await rig.broker.positions(service) == {}
    renamed = msgspec.structs.replace(rig.subscription, position=f"{service}.renamed")
    await connect(renamed)


async def test_nobody_there_is_said_within_the_time(kafka: Kafka) -> None:
    broker = KafkaBroker(f"kafka://127.0.0.1:{free_port()}?connect_timeout=4s")
    try:
        with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1"):
            await broker.open(plan(position()))
    finally:
        await broker.close()


async def test_a_setting_that_the_library_does_not_know_is_said_at_the_start(kafka: Kafka) -> None:
    broker = KafkaBroker(f"{kafka.url}?no.such.setting=1")
    try:
        with pytest.raises(ConfigurationError, match=r"no\.such\.setting"):
            await broker.open(plan(position()))
    finally:
        await broker.close()


async def test_a_topic_of_another_number_of_partitions_than_the_url_says_is_told_and_not_changed(
    connect: Connect, kafka: Kafka
) -> None:
    one = (await connect(subscribe=False)).subscription
    for said, remedy in (("?partitions=6", "--partitions 6"), ("?partitions=2", "cannot have fewer"), ("", "")):
        broker = KafkaBroker(kafka.url + said)
        drifts = {drift.what: drift for drift in await broker.open(plan(one))}
        await broker.close()
        found = drifts.get(f"partitions of stream {one.stream}")
        assert (found is not None) == bool(said)
        assert found is None or (remedy in found.remedy and found.found == "4")
