"""The rig of the Kafka adapter: one real node, killed by SIGKILL and started again."""

from __future__ import annotations

import asyncio
from typing import Final

from tests.conformance.nodes import OfNodes
from tests.proxy import Proxy
from tidings.brokers.kafka.broker import KafkaBroker
from tidings.ports import Broker, Features
from tools.services.kafka import Kafka
from tools.services.kafka_cluster import KafkaCluster
from tools.services.ports import free_port

QUICK: Final = "session_timeout=3s&join=3s&heartbeat.interval.ms=100"
"""So that who joins has its part when it says so, and who died is soon known to be dead."""


BROKERS_ASSIGN: Final = "group.protocol=consumer&join=5s"
"""The newer protocol of groups, in which the brokers say who has what."""


class KafkaRig:
    """Each client has connections of its own. Far ones come by a second listener, which tells them to use a proxy."""

    def __init__(self, server: Kafka, query: str = QUICK) -> None:
        self._server = server
        self._query = query
        self._proxy: Proxy | None = None

    @property
    def features(self) -> Features:
        return KafkaBroker(self._server.url).features

    @property
    def url(self) -> str:
        return f"{self._server.url}?{self._query}"

    async def broker(self) -> Broker:
        return KafkaBroker(self.url)

    async def impatient_broker(self, ack_wait: float) -> Broker:
        """What a process of Kafka's has to keep alive is its membership, for all that it has."""
        return KafkaBroker(f"{self._server.url}?session_timeout={ack_wait}s&join=3s&heartbeat.interval.ms=100")

    async def restart(self, away: float = 0.0) -> None:
        await asyncio.to_thread(self._server.stop)
        await asyncio.sleep(away)
        await asyncio.to_thread(self._server.start)

    async def close(self) -> None:
        """The server serves the next test, too."""
        if self._proxy is not None:
            await self._proxy.stop()

    # ── the way there ───────────────────────────────────────────────────────────────────────────────────────────────

    async def far_broker(self) -> Broker:
        port = int(self._server.far_advertised.rpartition(":")[2])
        if self._proxy is None:
            self._proxy = await Proxy(self._server.far_port, port).start()
        return KafkaBroker(f"kafka://127.0.0.1:{port}?{self._query}")

    async def lose(self) -> None:
        if self._proxy is not None:
            self._proxy.hold()

    async def mend(self) -> None:
        if self._proxy is not None:
            self._proxy.release()

    async def strand(self) -> None:
        if self._proxy is not None:
            self._proxy.freeze()


class KafkaClusterRig(OfNodes):
    """Three nodes; each client knows all of them."""

    def __init__(self, cluster: KafkaCluster) -> None:
        super().__init__(cluster)
        self.url = f"{cluster.url}?{QUICK}"

    @property
    def features(self) -> Features:
        return KafkaBroker(self.url).features

    async def broker(self) -> Broker:
        return KafkaBroker(self.url)

    async def close(self) -> None:
        """Nothing is its own."""


def with_far_port(server: Kafka) -> Kafka:
    """A server whose second listener sends its clients to a proxy's port."""
    server.far_advertised = f"127.0.0.1:{free_port()}"
    return server
