"""What becomes of a delivery whose handling failed: a pure function, tested as a table."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from tidings.delivery import DeadLettered, Decision, Delivery, Retried
from tidings.errors import EventError, TransactionEnded, UndecodableEvent

LENIENT_PAUSE = 10.0
"""Seconds until an event is tried again that failed while the kill switch was off."""

BUSY_PAUSE = 0.25
"""Seconds until a key that another worker holds is asked for again."""


class Retry(msgspec.Struct, frozen=True):
    """How often and when a failed event is tried again.

    `attempts` is the number of times the handler sees an event at most, the first one included. The pause before the
    next attempt begins at `first` seconds and doubles each time up to `most`, each with up to a fifth added at random
    so that what failed together does not come back together. A pause is never shorter than said.
    """

    attempts: int = 6
    first: float = 0.5
    most: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first < 0 or self.most < self.first:
            raise ValueError(f"{self!r}: attempts is at least 1, first at least 0, and most at least first")

    def pause(self, failures: int, jitter: Callable[[], float] = random.random) -> float:
        """Seconds to wait after that many failures, at least 1."""
        base = min(self.first * 2.0 ** min(failures - 1, 60), self.most)
        return base * (1.0 + 0.2 * jitter())


def decide(error: BaseException, delivery: Delivery, retry: Retry, *, lenient: bool = False) -> Decision:
    """What becomes of a delivery after this error of its own.

    =============================  =============================================
    the bytes cannot be read       dead, with the code that says why
    the event is bad (`Dead`, …)   dead at the first attempt
    anything else                  a failure: retried, or dead after the last one
    the same, but `lenient`        tried again later, and no failure
    =============================  =============================================

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
    failures = delivery.failures + 1
    if failures >= retry.attempts:
        return DeadLettered(reason=f"failed {failures} times: {describe(error)}", code="failed", error=error)
    return Retried(after=retry.pause(failures), reason=describe(error), error=error)


def describe(error: BaseException) -> str:
    """An error in one line, cut to what fits a header."""
    name = type(error).__name__
    try:
        text = " ".join(str(error).split())
    except Exception:  # an exception of the user's that cannot be printed must not stop its event from being decided
        text = "(its message cannot be printed)"
    return f"{name}: {text}"[:1000] if text else name
