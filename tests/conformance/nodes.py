"""What the rigs of clusters have in common: nodes that are killed and started again, all of them or one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol


class Node(Protocol):
    def start(self) -> object: ...

    def stop(self) -> object: ...


class Nodes(Protocol):
    """A cluster, as the project's scripts start one."""

    @property
    def nodes(self) -> Sequence[Node]: ...

    def start(self) -> object: ...

    def stop(self) -> object: ...

    def leader(self, stream: str) -> int: ...


class OfNodes:
    """See `tidings.testing.conformance.Cluster`; the cluster is its fixture's."""

    def __init__(self, cluster: Nodes) -> None:
        self._cluster = cluster

    async def restart(self, away: float = 0.0) -> None:
        """All at once."""
        await asyncio.to_thread(self._cluster.stop)
        await asyncio.sleep(away)
        await asyncio.to_thread(self._cluster.start)

    @property
    def nodes(self) -> int:
        return len(self._cluster.nodes)

    async def leader(self, stream: str) -> int:
        return await asyncio.to_thread(self._cluster.leader, stream)

    async def stop_node(self, node: int) -> None:
        await asyncio.to_thread(self._cluster.nodes[node].stop)

    async def start_node(self, node: int) -> None:
        await asyncio.to_thread(self._cluster.nodes[node].start)
