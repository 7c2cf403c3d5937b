"""The rigs of RabbitMQ: one node, and three that work as one."""

from __future__ import annotations

import asyncio

from tests.conformance.nodes import OfNodes
from tests.proxy import Proxy
from tidings.brokers.rabbitmq.broker import RabbitBroker
from tidings.ports import Broker, Features
from tools.services.rabbitmq import RabbitMQ
from tools.services.rabbitmq_cluster import RabbitCluster


class RabbitRig:
    """A real server, killed by SIGKILL and started again; each client has connections of its own."""

    def __init__(self, server: RabbitMQ) -> None:
        self._server = server
        self._proxy: Proxy | None = None

    @property
    def features(self) -> Features:
        return RabbitBroker(self.url).features

    @property
    def url(self) -> str:
        return self._url(self._server.port)

    def _url(self, port: int) -> str:
        return f"amqp://tidings:tidings@127.0.0.1:{port}?heartbeat=4s"

    async def broker(self) -> Broker:
        return RabbitBroker(self.url)

    async def impatient_broker(self, ack_wait: float) -> Broker:
        """What is not settled is delivered again when its channel ends, and for no time that passes."""
        return RabbitBroker(self.url)

    async def restart(self, away: float = 0.0) -> None:
        await asyncio.to_thread(self._server.stop)
        await asyncio.sleep(away)
        await asyncio.to_thread(self._server.start)

    async def far_broker(self) -> Broker:
        if self._proxy is None:
            self._proxy = await Proxy(self._server.port).start()
        return RabbitBroker(self._url(self._proxy.port))

    async def lose(self) -> None:
        assert self._proxy is not None
        self._proxy.hold()

    async def mend(self) -> None:
        assert self._proxy is not None
        self._proxy.release()

    async def strand(self) -> None:
        assert self._proxy is not None
        self._proxy.freeze()

    async def close(self) -> None:
        """The server serves the next test, too."""
        if self._proxy is not None:
            await self._proxy.stop()


class RabbitClusterRig(OfNodes):
    """Three nodes; each client knows all of them."""

    def __init__(self, cluster: RabbitCluster) -> None:
        super().__init__(cluster)
        self.url = f"{cluster.url}?heartbeat=4s&group_size={self.nodes}"

    @property
    def features(self) -> Features:
        return RabbitBroker(self.url).features

    async def broker(self) -> Broker:
        return RabbitBroker(self.url)

    async def close(self) -> None:
        """Nothing is its own."""
