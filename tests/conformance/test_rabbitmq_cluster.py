"""What only a cluster shows, on three nodes of RabbitMQ: each queue stands on all of them; two must have a message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.conformance.rabbit_rig import RabbitClusterRig
from tidings.testing.conformance import ClusterConformance, Rig
from tools.services.rabbitmq_cluster import RabbitCluster

pytestmark = [pytest.mark.server, pytest.mark.long, pytest.mark.proves(broker="rabbitmq"), pytest.mark.timeout(900)]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RabbitCluster]:
    with RabbitCluster(tmp_path / "rabbitmq") as cluster:
        yield cluster


@pytest_asyncio.fixture
async def rig(cluster: RabbitCluster) -> AsyncIterator[Rig]:
    rig = RabbitClusterRig(cluster)
    yield rig
    await rig.close()


class TestRabbitCluster(ClusterConformance):
    """In the sizes that were asked for."""
