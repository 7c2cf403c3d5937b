"""What the suite's tests wait with."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.conformance.rigs import MemoryRig
from tidings.testing._effects import Effect
from tidings.testing.conformance import Bench, Stage

POSITION = "here.handle"


class Hurried(Stage):
    """The last effect comes right after somebody has looked which are there."""

    def ids(self, position: str) -> list[str]:
        found = super().ids(position)
        if len(found) == 1:
            self.bench.ledger.effect(_effect("2"))
        return found


def _effect(id: str) -> Effect:
    return Effect(POSITION, id, None, 1, "", 0.0)


async def test_the_last_effect_may_come_between_two_looks(tmp_path: Path) -> None:
    bench = Bench(MemoryRig(), "test_hurried", patience=2.0)
    stage = Hurried(bench, "none", tmp_path)
    bench.ledger.effect(_effect("1"))
    async with asyncio.timeout(5):
        await stage.until_applied(POSITION, ["1", "2"])
