"""The walk over every combination of faults, and over a stop or a death after every step, with the real parts.

Each test prints how many cases it walked. A violation names its setting and its faults, which is enough to see it
again: `walk(clock, setting, Faults(names, skip=setting.skip))`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.walk.oracle import as_text
from tests.walk.virtual import Clock, virtual_time
from tests.walk.walking import combinations_of, walk
from tests.walk.world import Faults


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")


@pytest.fixture
def clock() -> Iterator[Clock]:
    with virtual_time() as clock:
        yield clock


def _report(what: str, cases: int, bad: list[str]) -> None:
    print(f"\n{what}: cases={cases} violations={len(bad)}")
    assert not bad, "\n".join(bad[:20])


def _walk_all(clock: Clock, most: int) -> None:
    cases, bad = 0, []
    for setting, names in combinations_of(most):
        cases += 1
        if wrong := walk(clock, setting, Faults(names, skip=setting.skip)):
            bad.append(as_text(setting, names, wrong))
    _report(f"up to {most} of the faults at once", cases, bad)


def test_P2_P3_P8_every_single_fault_leaves_each_event_applied_in_order_and_settled_once(clock: Clock) -> None:
    _walk_all(clock, 1)


@pytest.mark.long
def test_P2_P3_P8_every_combination_of_three_faults_leaves_each_event_applied_in_order_and_settled_once(
    clock: Clock,
) -> None:
    _walk_all(clock, 3)
