"""The walk over every combination of faults, and over a stop or a death after every step, with the real parts.

Each test prints how many cases it walked. A violation names its setting and its faults, which is enough to see it
again: `walk(clock, setting, Faults(names, skip=setting.skip))`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.walk.broker import Session
from tests.walk.case import Setting, StoreKind
from tests.walk.oracle import as_text
from tests.walk.virtual import Clock, virtual_time
from tests.walk.walking import ALL_STORES, combinations_of, kill_at, settings_to_interrupt, stop_at, walk
from tests.walk.world import Faults
from tidings.ports import Features

# It waits for nothing but the processor, which may be slow or shared; that nothing goes on is seen by other means.
pytestmark = pytest.mark.timeout(280)

MOST_STEPS = 1000

Interrupt = Callable[[Clock, Setting, Faults, int], tuple[list[str], bool]]


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


def _walk_all(clock: Clock, most: int, *stores: StoreKind) -> None:
    cases, bad = 0, []
    for setting, names in combinations_of(most, stores or ALL_STORES):
        cases += 1
        if wrong := walk(clock, setting, Faults(names, skip=setting.skip)):
            bad.append(as_text(setting, names, wrong))
    _report(f"up to {most} of the faults at once", cases, bad)


def _interrupt_all(clock: Clock, what: str, interrupt: Interrupt, *, full: bool) -> None:
    cases, bad = 0, []
    for setting, names in settings_to_interrupt(full=full):
        for step in range(MOST_STEPS):
            cases += 1
            wrong, early = interrupt(clock, setting, Faults(names, skip=setting.skip), step)
            if wrong:
                bad.append(f"{what} after {step} steps: {as_text(setting, names, wrong)}")
            if not early:
                break
        else:
            bad.append(f"{as_text(setting, names, [])}: not at its end after {MOST_STEPS} steps")
    _report(what, cases, bad)


def _kill(clock: Clock, setting: Setting, faults: Faults, step: int) -> tuple[list[str], bool]:
    return kill_at(clock, setting, faults, step)


def _stop(clock: Clock, setting: Setting, faults: Faults, step: int) -> tuple[list[str], bool]:
    return stop_at(clock, setting, faults, step, grace=5.0)


def _cancel(clock: Clock, setting: Setting, faults: Faults, step: int) -> tuple[list[str], bool]:
    return stop_at(clock, setting, faults, step, grace=0.0)


def _cancel_twice(clock: Clock, setting: Setting, faults: Faults, step: int) -> tuple[list[str], bool]:
    return stop_at(clock, setting, faults, step, grace=0.0, again=step % 5)


@pytest.mark.parametrize("store", ALL_STORES)
def test_P2_P3_P8_every_pair_of_faults_leaves_each_event_applied_in_order_and_settled_once(
    clock: Clock, store: StoreKind
) -> None:
    _walk_all(clock, 2, store)


def test_P4_P5_a_process_killed_after_any_step_loses_nothing(clock: Clock) -> None:
    _interrupt_all(clock, "killed", _kill, full=False)


def test_P9_a_stop_after_any_step_finishes_what_runs_and_gives_back_the_rest(clock: Clock) -> None:
    _interrupt_all(clock, "stopped", _stop, full=False)


def test_P9_a_stop_without_grace_after_any_step_gives_back_everything(clock: Clock) -> None:
    _interrupt_all(clock, "cancelled", _cancel, full=False)


def test_P9_a_second_cancellation_while_the_first_is_answered_loses_nothing(clock: Clock) -> None:
    _interrupt_all(clock, "cancelled twice", _cancel_twice, full=False)


def test_P2_P3_P9_a_broker_whose_settle_waits_for_nothing_is_told_of_all_the_same(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "features", Features(name="walk", settles_at_once=True))
    _walk_all(clock, 1)
    _interrupt_all(clock, "stopped", _stop, full=False)
    _interrupt_all(clock, "cancelled", _cancel, full=False)


@pytest.mark.long
@pytest.mark.parametrize("store", ALL_STORES)
def test_P2_P3_P8_every_combination_of_three_faults_leaves_each_event_applied_in_order_and_settled_once(
    clock: Clock, store: StoreKind
) -> None:
    _walk_all(clock, 3, store)


@pytest.mark.long
@pytest.mark.parametrize(
    ("what", "interrupt"),
    [("killed", _kill), ("stopped", _stop), ("cancelled", _cancel), ("cancelled twice", _cancel_twice)],
)
def test_P4_P9_an_interruption_after_any_step_under_every_single_fault_loses_nothing(
    clock: Clock, what: str, interrupt: Interrupt
) -> None:
    _interrupt_all(clock, what, interrupt, full=True)
