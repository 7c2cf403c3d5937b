"""The rigs of the brokers in this repository."""

from __future__ import annotations

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
