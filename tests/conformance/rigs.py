"""The rigs of the brokers in this repository."""

from __future__ import annotations

import asyncio

from tests.integration.nats.cluster import NatsCluster
from tests.integration.nats.server import NatsServer
from tidings.brokers.nats.broker import NatsBroker
from tidings.ports import Broker, Features
from tidings.testing import MemoryBroker


class MemoryRig:
    """One memory broker; each client is one of its own."""

    def __init__(self) -> None:
        self.server = MemoryBroker()

    @property
    def features(self) -> Features:
        return self.server.features

    async def broker(self) -> Broker:
        return self.server.client()

    async def restart(self, away: float = 0.0) -> None:
        await self.server.restart(away)

    async def close(self) -> None:
        await self.server.close()


class NatsRig:
    """A real server, killed by SIGKILL and started again; each client has connections of its own."""

    def __init__(self, server: NatsServer) -> None:
        self.server = server

    @property
    def features(self) -> Features:
        return NatsBroker(self.server.url).features

    async def broker(self) -> Broker:
        return NatsBroker(self.server.url)

    async def restart(self, away: float = 0.0) -> None:
        await asyncio.to_thread(self.server.stop)
        await asyncio.sleep(away)
        await asyncio.to_thread(self.server.start)

    async def close(self) -> None:
        """The server serves the next test, too."""


class ClusterRig:
    """A cluster of three; each client knows all of them, and has connections of its own."""

    def __init__(self, cluster: NatsCluster) -> None:
        self.cluster = cluster

    @property
    def features(self) -> Features:
        return NatsBroker(self.cluster.url).features

    async def broker(self) -> Broker:
        return NatsBroker(self.cluster.url)

    async def restart(self, away: float = 0.0) -> None:
        """All at once."""
        await asyncio.to_thread(self.cluster.stop)
        await asyncio.sleep(away)
        await asyncio.to_thread(self.cluster.start)

    @property
    def nodes(self) -> int:
        return len(self.cluster.nodes)

    async def leader(self, stream: str) -> int:
        return await asyncio.to_thread(self.cluster.stream_leader, stream)

    async def stop_node(self, node: int) -> None:
        await asyncio.to_thread(self.cluster.nodes[node].stop)

    async def start_node(self, node: int) -> None:
        await asyncio.to_thread(self.cluster.nodes[node].start)

    async def close(self) -> None:
        """The cluster serves the next test, too."""
