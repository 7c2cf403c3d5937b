"""How large groups are after failures and locks, with a clock that stands until it is moved."""

from __future__ import annotations

from tests.unit.parts import batch
from tidings.grouping import LONGEST_PEACE, PEACE, Grouping, Work


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def works(count: int) -> list[Work]:
    return [Work(one) for one in batch(*["a1"] * count)]


def size(grouping: Grouping) -> int:
    return len(grouping.next(works(300), None))


def test_after_a_lock_groups_are_small_at_once() -> None:
    grouping = Grouping(256, Clock())
    sizes = []
    for _ in range(5):
        grouping.locked(grouping.next(works(300), None))
        sizes.append(size(grouping))
    assert sizes == [64, 16, 4, 1, 1]


def test_a_small_group_that_met_a_lock_says_that_larger_ones_would_too() -> None:
    grouping = Grouping(256, Clock())
    grouping.locked(works(8))
    assert size(grouping) == 2


def test_after_a_lock_success_alone_makes_no_group_larger_and_peace_does() -> None:
    clock = Clock()
    grouping = Grouping(256, clock)
    grouping.locked(works(256))
    for _ in range(10):
        grouping.more()
    assert size(grouping) == 64
    sizes = []
    for _ in range(3):
        clock.now += PEACE
        grouping.more()
        sizes.append(size(grouping))
    assert sizes == [128, 256, 256]


def test_peace_has_to_last_twice_as_long_where_groups_grew_too_early() -> None:
    clock = Clock()
    grouping = Grouping(256, clock)
    grouping.locked(works(256))
    waits = []
    for _ in range(9):
        began, before = clock.now, size(grouping)
        while size(grouping) == before:
            clock.now += PEACE / 4
            grouping.more()
        waits.append(clock.now - began)
        grouping.locked(works(size(grouping)))
    assert waits == [min(PEACE * 2**number, LONGEST_PEACE) for number in range(9)]


def test_a_failure_under_the_ceiling_of_a_lock_grows_back_to_it_at_once() -> None:
    grouping = Grouping(256, Clock())
    grouping.locked(works(256))
    grouping.fewer(works(64))
    assert size(grouping) == 32
    grouping.more()
    grouping.more()
    assert size(grouping) == 64
