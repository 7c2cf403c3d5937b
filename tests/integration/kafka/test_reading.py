"""Following a log on a real Kafka: a slow reader gets everything, and does not fill the memory."""

from __future__ import annotations

import asyncio

import pytest
from confluent_kafka import Message as Record

from tests.integration.kafka.conftest import Connect
from tidings.brokers.kafka import reading
from tidings.delivery import Route

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="kafka")]


async def test_P11_a_follower_that_is_slower_than_the_log_gets_all_of_it_and_keeps_little_in_memory(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_COMING", 20)
    rig = await connect(subscribe=False)
    stream = rig.subscription.stream
    got: list[bytes] = []
    came = most = 0

    class Watched(reading.Coming):
        def take(self, records: list[Record]) -> None:
            nonlocal came, most
            super().take(records)
            came += len(records)
            most = max(most, len(self._records))

    monkeypatch.setattr(reading, "Coming", Watched)

    async def follow() -> None:
        async for delivery in rig.broker.read(Route.EVENT, stream, follow=True):
            if delivery is not None:
                got.append(delivery.body)
                await asyncio.sleep(0.001)
            if len(got) == 630:
                return

    await rig.publish(*(rig.message(b"%d" % n) for n in range(30)))
    async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        for number in range(30, 630, 30):
            await rig.publish(*(rig.message(b"%d" % n) for n in range(number, number + 30)))
            await asyncio.sleep(0.01)
    assert got == [b"%d" % n for n in range(630)]
    assert came > 0, "nothing came while it followed"
    assert most <= 20
