"""The suite on a real Kafka, which dies by SIGKILL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.conformance.kafka_rig import BROKERS_ASSIGN, KafkaRig, with_far_port
from tidings.testing.conformance import Conformance, PortConformance, Rig
from tools.services.kafka import Kafka

ON_ONE_NODE = {"cluster": "one node; test_kafka_cluster.py has three"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    with with_far_port(Kafka(tmp_path_factory.mktemp("kafka"))) as server:
        yield server


@pytest.mark.server
@pytest.mark.proves(broker="kafka")
class TestKafka(Conformance):
    apart = ON_ONE_NODE

    @pytest_asyncio.fixture
    async def rig(self, server: Kafka) -> AsyncIterator[Rig]:
        rig = KafkaRig(server)
        yield rig
        await rig.close()


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
