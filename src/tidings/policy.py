"""What becomes of a delivery whose handling failed: a pure function, tested as a table."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import timedelta

import msgspec

from tidings.delivery import DeadLettered, Decision, Delivery, Retried
from tidings.errors import EventError, RetryAfter, TransactionEnded, UndecodableEvent

LENIENT_PAUSE = 10.0
"""Seconds until an event is tried again that failed while the kill switch was off."""

BUSY_PAUSE = 0.25
"""Seconds until a key that another worker holds is asked for again."""


class Retry(msgspec.Struct, frozen=True):
    """How often and when a failed event is tried again.

    * `attempts`: the number of times the handler sees an event at most, the first one included.
    * `first`: the pause before the next attempt, in seconds; it doubles each time. Up to a fifth is added at random, so
      that what failed together does not come back together. A pause is never shorter than said.
    * `most`: what it doubles up to, in seconds.
    * `at_once`: how many times it is tried again without a pause, before the pauses begin.
    * `within`: the time it may take altogether, from its first failure: seconds or a timedelta. The last attempt is
      made when the time is over, and a failure after that is the end, whatever `attempts` leaves. None is without.
    * `retry_on`: the kinds of error that are worth another attempt; if given, every other one is dead at once.
    * `dead_on`: the kinds of error that are dead at once. Of both the nearest kind counts, as in ``except``.
    """

    attempts: int = 6
    first: float = 0.5
    most: float = 60.0
    at_once: int = 0
    within: float | timedelta | None = None
    retry_on: tuple[type[Exception], ...] = ()
    dead_on: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first < 0 or self.most < self.first:
            raise ValueError(f"{self!r}: attempts is at least 1, first at least 0, and most at least first")
        if not 0 <= self.at_once < self.attempts:
            raise ValueError(f"at_once={self.at_once}: from 0 to {self.attempts - 1}, one less than attempts")
        if self.limit is not None and self.limit <= 0:
            raise ValueError(f"within={self.within!r}: more than no time, or None for no limit")
        _check_kinds(self.retry_on, self.dead_on)

    @property
    def limit(self) -> float | None:
        """`within` in seconds."""
        return self.within.total_seconds() if isinstance(self.within, timedelta) else self.within

    def pause(self, failures: int, jitter: Callable[[], float] = random.random) -> float:
        """Seconds to wait after that many failures, at least 1."""
        if failures <= self.at_once:
            return 0.0
        base = min(self.first * 2.0 ** min(failures - self.at_once - 1, 60), self.most)
        return base * (1.0 + 0.2 * jitter())

    def is_dead(self, error: BaseException) -> bool:
        """Whether this kind of error is not worth another attempt."""
        for kind in type(error).__mro__:
            if kind in self.dead_on:
                return True
            if kind in self.retry_on or kind is RetryAfter:
                return False
        return bool(self.retry_on)


def _check_kinds(retry_on: tuple[type[Exception], ...], dead_on: tuple[type[Exception], ...]) -> None:
    for name, kinds in (("retry_on", retry_on), ("dead_on", dead_on)):
        if not isinstance(kinds, tuple) or not all(
            isinstance(one, type) and issubclass(one, Exception) for one in kinds
        ):
            raise ValueError(f"{name}={kinds!r}: a tuple of exception classes, such as (ConnectionError, TimeoutError)")
        if any(issubclass(one, TransactionEnded) for one in kinds):
            raise ValueError(f"{name} names TransactionEnded, which is no failure of an event: it stops the handler")
    for one in retry_on:
        if one in dead_on:
            raise ValueError(f"{one.__name__} is in retry_on and in dead_on: leave it in one of them")
        if issubclass(one, EventError):
            raise ValueError(
                f"retry_on names {one.__name__}, an EventError, which is always dead at once: leave it out"
            )
    for one in dead_on:
        if issubclass(one, RetryAfter):
            raise ValueError(f"dead_on names {one.__name__}, by which a handler asks for another attempt: leave it out")


def decide(error: BaseException, delivery: Delivery, retry: Retry, *, lenient: bool = False) -> Decision:
    """What becomes of a delivery after this error of its own.

    =================================  =====================================================
    the bytes cannot be read           dead, with the code that says why
    the event is bad (`Dead`, …)       dead at the first attempt
    a kind that `Retry` gives up       dead at the first attempt
    `RetryAfter`                       a failure: retried after so many seconds, or dead
    anything else                      a failure: retried, or dead after the last one
    the same three, but `lenient`      tried again later, and no failure
    =================================  =====================================================

    It is lenient while the kill switch of the handler is off: what fails then says more of the world than of the event.

    A store or broker that is down, a lock, a busy key and a shutdown are no errors of the event: they do not get here.

    Raises:
        TransactionEnded: the handler ended its transaction. That is no event's fault, and none may pay for it.
    """
    if isinstance(error, TransactionEnded):
        raise error
    if isinstance(error, UndecodableEvent):
        return DeadLettered(reason=str(error), code=error.code, error=error)
    if isinstance(error, EventError):
        return DeadLettered(reason=describe(error), code="rejected", error=error)
    if lenient:
        return Retried(after=LENIENT_PAUSE, reason=describe(error), counted=False, error=error)
    if retry.is_dead(error):
        return DeadLettered(reason=describe(error), code="failed", error=error)
    failures = delivery.failures + 1
    if failures >= retry.attempts:
        return DeadLettered(reason=f"failed {often(failures)}: {describe(error)}", code="failed", error=error)
    asked = isinstance(error, RetryAfter)
    pause = error.seconds * (1.0 + 0.2 * random.random()) if isinstance(error, RetryAfter) else retry.pause(failures)
    if retry.limit is not None:
        left = retry.limit - (time.time() - delivery.first_failed if delivery.first_failed else 0.0)
        if left <= 0 or (asked and pause > left):
            over = (
                f"its {retry.limit:g} s are over" if left <= 0 else f"{pause:.0f} s more are past its {retry.limit:g} s"
            )
            reason = f"failed {often(failures)}, and {over}: {describe(error)}"
            return DeadLettered(reason=reason, code="failed", error=error)
        pause = min(pause, left)
    return Retried(after=pause, reason=describe(error), error=error)


def killed(delivery: Delivery, deaths: int, retry: Retry) -> DeadLettered | None:
    """What becomes of a message that `deaths` processes died of, while they handled it alone; None for another try.

    They are part of its failures: it dies when these are as many as it has attempts, or when its time is over.
    """
    over = retry.limit is not None and time.time() - delivery.first_failed >= retry.limit
    if not deaths or (delivery.failures < retry.attempts and not over):
        return None
    reason = f"killed its process {often(deaths)} while it was handled alone"
    if others := delivery.failures - deaths:
        reason += f", and failed {often(others)}"
    return DeadLettered(reason=reason, code="killed")


def spent(delivery: Delivery, retry: Retry) -> DeadLettered | None:
    """What becomes of an event that has failed more often than it has attempts, but of which nobody made a letter.

    Its last ones counted while they still ran, because they did not end; and then their process did.
    """
    if not delivery.counted or delivery.failures <= retry.attempts:
        return None
    return DeadLettered(reason=f"failed {often(delivery.failures)}: the handler did not end", code="failed")


def often(count: int) -> str:
    """A number of times, in words for a sentence."""
    return "once" if count == 1 else f"{count} times"


def describe(error: BaseException) -> str:
    """An error in one line, cut to what fits a header."""
    name = type(error).__name__
    try:
        text = " ".join(str(error).split())
    except Exception:  # an exception of the user's that cannot be printed must not stop its event from being decided
        text = "(its message cannot be printed)"
    return f"{name}: {text}"[:1000] if text else name
