"""The suite as one class."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import pytest_asyncio

from tidings.testing.conformance.bench import NOTHING, Bench
from tidings.testing.conformance.chains import Chains
from tidings.testing.conformance.clusters import Clusters
from tidings.testing.conformance.killed import Killed
from tidings.testing.conformance.networks import Networks
from tidings.testing.conformance.notes import Noting
from tidings.testing.conformance.ordering import Ordering
from tidings.testing.conformance.outages import Outages
from tidings.testing.conformance.plugin import SAYS, gaps_of
from tidings.testing.conformance.policy import Policy
from tidings.testing.conformance.positions import Positions
from tidings.testing.conformance.publishing import Publishing
from tidings.testing.conformance.rig import Rig
from tidings.testing.conformance.rolling import Rolling
from tidings.testing.conformance.routes import Routes
from tidings.testing.conformance.settling import Settling
from tidings.testing.conformance.shapes import Shapes
from tidings.testing.conformance.stage import Stage
from tidings.testing.conformance.steady import Steady


@pytest.mark.asyncio
class _Suite:
    """Gives each test its bench."""

    gaps: ClassVar[Mapping[str, str]] = NOTHING
    """What the adapter lacks and this run allows, with the reason: printed as ``not supported``. All else fails."""
    apart: ClassVar[Mapping[str, str]] = NOTHING
    """Parts that this run has no place for, with the reason, or where they run: printed as ``not in this run``."""

    @pytest.fixture
    def full(self, request: pytest.FixtureRequest) -> bool:
        """Whether the sizes are the full ones."""
        return bool(request.config.getoption("--conformance", "short") == "full")

    @pytest_asyncio.fixture
    async def bench(self, rig: Rig, full: bool, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
        allowed = {**self.gaps, **gaps_of(request.config)}
        bench = Bench(rig, request.node.name, full=full, gaps=allowed, apart=self.apart)
        try:
            yield bench
        finally:
            request.node.user_properties.append(("sizes", bench.sizes))
            if text := bench.report():
                line = f"{bench.features.name}  {request.node.originalname}  {text}"
                request.node.user_properties.append((SAYS, line))
            await bench.close()

    @pytest.fixture(params=["none", "sqlite"])
    def store(self, request: pytest.FixtureRequest) -> str:
        """What is behind the handlers: nothing, so that effects may repeat, or a database."""
        return str(request.param)

    @pytest.fixture
    def stage(self, bench: Bench, store: str, tmp_path: Path) -> Stage:
        return Stage(bench, store, tmp_path)


class PortConformance(Publishing, Settling, Routes, Noting, Positions, Ordering, Outages, _Suite):
    """Part A: what a broker does, at the level of `tidings.ports.Broker`. An adapter begins with these."""


class ClusterConformance(Clusters, _Suite):
    """Of part C what servers show that work as one; for a rig that is a `Cluster`."""


class FaultConformance(Steady, Killed, Networks, Clusters, _Suite):
    """Part C: services under a steady load, and what may happen to them, to the broker, and to the way between."""


class Conformance(FaultConformance, PortConformance, Policy, Shapes, Chains, Rolling):
    """All of it: the policy over real services, too. Subclass it and give it a `rig`::

    class TestMyBroker(Conformance):
        @pytest_asyncio.fixture
        async def rig(self) -> AsyncIterator[Rig]: ...
    """
