"""The policy as a table, and what it says of errors that cannot be told."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.parts import delivery
from tidings.delivery import DeadLettered, Retried
from tidings.errors import BrokerUnavailable, Dead, EventTooLarge, InvalidEvent, MisuseError, UndecodableEvent
from tidings.policy import Retry, decide, describe

CODES = [
    "empty",
    "too-large",
    "too-deep",
    "not-json",
    "not-an-envelope",
    "bad-attribute",
    "unknown-type",
    "unknown-version",
    "bad-data",
    "upcast-failed",
]

TABLE = [
    # the error, failures before, attempts, what becomes of it
    (ValueError("x"), 0, 6, "retry"),
    (ValueError("x"), 4, 6, "retry"),
    (ValueError("x"), 5, 6, "failed"),
    (ValueError("x"), 9, 6, "failed"),
    (ValueError("x"), 0, 1, "failed"),
    (TimeoutError("x"), 0, 6, "retry"),
    (asyncio.CancelledError("x"), 0, 6, "retry"),
    (BrokerUnavailable("a handler's own call"), 0, 6, "retry"),
    (MisuseError("x"), 0, 6, "retry"),
    (Dead("x"), 0, 6, "rejected"),
    (InvalidEvent("x"), 0, 6, "rejected"),
    (EventTooLarge("x"), 0, 6, "rejected"),
    *((UndecodableEvent(code, "x"), 0, 6, code) for code in CODES),
]


@pytest.mark.parametrize(("error", "failures", "attempts", "becomes"), TABLE)
def test_P6_P7_an_error_of_a_handler_is_retried_until_its_last_attempt_and_a_bad_event_is_dead_at_once(
    error: BaseException, failures: int, attempts: int, becomes: str
) -> None:
    one = delivery()
    one.failures = failures
    decision = decide(error, one, Retry(attempts=attempts, first=1.0))
    if becomes == "retry":
        assert isinstance(decision, Retried)
        assert decision.counted
        assert decision.error is error
        assert decision.after >= 1.0 * 2**failures
    else:
        assert isinstance(decision, DeadLettered)
        assert decision.code == becomes
        assert decision.error is error
    assert "x" in decision.reason or "own call" in decision.reason


def test_P7_the_reason_of_a_death_by_failures_says_how_many_there_were() -> None:
    one = delivery()
    one.failures = 2
    decision = decide(ValueError("no stock"), one, Retry(attempts=3))
    assert decision.reason == "failed 3 times: ValueError: no stock"  # type: ignore[union-attr]  # it has one


@given(st.integers(1, 2000), st.floats(0, 1, exclude_max=True), st.floats(0.0, 10.0), st.floats(0.0, 100.0))
def test_P6_a_pause_is_never_shorter_than_said_and_at_most_a_fifth_longer(
    failures: int, jitter: float, first: float, more: float
) -> None:
    retry = Retry(first=first, most=first + more)
    said = min(first * 2.0 ** min(failures - 1, 60), retry.most)
    assert said <= retry.pause(failures, lambda: jitter) <= said * 1.2


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"first": -1.0}, {"first": 5.0, "most": 1.0}])
def test_a_rule_for_retries_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="attempts is at least 1"):
        Retry(**wrong)  # type: ignore[arg-type]  # a table


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (ValueError(), "ValueError"),
        (Mute(), "Mute: (its message cannot be printed)"),
    ],
)
def test_an_error_is_described_in_one_line(error: BaseException, text: str) -> None:
    assert describe(error) == text


def test_a_long_error_is_cut_to_what_fits_a_header() -> None:
    assert len(describe(ValueError("x" * 5000))) == 1000
