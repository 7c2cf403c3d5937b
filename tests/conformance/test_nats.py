"""The suite on a real nats-server, which syncs every message to disk and dies by SIGKILL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.conformance.rigs import NatsRig
from tests.integration.nats.server import NatsServer
from tidings.testing.conformance import Conformance, Rig

ON_ONE_SERVER = {"cluster": "one server; test_nats_cluster.py has three"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"), jetstream="sync_interval: always").start()
    yield server
    server.stop()


@pytest.mark.server
@pytest.mark.proves(broker="nats")
class TestNats(Conformance):
    apart = ON_ONE_SERVER

    @pytest_asyncio.fixture
    async def rig(self, server: NatsServer) -> AsyncIterator[Rig]:
        rig = NatsRig(server)
        yield rig
        await rig.close()
