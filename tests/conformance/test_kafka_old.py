"""The suite on a Kafka from before 3.0."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.conformance.kafka_rig import KafkaRig, with_far_port
from tests.conformance.test_kafka import ON_ONE_NODE
from tidings.testing.conformance import Conformance, Rig
from tools.services.kafka import Kafka
from tools.services.kafka_old import OldKafka

pytestmark = [pytest.mark.server, pytest.mark.long, pytest.mark.proves(broker="kafka")]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    with with_far_port(OldKafka(tmp_path_factory.mktemp("kafka"))) as server:
        yield server


class TestOldKafka(Conformance):
    apart = ON_ONE_NODE

    @pytest_asyncio.fixture
    async def rig(self, old: Kafka) -> AsyncIterator[Rig]:
        rig = KafkaRig(old)
        yield rig
        await rig.close()
