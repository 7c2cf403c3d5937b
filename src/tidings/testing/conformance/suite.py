"""The suite as one class."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tidings.testing.conformance.bench import Bench
from tidings.testing.conformance.ordering import Ordering
from tidings.testing.conformance.outages import Outages
from tidings.testing.conformance.plugin import REPORTS, Report
from tidings.testing.conformance.positions import Positions
from tidings.testing.conformance.publishing import Publishing
from tidings.testing.conformance.rig import Rig
from tidings.testing.conformance.routes import Routes
from tidings.testing.conformance.settling import Settling


@pytest.mark.asyncio
class _Suite:
    """Gives each test its bench."""

    @pytest_asyncio.fixture
    async def bench(self, rig: Rig, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
        full = request.config.getoption("--conformance", "short") == "full"
        bench = Bench(rig, request.node.name, full=full)
        try:
            yield bench
        finally:
            if text := bench.report():
                request.config.stash.setdefault(REPORTS, []).append(
                    Report(bench.features.name, request.node.originalname, text)
                )
            await bench.close()


class PortConformance(Publishing, Settling, Routes, Positions, Ordering, Outages, _Suite):
    """Part A: what a broker does, at the level of `tidings.ports.Broker`. An adapter begins with these."""


class Conformance(PortConformance):
    """All of it. Subclass it and give it a `rig`::

    class TestMyBroker(Conformance):
        @pytest_asyncio.fixture
        async def rig(self) -> AsyncIterator[Rig]: ...
    """
