"""The policy as a table, and what it says of errors that cannot be told."""

from __future__ import annotations

import asyncio
import pickle
import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.parts import delivery
from tidings.delivery import DeadLettered, Retried
from tidings.errors import (
    BrokerUnavailable,
    Dead,
    EventError,
    EventTooLarge,
    InvalidEvent,
    MisuseError,
    RetryAfter,
    TransactionEnded,
    UndecodableEvent,
)
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
    decision = decide(ValueError("no stock"), delivery(), Retry(attempts=1))
    assert decision.reason == "failed once: ValueError: no stock"  # type: ignore[union-attr]  # it has one


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


class Refused(ConnectionError):
    pass


class Both(KeyError, ConnectionError):
    pass


class Soon(RetryAfter):
    pass


KINDS = [
    # retry_on, dead_on, the error, what becomes of it
    ((), (), KeyError("x"), "retry"),
    ((), (KeyError,), KeyError("x"), "dead"),
    ((), (LookupError,), KeyError("x"), "dead"),
    ((), (KeyError,), ValueError("x"), "retry"),
    ((ConnectionError,), (), ConnectionError("x"), "retry"),
    ((ConnectionError,), (), Refused("x"), "retry"),
    ((ConnectionError,), (), OSError("x"), "dead"),
    ((ConnectionError,), (), ValueError("x"), "dead"),
    ((OSError,), (ConnectionError,), ConnectionError("x"), "dead"),
    ((OSError,), (ConnectionError,), OSError("x"), "retry"),
    ((OSError,), (ConnectionError,), Refused("x"), "dead"),
    ((ConnectionError,), (OSError,), Refused("x"), "retry"),
    ((ConnectionError,), (OSError,), OSError("x"), "dead"),
    ((ConnectionError,), (KeyError,), Both("x"), "dead"),
    ((ConnectionError,), (), RetryAfter(1, "x"), "retry"),
    ((ConnectionError,), (), Soon(1, "x"), "retry"),
    ((), (Exception,), RetryAfter(1, "x"), "retry"),
    ((), (Exception,), ValueError("x"), "dead"),
    ((Exception,), (), Dead("x"), "dead"),
]


@pytest.mark.parametrize(("retry_on", "dead_on", "error", "becomes"), KINDS)
def test_P7_the_nearest_kind_of_an_error_says_whether_it_is_worth_another_attempt(
    retry_on: tuple[type[Exception], ...], dead_on: tuple[type[Exception], ...], error: Exception, becomes: str
) -> None:
    decision = decide(error, delivery(), Retry(retry_on=retry_on, dead_on=dead_on))
    assert decision.kind == becomes
    if isinstance(decision, DeadLettered):
        assert decision.code == ("rejected" if isinstance(error, EventError) else "failed")
        assert decision.error is error


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"retry_on": (OSError,), "dead_on": (KeyError, OSError)}, "OSError is in retry_on and in dead_on"),
        ({"retry_on": (Dead,)}, "retry_on names Dead, an EventError, which is always dead"),
        ({"dead_on": (RetryAfter,)}, "dead_on names RetryAfter"),
        ({"dead_on": (Soon,)}, "dead_on names Soon"),
        ({"retry_on": (TransactionEnded,)}, "stops the handler"),
        ({"retry_on": OSError}, "a tuple of exception classes"),
        ({"retry_on": (OSError("x"),)}, "a tuple of exception classes"),
        ({"dead_on": (KeyboardInterrupt,)}, "a tuple of exception classes"),
        ({"at_once": -1}, "at_once=-1: from 0 to 5"),
        ({"at_once": 6}, "at_once=6: from 0 to 5"),
        ({"within": 0}, "within=0: more than no time"),
        ({"within": timedelta(seconds=-1)}, "more than no time"),
    ],
)
def test_lists_that_contradict_and_limits_that_leave_nothing_are_refused_when_they_are_declared(
    wrong: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Retry(**wrong)  # type: ignore[arg-type]  # a table


@pytest.mark.parametrize(
    ("failures", "pause"), [(1, 0.0), (2, 0.0), (3, 0.5), (4, 1.0), (5, 2.0), (6, 4.0), (9, 10.0), (99, 10.0)]
)
def test_P6_first_it_is_tried_again_at_once_and_then_with_pauses_that_double(failures: int, pause: float) -> None:
    retry = Retry(attempts=100, at_once=2, first=0.5, most=10.0)
    assert retry.pause(failures, lambda: 0.0) == pause
    assert retry.pause(failures, lambda: 1.0) == pytest.approx(pause * 1.2)


WITHIN = [
    # seconds since the first failure, the error, what becomes of it, at least and at most after so many seconds
    (None, ValueError("x"), "retry", 8.0, 9.6),
    (0.0, ValueError("x"), "retry", 8.0, 9.6),
    (15.0, ValueError("x"), "retry", 4.9, 5.0),
    (20.0, ValueError("x"), "dead", 0, 0),
    (900.0, ValueError("x"), "dead", 0, 0),
    (None, RetryAfter(10, "x"), "retry", 10.0, 12.0),
    (5.0, RetryAfter(10, "x"), "retry", 10.0, 12.0),
    (15.0, RetryAfter(10, "x"), "dead", 0, 0),
    (900.0, RetryAfter(0, "x"), "dead", 0, 0),
]


@pytest.mark.parametrize("within", [20.0, timedelta(seconds=20)])
@pytest.mark.parametrize(("since", "error", "becomes", "least", "most"), WITHIN)
def test_P6_P7_the_last_attempt_is_made_when_the_time_is_over_and_a_failure_after_that_is_the_end(
    within: float | timedelta, since: float | None, error: Exception, becomes: str, least: float, most: float
) -> None:
    one = delivery()
    one.failures, one.first_failed = 3, 0.0 if since is None else time.time() - since
    decision = decide(error, one, Retry(attempts=100, first=1.0, within=within))
    assert decision.kind == becomes
    if isinstance(decision, Retried):
        assert least <= decision.after <= most
    else:
        assert isinstance(decision, DeadLettered)
        assert decision.code == "failed"
        assert decision.reason.startswith("failed 4 times, and ")
        assert "20 s" in decision.reason
        assert "x" in decision.reason


def test_P6_a_handler_that_asks_for_another_attempt_gets_it_no_sooner_and_not_for_ever() -> None:
    one, retry = delivery(), Retry(attempts=3, first=0.1, most=0.2)
    decision = decide(RetryAfter(timedelta(minutes=5), "rate limited"), one, retry)
    assert isinstance(decision, Retried)
    assert decision.counted
    assert 300 <= decision.after <= 360
    assert decision.reason == "RetryAfter: rate limited (again after 300 s)"
    one.failures = 2
    decision = decide(RetryAfter(0.5), one, retry)
    assert isinstance(decision, DeadLettered)
    assert decision.reason == "failed 3 times: RetryAfter: asked for another attempt (again after 0.5 s)"


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), timedelta(seconds=-1)])
def test_an_attempt_cannot_be_asked_for_in_the_past_or_never(seconds: float | timedelta) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        RetryAfter(seconds)


def test_what_a_handler_asked_for_travels_between_processes() -> None:
    copy = pickle.loads(pickle.dumps(RetryAfter(30, "rate limited")))
    assert (copy.seconds, copy.reason, str(copy)) == (30.0, "rate limited", str(RetryAfter(30, "rate limited")))


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
