"""How long a copy waits in which queue."""

from __future__ import annotations

import time

import pytest

from tidings.brokers.rabbitmq import waiting
from tidings.delivery import Header


@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.3, 0.4, 1.0, 5, 59, 60, 600, 3600, 86_400, 7 * 86_400])
def test_P6_a_copy_is_never_late_by_more_than_a_tenth_and_takes_few_steps(seconds: float) -> None:
    waited, steps = 0.0, 0
    while waited < seconds:
        step = waiting.step_for(seconds - waited)
        assert step in waiting.STEPS
        waited += step / 1000
        steps += 1
        assert steps < 40
    assert waited <= seconds * 1.1 + waiting.SHORT


def test_what_is_due_does_not_wait() -> None:
    assert waiting.step_for(0) == waiting.step_for(-5) == 0


def test_the_time_in_a_header_comes_back() -> None:
    due = time.time() + 1000
    assert waiting.seconds_left({Header.DUE: waiting.due_text(due)}) == pytest.approx(1000, abs=5)


@pytest.mark.parametrize("text", ["", "soon", "2030-01-01T00:00:00"])
def test_a_time_that_cannot_be_read_holds_nothing_up(text: str) -> None:
    assert waiting.seconds_left({Header.DUE: text}) == 0
