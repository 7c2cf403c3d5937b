"""For how long a topic really keeps its events, which is for how long their ids have to be known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it does not say that it has them
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from tests.integration.kafka.conftest import Rig, position
from tidings.brokers.kafka.broker import KafkaBroker
from tidings.brokers.kafka.topics import lasts
from tidings.delivery import Route
from tidings.ports import Plan, StreamPlan
from tools.services.kafka import Kafka

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="kafka")]

KEEP = timedelta(seconds=4)
"""Longer than a machine stands still: what is newer than that must be there all the time."""


@pytest.fixture(scope="module")
def tidy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A node that looks for what is too old all the time, and not every five minutes."""
    often = {"log_retention_check_interval_ms": "100", "log_initial_task_delay_ms": "0"}
    with Kafka(tmp_path_factory.mktemp("tidy"), **often) as server:
        yield server


def segments_of(server: Kafka, topic: str, span: timedelta) -> None:
    """A new segment begins after so long."""
    entry = ConfigEntry(
        "segment.ms", str(int(span.total_seconds() * 1000)), incremental_operation=AlterConfigOpType.SET
    )
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": server.address})
    admin.incremental_alter_configs([resource])[resource].result(30)


async def test_P4_an_id_is_known_for_as_long_as_its_event_stands_in_a_segment_that_is_not_too_old_as_a_whole(
    tidy: Kafka,
) -> None:
    """A segment goes when its newest record is too old. Until then its first one can be replayed."""
    rig = Rig(KafkaBroker(f"{tidy.url}?partitions=1"), position())
    stream = rig.subscription.stream
    try:
        streams = (StreamPlan(name=stream, keep=KEEP),)
        await rig.broker.open(Plan(service=stream, streams=streams, subscriptions=(rig.subscription,)))
        await rig.subscribe()
        began = time.time()
        await rig.publish(rig.message(b"first"))

        async def is_there() -> bool:
            await rig.publish(rig.message(b"more"))
            await asyncio.sleep(0.1)
            return b"first" in [one.body async for one in rig.broker.read(Route.EVENT, stream)]

        while (age := timedelta(seconds=time.time() - began)) < 2.5 * KEEP:
            assert await is_there()
        keeps = await rig.feed.keeps()
        assert keeps is not None
        assert keeps > age, "it is there, and its id would be forgotten"
        assert keeps == timedelta(days=7) + KEEP, "Kafka's own time for a segment"

        segments_of(tidy, stream, KEEP)
        async with asyncio.timeout(60):
            while await is_there():
                pass
        assert await rig.feed.keeps() == 2 * KEEP
    finally:
        await rig.broker.close()


@pytest.mark.parametrize(
    "settings", [{"retention.ms": "-1"}, {"retention.ms": str(2**63 - 1)}, {"retention.ms": "1000"}]
)
def test_without_an_end_of_either_time_an_id_is_never_forgotten(settings: dict[str, str]) -> None:
    assert lasts({"segment.ms": str(2**63 - 1), **settings}) is None
    week = {"segment.ms": "604800000", **settings}
    assert lasts(week) == (timedelta(days=7, seconds=1) if settings["retention.ms"] == "1000" else None)
