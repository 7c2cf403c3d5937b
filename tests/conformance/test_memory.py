"""The suite on the memory broker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.conformance.rigs import MemoryRig
from tidings.testing.conformance import Conformance, Rig


@pytest.mark.proves(broker="memory")
class TestMemory(Conformance):
    @pytest_asyncio.fixture
    async def rig(self) -> AsyncIterator[Rig]:
        rig = MemoryRig()
        yield rig
        await rig.close()
