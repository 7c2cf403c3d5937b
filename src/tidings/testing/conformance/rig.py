"""What an adapter's author provides: a way to fresh clients, and to servers that go away and come back.

A `Rig` is what the suite cannot do without. What else a rig can do it says by having the methods of `Cluster` and the
others beside those of `Rig`; what it has not fails the tests that need it, unless their class says why it is missing.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from tidings.ports import Broker, Features, Plan


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


@runtime_checkable
class Cluster(Protocol):
    """What a rig has beside the rest if its servers work as one, each with a copy of everything."""

    @property
    def nodes(self) -> int:
        """How many there are; a majority works."""

    async def leader(self, stream: str) -> int:
        """The place of the node that leads a stream: the one whose death is felt most."""

    async def stop_node(self, node: int) -> None:
        """Stop one as hard as it may happen."""

    async def start_node(self, node: int) -> None:
        """Start it again. Returns once it can be connected to."""


@runtime_checkable
class Network(Protocol):
    """What a rig has beside the rest if what passes between a client and the broker can get lost."""

    async def far_broker(self) -> Broker:
        """A new client, not opened yet, whose way to the broker this rig can cut; those of `broker` are not cut off."""

    async def lose(self) -> None:
        """Let nothing pass any more between far clients and the broker, in neither direction, and close nothing.

        What is sent meanwhile may come late, after `mend`, as a network that comes back would bring it.
        """

    async def strand(self) -> None:
        """Let nothing pass ever again over the connections that far clients have, and close nothing; new ones work."""

    async def mend(self) -> None:
        """Let everything pass again, after `lose`."""


@runtime_checkable
class Impatient(Protocol):
    """What a rig has beside the rest if its broker delivers again what was not settled or kept alive for a time."""

    async def impatient_broker(self, ack_wait: float) -> Broker:
        """A new client, not opened yet, whose positions have that time: so many seconds, one at least."""


@runtime_checkable
class Operator(Protocol):
    """What a rig has beside the rest if its broker leaves it to an operator which types a position takes."""

    async def widen(self, plan: Plan) -> None:
        """Have the positions of a plan, which exist, take the types that it says."""


@runtime_checkable
class Processes(Protocol):
    """What a rig has beside the rest if a process of its own can reach its broker."""

    @property
    def url(self) -> str:
        """What such a process says to `Service(broker=…)`; what it leaves behind comes again soon."""
