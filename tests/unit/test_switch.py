"""The kill switch, as a table of what it sees and what it does."""

from __future__ import annotations

from typing import Any

import pytest

from tidings.switch import KillSwitch, Switch


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(
    ("batches", "off"),
    [
        ([(19, 19)], False),  # too few to judge
        ([(20, 10)], False),  # exactly the share is not more than it
        ([(20, 11)], True),
        ([(1, 1)] * 20, True),
        ([(10_000, 5_000)], False),
        ([(10_000, 0), (20, 20)], False),
        ([(20, 0), (21, 21)], True),
    ],
)
def test_it_goes_off_when_more_than_the_share_of_enough_deliveries_failed(
    clock: Clock, batches: list[tuple[int, int]], off: bool
) -> None:
    switch = Switch(KillSwitch(), clock)
    turned = [switch.count(*one) for one in batches]
    assert switch.off is off
    assert turned[-1] is off
    assert ("failed" in switch.reason) is off


def test_what_was_long_ago_does_not_count(clock: Clock) -> None:
    switch = Switch(KillSwitch(within=60), clock)
    switch.count(10_000, 0)
    clock.now += 59
    assert not switch.count(20, 20)
    clock.now += 3
    assert switch.count(1, 1), "the ten thousand are more than a minute old"


def test_without_a_rule_it_never_goes_off(clock: Clock) -> None:
    switch = Switch(None, clock)
    assert not switch.count(1000, 1000)
    assert switch.most(256) == 256


def test_while_it_is_off_one_event_at_a_time_is_tried_after_ever_longer_pauses(clock: Clock) -> None:
    switch = Switch(KillSwitch(first=1, most=4), clock)
    switch.count(20, 20)
    for pause in (1, 2, 4, 4):
        assert switch.most(256) == 0
        assert switch.wait() == pause
        clock.now += pause
        assert switch.most(256) == 1
        switch.probing = True
        assert switch.most(256) == 0, "another lane tries one already"
        switch.probing = False
        assert not switch.count(1, 1)


def test_after_three_that_succeed_it_goes_on_and_has_forgotten_the_bad_minute(clock: Clock) -> None:
    switch = Switch(KillSwitch(), clock)
    switch.count(20, 20)
    clock.now += 1
    assert not switch.count(1, 0)
    assert not switch.count(1, 1), "one that fails begins the row anew"
    clock.now += 2
    assert [switch.count(1, 0) for _ in range(3)] == [False, False, True]
    assert switch.most(256) == 256
    assert not switch.count(19, 19)


@pytest.mark.parametrize(
    "wrong",
    [{"share": 0.0}, {"share": 1.1}, {"least": 0}, {"within": 0.0}, {"first": 0.0}, {"first": 9.0, "most": 8.0}],
)
def test_a_rule_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="least"):
        KillSwitch(**wrong)
