"""What an adapter's author provides: a way to fresh clients, and to a server that goes away and comes back."""

from __future__ import annotations

from typing import Protocol

from tidings.ports import Broker, Features


class Rig(Protocol):
    """A server with an adapter for it."""

    @property
    def features(self) -> Features:
        """What the adapter claims; the suite asks for all of it, and for nothing else."""

    async def broker(self) -> Broker:
        """A new client, not opened yet, as another process would have."""

    async def restart(self, away: float = 0.0) -> None:
        """Stop the server as hard as it may happen, leave it away for so many seconds, and start it again.

        Returns once it can be connected to. Only called where `features.restart` says that it can.
        """

    async def close(self) -> None:
        """Let go of everything. The suite has closed its clients by then."""
