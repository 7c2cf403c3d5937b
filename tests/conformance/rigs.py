"""The rigs of the brokers in this repository."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.conformance.nodes import OfNodes
from tests.integration.nats.cluster import NatsCluster
from tests.integration.nats.server import NatsServer, Proxy
from tidings.brokers.nats.api import Api
from tidings.brokers.nats.broker import NatsBroker
from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.consumers import event_consumers, find_consumer
from tidings.brokers.nats.options import parse
from tidings.ports import Broker, Features, Plan
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

    async def impatient_broker(self, ack_wait: float) -> Broker:
        """What a feed has stays with it until that ends, and is given to others for no time that passes."""
        return self.server.client()

    async def restart(self, away: float = 0.0) -> None:
        await self.server.restart(away)

    async def close(self) -> None:
        await self.server.close()


class _NatsRig:
    """What a server and a cluster have in common: addresses, and proxies on another way there."""

    def __init__(self, ports: Sequence[int], query: str = "") -> None:
        self._ports = ports
        self._query = query
        self._proxies: list[Proxy] = []

    @property
    def features(self) -> Features:
        return NatsBroker(self._url()).features

    async def broker(self) -> Broker:
        return NatsBroker(self._url())

    async def impatient_broker(self, ack_wait: float) -> Broker:
        return NatsBroker(self._url(ack_wait=f"{ack_wait}s"))

    @property
    def url(self) -> str:
        return self._url(ack_wait="1s")

    def _url(self, ports: Sequence[int] = (), **options: str) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports or self._ports)
        query = "&".join(filter(None, [self._query, *(f"{name}={value}" for name, value in options.items())]))
        return f"nats://{hosts}?{query}"

    async def widen(self, plan: Plan) -> None:
        """As the command does that the warning shows."""
        connection = Connection(parse(self._url()), "operator")
        await connection.start()
        api = Api(connection)
        for one in plan.subscriptions:
            for wanted in event_consumers(one, 30.0):
                found = await find_consumer(api, one.stream, wanted["name"])
                assert found is not None
                config = {**found["config"], "filter_subjects": wanted["filter_subjects"], "filter_subject": ""}
                body = {"stream_name": one.stream, "config": config, "action": "update"}
                await api.call(f"CONSUMER.CREATE.{one.stream}.{wanted['name']}", body)
        await connection.close()

    # ── the way there ───────────────────────────────────────────────────────────────────────────────────────────────

    async def far_broker(self) -> Broker:
        if not self._proxies:
            self._proxies = [await Proxy(port).start() for port in self._ports]
        return NatsBroker(self._url([proxy.port for proxy in self._proxies]))

    async def lose(self) -> None:
        for proxy in self._proxies:
            proxy.hold()

    async def mend(self) -> None:
        for proxy in self._proxies:
            proxy.release()

    async def strand(self) -> None:
        for proxy in self._proxies:
            proxy.freeze()

    async def close(self) -> None:
        """The server serves the next test, too."""
        for proxy in self._proxies:
            await proxy.stop()


class NatsRig(_NatsRig):
    """A real server, killed by SIGKILL and started again; each client has connections of its own."""

    def __init__(self, server: NatsServer) -> None:
        super().__init__([server.port])
        self._server = server

    async def restart(self, away: float = 0.0) -> None:
        await asyncio.to_thread(self._server.stop)
        await asyncio.sleep(away)
        await asyncio.to_thread(self._server.start)


class ClusterRig(OfNodes, _NatsRig):
    """A cluster of three; each client knows all of them, and has connections of its own."""

    def __init__(self, cluster: NatsCluster) -> None:
        OfNodes.__init__(self, cluster)
        _NatsRig.__init__(self, [node.port for node in cluster.nodes], f"replicas={self.nodes}")
