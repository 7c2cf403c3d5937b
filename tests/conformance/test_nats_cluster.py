"""The suite on a cluster of three nats-servers, each stream and position with a copy on each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.conformance.rigs import ClusterRig
from tests.integration.nats.cluster import NatsCluster
from tidings.testing.conformance import Conformance, Rig


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    """For each test a fresh one: what other tests left would be hundreds of groups that elect leaders anew."""
    cluster = NatsCluster(tmp_path / "nats", jetstream="sync_interval: always").start()
    yield cluster
    cluster.stop()


@pytest.mark.server
@pytest.mark.proves(broker="nats")
class TestNatsCluster(Conformance):
    @pytest_asyncio.fixture
    async def rig(self, cluster: NatsCluster) -> AsyncIterator[Rig]:
        rig = ClusterRig(cluster)
        yield rig
        await rig.close()
