"""The points on the way of an event at which a crash is worth a test, by name.

In production `reached` is None and a point costs one test of it. A proof sets it: to kill the process there, or to
abandon what runs. Whatever it raises or blocks happens in the middle of the work; nothing here catches anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

BEFORE_CLAIM: Final = "before-claim"
AFTER_CLAIM: Final = "after-claim"
BEFORE_STATEMENT: Final = "before-statement"
"""Of a handler, on the connection that its store lent to it. Tidings' own statements are no points."""
AFTER_STATEMENT: Final = "after-statement"
BEFORE_COMMIT: Final = "before-commit"
"""Right before the keys of a claim, and with a SQL store its effects and caused events, become durable."""
AFTER_COMMIT: Final = "after-commit"
BEFORE_ACK: Final = "before-ack"
"""Right before the broker is told what became of deliveries; retry copies and dead letters are stored by then."""
AFTER_ACK: Final = "after-ack"
OUTBOX_PUBLISH: Final = "outbox-publish"
"""Right before committed rows of the outbox are published."""
OUTBOX_MARK: Final = "outbox-mark"
"""They are published; that they are is not written down yet."""

HELD_NOTED: Final = "held-noted"
"""A note says which place an event has behind a dead letter, or that it has passed; no more is done about it yet."""
REDRIVEN: Final = "redriven"
"""The copy of a letter is on the retry route; that it is, is not written down yet."""

OF_LETTERS: Final = (HELD_NOTED, REDRIVEN)
"""Those that only dead letters come past."""

ALL: Final = (
    BEFORE_CLAIM,
    AFTER_CLAIM,
    BEFORE_STATEMENT,
    AFTER_STATEMENT,
    BEFORE_COMMIT,
    AFTER_COMMIT,
    BEFORE_ACK,
    AFTER_ACK,
    OUTBOX_PUBLISH,
    OUTBOX_MARK,
)
"""All that an event comes past which nothing happens to, in their order."""

reached: Callable[[str], None] | None = None
"""Called with the name of each point, in the thread that reaches it, which is not always the loop's."""


class Ended(BaseException):
    """Raised at a point by what stands for a process that was killed there: nothing takes it for a failure."""


def at(point: str) -> None:
    """Say that a point is reached. Where every statement passes, test `reached` in place of this call."""
    if reached is not None:
        reached(point)
