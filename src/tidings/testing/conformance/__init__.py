"""The conformance suite: what every broker adapter must show, run unchanged on each, with a ledger as the oracle.

An adapter's author writes a `Rig` and a test class::

    import pytest_asyncio
    from tidings.testing.conformance import Conformance, Rig

    class TestMyBroker(Conformance):
        @pytest_asyncio.fixture
        async def rig(self) -> AsyncIterator[Rig]:
            rig = MyRig()
            yield rig
            await rig.close()

and runs ``pytest -p tidings.testing.conformance.plugin``, with ``--conformance=full`` for the full sizes. What the
adapter's `Features` do not claim fails, unless the class names it in `gaps`: then it is listed as ``not supported`` at
the end, with the sizes and the ledgers' numbers.

Without a line of code, all that needs no hand on the server is tested on one that runs::

    pytest -p tidings.testing.conformance.plugin --pyargs tidings.testing.conformance --broker URL
"""

import pytest

_PARTS = """bench chains clusters consumer killed ledger load networks ordering outages policy positions process
publishing rolling routes settling shapes stage steady"""

pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS.split()))

from tidings.testing.conformance.bench import Bench  # noqa: E402  # assertions are to speak
from tidings.testing.conformance.rig import Cluster, Impatient, Network, Operator, Processes, Rig  # noqa: E402
from tidings.testing.conformance.stage import Stage  # noqa: E402
from tidings.testing.conformance.suite import ClusterConformance, Conformance, FaultConformance, PortConformance  # noqa: E402

__all__ = [
    "Bench",
    "Cluster",
    "ClusterConformance",
    "Conformance",
    "FaultConformance",
    "Impatient",
    "Network",
    "Operator",
    "PortConformance",
    "Processes",
    "Rig",
    "Stage",
]
