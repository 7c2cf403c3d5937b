"""What the processes of a position tell each other, and what they make of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import msgspec
import pytest

from tidings.brokers import _members as module
from tidings.brokers.nats.members import Members

if TYPE_CHECKING:
    from tidings.brokers.nats.link import Link


class Air:
    """Carries what one says to all others, as core NATS does, the speaker included."""

    def __init__(self) -> None:
        self.ears: list[object] = []

    def subscribe_raw(self, subject: bytes, sink: object) -> int:
        assert subject == b"tidings-live.stock_reserve"
        self.ears.append(sink)
        return len(self.ears)

    def send(self, frames: bytes) -> None:
        head, body, _ = frames.split(b"\r\n")
        assert head == b"PUB tidings-live.stock_reserve %d" % len(body)
        self.say(body)

    def say(self, body: bytes) -> None:
        for ear in self.ears:
            ear(b"tidings-live.stock_reserve", b"", None, body)  # type: ignore[operator]  # kept as objects


@pytest.fixture
def air() -> Air:
    return Air()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("tidings.brokers._members.time.monotonic", lambda: now[0])
    return now


def join(air: Air) -> tuple[Members, list[bool]]:
    changes: list[bool] = []
    made = Members("stock.reserve", changes.append)
    made.attach(link(air))
    return made, changes


def link(air: Air) -> Link:
    return cast("Link", air)


def test_whoever_speaks_is_known_and_answered_once(air: Air, clock: list[float]) -> None:
    (one, changes), (two, _) = join(air), join(air)
    two.say(link(air), 0b101, new=True)
    assert changes == [True], "somebody new wants an answer"
    two.say(link(air), 0b101)
    assert changes == [True], "nothing has changed"
    assert one.living() == sorted([one.id, two.id])
    assert [one.wanted_by(share) for share in range(3)] == [True, False, True]
    assert one.wanted_by(0, two.id)
    assert not one.wanted_by(0, "somebody else")
    two.say(link(air), 0b100)
    assert changes == [True, False]
    assert not one.wanted_by(0)


def test_who_is_silent_or_says_goodbye_is_not_counted(air: Air, clock: list[float]) -> None:
    (one, changes), (two, _), (three, _) = join(air), join(air), join(air)
    two.say(link(air), 1)
    three.say(link(air), 2)
    three.say(link(air), 0, leaves=True)
    assert one.living() == sorted([one.id, two.id])
    assert changes == [True, True, False]
    clock[0] += module.DEAD_AFTER + 0.1
    assert one.living() == [one.id]


def test_nobody_is_dead_because_we_were_cut_off(air: Air, clock: list[float]) -> None:
    (one, _), (two, _) = join(air), join(air)
    two.say(link(air), 1)
    clock[0] += 60
    one.attach(link(air))
    assert two.id in one.living()
    clock[0] += module.DEAD_AFTER + 0.1
    assert one.living() == [one.id]


@pytest.mark.parametrize("body", [b"", b"x", b"{}", b'{"id": 7}', b'{"id": "a", "wants": "all"}'])
def test_trap_45_what_a_stranger_says_is_not_believed(air: Air, clock: list[float], body: bytes) -> None:
    one, changes = join(air)
    air.say(body)
    assert (one.living(), changes) == ([one.id], [])


def test_P11_strangers_cannot_fill_the_memory(air: Air, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    one, _ = join(air)
    for number in range(10):
        air.say(msgspec.json.encode({"id": f"stranger {number}"}))
    assert len(one.living()) == 4


def test_what_somebody_still_has_is_known_while_it_lets_go_and_while_it_ends(air: Air, clock: list[float]) -> None:
    (one, changes), (two, _) = join(air), join(air)
    two.say(link(air), 0b01, leaving=0b10)
    assert [one.had_by(share) for share in range(3)] == [True, True, False]
    two.say(link(air), 0, leaving=0b10, leaves=True)
    assert one.living() == [one.id], "it is not counted any more"
    assert [one.had_by(share) for share in range(3)] == [False, True, False]
    clock[0] += module.DEAD_AFTER - 0.1
    two.say(link(air), 0, leaving=0b10, leaves=True)
    clock[0] += module.DEAD_AFTER - 0.1
    assert one.had_by(1)
    two.say(link(air), 0, leaves=True)
    assert not one.had_by(1)
    assert changes == [True, False]


def test_who_died_while_it_ended_has_nothing_any_more(air: Air, clock: list[float]) -> None:
    (one, _), (two, _) = join(air), join(air)
    two.say(link(air), 0, leaving=1, leaves=True)
    clock[0] += module.DEAD_AFTER + 0.1
    assert not one.had_by(0)
