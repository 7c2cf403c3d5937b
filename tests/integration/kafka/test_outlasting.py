"""An event that outlasts the patience with which its partition is given away: two processes may be at work on it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.kafka_rig import KafkaRig
from tidings.brokers.kafka import feed
from tidings.delivery import Delivery
from tidings.testing.conformance import Bench, Stage
from tools.services.kafka import Kafka

pytestmark = [pytest.mark.server, pytest.mark.long]

KEYS = 16
JOINS = 6
"""So often another process comes and goes: which partitions move is the group's affair."""
EVENTS = 32
"""At each of them: seconds of work, since one at a time writes to the database, so that what moves may be at work."""


@pytest.mark.proves("P8", broker="kafka", store="sqlite")
async def test_P4_P8_an_event_that_outlasts_its_partition_is_applied_once_and_in_order(
    kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "PATIENCE", 0.05)
    bench = Bench(KafkaRig(kafka), "outlasting")
    stage = Stage(bench, "sqlite", tmp_path)

    async def slow(event: Any, delivery: Delivery) -> None:
        await asyncio.sleep(0.2)

    first, second = stage.service(), stage.service()
    position = stage.handle(first, slow, order="key", batch=1, worker="first")
    stage.handle(second, slow, order="key", batch=1, worker="second")
    ids: list[int] = []
    try:
        async with stage.running(first):
            for _ in range(JOINS):
                more = range(len(ids), len(ids) + EVENTS)
                await stage.publish(first, more, keys=KEYS)
                ids += more
                async with stage.running(second):
                    await stage.until_applied(position, ids[: -EVENTS // 4])
            await stage.until_applied(position, ids)
        stage.judge(position, ids)
        stage.check_order(position)
        assert stage.workers() == {"first", "second"}
        outlasted = stage.outcomes.of[position]["unsettled"]
        assert outlasted, "no event ran for longer than its partition was here: this has shown nothing"
    finally:
        await bench.close()
