"""The points at which a proof may stop the world."""

from __future__ import annotations

import pytest

from tidings import points


def test_a_point_says_its_name_to_whoever_listens_and_to_nobody_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[str] = []
    assert points.reached is None
    points.at(points.BEFORE_CLAIM)
    monkeypatch.setattr(points, "reached", passed.append)
    points.at(points.BEFORE_ACK)
    assert passed == ["before-ack"]


def test_all_names_each_point_once() -> None:
    named = [value for name, value in vars(points).items() if name.isupper() and isinstance(value, str)]
    assert sorted(named) == sorted(points.ALL + points.OF_LETTERS)
    assert len(set(points.ALL)) == len(points.ALL) == 10
