"""The suite on the memory broker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.conformance.rigs import MemoryRig
from tidings.testing.conformance import Conformance, Rig

NO_SERVER = {
    "cluster": "it lives in the process that uses it: there are no servers",
    "network": "it lives in the process that uses it: nothing lies between",
    "processes": "it lives and dies with the process that uses it: no other can reach it",
}


@pytest.mark.proves(broker="memory")
class TestMemory(Conformance):
    apart = NO_SERVER

    @pytest_asyncio.fixture
    async def rig(self) -> AsyncIterator[Rig]:
        rig = MemoryRig()
        yield rig
        await rig.close()
