"""The suite on a real nats-server."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.nats.server import NatsServer
from tidings.brokers.nats.broker import NatsBroker
from tidings.ports import Broker, Features
from tidings.testing.conformance import Conformance, Rig

ACK_WAIT = 3.0


class NatsRig:
    """A server of its own; a restart is a kill."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tidings-conformance-"))
        self.server = NatsServer(self._folder)

    @property
    def features(self) -> Features:
        return Features(name="nats")

    async def broker(self) -> Broker:
        return NatsBroker(f"{self.server.url}?ack_wait={ACK_WAIT}s")

    async def restart(self, away: float = 0.0) -> None:
        await asyncio.to_thread(self.server.stop)
        await asyncio.sleep(away)
        await asyncio.to_thread(self.server.start)

    async def close(self) -> None:
        await asyncio.to_thread(self.server.stop)
        await asyncio.to_thread(shutil.rmtree, self._folder)


@pytest.mark.server
@pytest.mark.proves(broker="nats")
class TestNats(Conformance):
    @pytest_asyncio.fixture
    async def rig(self) -> AsyncIterator[Rig]:
        rig = NatsRig()
        await asyncio.to_thread(rig.server.start)
        yield rig
        await rig.close()
