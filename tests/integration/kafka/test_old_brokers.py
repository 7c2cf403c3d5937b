"""A Kafka from before 3.0: what it does like any other, and what it is not asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.integration.kafka.conftest import QUICK, Connect, plan, position, until
from tidings.brokers import examine
from tidings.brokers.kafka.broker import KafkaBroker
from tidings.delivery import Route
from tidings.errors import ConfigurationError
from tools.services.kafka import Kafka
from tools.services.kafka_old import OldKafka

pytestmark = [pytest.mark.server, pytest.mark.long, pytest.mark.proves(broker="kafka")]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OldKafka]:
    with OldKafka(tmp_path_factory.mktemp("old")) as server:
        yield server


async def test_P1_P3_an_old_broker_that_is_killed_loses_nothing_that_it_confirmed(
    old: OldKafka, connect: Connect
) -> None:
    rig = await connect(url=f"{old.url}?{QUICK}")
    bodies = [b"%d" % number for number in range(40)]
    await rig.publish(*(rig.message(body, key=body.decode()) for body in bodies[:20]))
    await until(lambda: len(rig.got) >= 20)
    await rig.ack(*rig.got[:10])
    await asyncio.to_thread(old.stop)
    await asyncio.to_thread(old.start)
    messages = [rig.message(body, key=body.decode()) for body in bodies[20:]]
    assert await rig.broker.publish(messages, timeout=30) == [None] * 20
    await until(lambda: set(rig.bodies) == set(bodies), 40)
    stored = [one.body async for one in rig.broker.read(Route.EVENT, rig.subscription.stream)]
    assert sorted(stored) == sorted(bodies), "stored once each, by a producer that repeats itself"


async def test_brokers_that_are_too_old_to_assign_are_named_at_the_start(old: OldKafka) -> None:
    broker = KafkaBroker(f"{old.url}?group.protocol=consumer")
    try:
        with pytest.raises(ConfigurationError, match=r"broker 1 \(Kafka 2\.4 to 2\.8\).*Leave that out"):
            await broker.open(plan(position()))
    finally:
        await broker.close()


async def test_the_doctor_says_how_old_a_broker_is_and_what_it_lacks(old: OldKafka, kafka: Kafka) -> None:
    for server, release in ((old, "2.4 to 2.8"), (kafka, "4.0 or newer")):
        told = [(one.level, one.what) for one in await examine(server.url)]
        assert ("fine", f"broker 1 understands what Kafka {release} does") in told
    lacking = "nothing would be handed over"
    (wrong,) = [one for one in await examine(f"{old.url}?group.protocol=consumer") if lacking in one.what]
    assert wrong.level == "wrong"
    assert "group.protocol=consumer" in wrong.remedy
    assert not [one for one in await examine(f"{kafka.url}?group.protocol=consumer") if lacking in one.what]
