"""Whatever waits here waits in virtual time: see `clock.py`."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.unit.outbox.clock import LOOPS, time
from tests.walk.virtual import Loop
from tidings.outbox import direct, relay


def pytest_asyncio_loop_factories() -> Mapping[str, type[Loop]]:
    return LOOPS


@pytest.fixture(autouse=True)
def _virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (direct, relay):
        monkeypatch.setattr(module, "time", time)
