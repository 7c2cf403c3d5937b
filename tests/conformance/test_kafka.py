"""The suite on a real Kafka, which dies by SIGKILL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.conformance.kafka_rig import BROKERS_ASSIGN, KafkaRig, with_far_port
from tidings.testing.conformance import Bench, Conformance, PortConformance, Rig
from tools.services.kafka import Kafka


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    with with_far_port(Kafka(tmp_path_factory.mktemp("kafka"))) as server:
        yield server


@pytest.mark.server
@pytest.mark.proves(broker="kafka")
class TestKafka(Conformance):
    @pytest_asyncio.fixture
    async def rig(self, server: Kafka) -> AsyncIterator[Rig]:
        rig = KafkaRig(server)
        yield rig
        await rig.close()

    @pytest.mark.xfail(
        reason="a group gives the partition of an event that does not come to its end to a process that joins, once the"
        " one that has it was given the time to finish it; it cannot refuse as a share of NATS can",
        strict=False,
    )
    async def test_P8_a_standby_takes_over_in_order_what_the_active_one_had(self, bench: Bench) -> None:
        await super().test_P8_a_standby_takes_over_in_order_what_the_active_one_had(bench)


@pytest.mark.server
@pytest.mark.long
@pytest.mark.proves(broker="kafka")
class TestKafkaWhereTheBrokersAssign(PortConformance):
    """The part of the port with the newer protocol of groups."""

    @pytest_asyncio.fixture
    async def rig(self, server: Kafka) -> AsyncIterator[Rig]:
        rig = KafkaRig(server, BROKERS_ASSIGN)
        yield rig
        await rig.close()
