"""Who takes which share: the same answer everywhere, balanced, and few moves."""

from __future__ import annotations

import random

import pytest

from tidings.brokers._assignment import assign

SHARES = 8


def names(count: int, seed: int) -> list[str]:
    source = random.Random(seed)
    return [f"{source.getrandbits(64):x}" for _ in range(count)]


@pytest.mark.parametrize(
    ("members", "counts"),
    [
        (1, [8]),
        (2, [4, 4]),
        (3, [2, 3, 3]),
        (4, [2, 2, 2, 2]),
        (5, [1, 1, 2, 2, 2]),
        (8, [1] * 8),
        (10, [0, 0] + [1] * 8),
    ],
)
def test_all_members_get_as_many_as_each_other(members: int, counts: list[int]) -> None:
    for seed in range(20):
        living = names(members, seed)
        owners = assign(living, SHARES)
        assert sorted(owners.count(name) for name in living) == counts


def test_P8_everybody_who_knows_the_same_members_comes_to_the_same_answer() -> None:
    living = names(5, 1)
    assert assign(reversed(living), SHARES) == assign([*living, living[0]], SHARES) == assign(living, SHARES)


@pytest.mark.parametrize("members", [1, 2, 3, 4, 5, 7])
def test_a_member_that_comes_or_goes_moves_hardly_more_than_its_own(members: int) -> None:
    others_moved = 0
    for seed in range(100):
        living = names(members + 1, seed)
        before, after = assign(living[:-1], SHARES), assign(living, SHARES)
        others_moved += sum(a != b and b != living[-1] for a, b in zip(before, after, strict=True))
    # The same two lists read backwards are a member that leaves.
    assert others_moved / 100 < 1.6


def test_nobody_loses_a_share_when_nothing_changes_but_the_order_of_arrival() -> None:
    living = names(4, 3)
    shuffled = random.Random(0).sample(living, k=4)
    assert assign(living, SHARES) == assign(shuffled, SHARES)
