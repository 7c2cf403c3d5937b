"""What only a cluster shows, on three nodes of Kafka: each stream has a copy on each, and two of them must have it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.conformance.kafka_rig import KafkaClusterRig
from tidings.testing.conformance import ClusterConformance, Rig
from tools.services.kafka_cluster import KafkaCluster

pytestmark = [pytest.mark.server, pytest.mark.long, pytest.mark.proves(broker="kafka"), pytest.mark.timeout(900)]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[KafkaCluster]:
    with KafkaCluster(tmp_path / "kafka") as cluster:
        yield cluster


@pytest_asyncio.fixture
async def rig(cluster: KafkaCluster) -> AsyncIterator[Rig]:
    rig = KafkaClusterRig(cluster)
    yield rig
    await rig.close()


class TestKafkaCluster(ClusterConformance):
    """In the sizes that were asked for."""
