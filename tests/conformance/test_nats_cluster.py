"""The suite on a cluster of three nats-servers, each stream and position with a copy on each of them.

What only a cluster shows is in every run, shortened; the whole suite, and those tests in full length, take minutes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.conformance.rigs import ClusterRig
from tests.integration.nats.cluster import NatsCluster
from tidings.testing.conformance import ClusterConformance, Conformance, Rig

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="nats")]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    """For each test a fresh one: what other tests left would be hundreds of groups that elect leaders anew."""
    cluster = NatsCluster(tmp_path / "nats", jetstream="sync_interval: always").start()
    yield cluster
    cluster.stop()


@pytest_asyncio.fixture
async def rig(cluster: NatsCluster) -> AsyncIterator[Rig]:
    rig = ClusterRig(cluster)
    yield rig
    await rig.close()


class TestNatsCluster(ClusterConformance):
    """In the sizes that were asked for."""


@pytest.mark.long
@pytest.mark.timeout(900)
class TestNatsClusterInFull(ClusterConformance):
    """Thirty seconds without any server; a leader killed every ten seconds for two minutes."""

    @pytest.fixture
    def full(self) -> bool:
        return True


@pytest.mark.long
class TestNatsClusterAltogether(Conformance):
    """All of the suite."""
