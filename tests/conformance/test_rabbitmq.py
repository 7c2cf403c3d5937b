"""The suite on a real RabbitMQ, which syncs every message to disk and dies by SIGKILL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.conformance.rabbit_rig import RabbitRig
from tidings.testing.conformance import Conformance, Rig
from tools.services.rabbitmq import RabbitMQ

GAPS = {"history": "a queue keeps what comes after it was made, and until it is done"}
ON_ONE_NODE = {"cluster": "one node; test_rabbitmq_cluster.py has three"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.mark.server
@pytest.mark.proves(broker="rabbitmq")
class TestRabbitMQ(Conformance):
    gaps = GAPS
    apart = ON_ONE_NODE

    @pytest_asyncio.fixture
    async def rig(self, server: RabbitMQ) -> AsyncIterator[Rig]:
        rig = RabbitRig(server)
        yield rig
        await rig.close()
