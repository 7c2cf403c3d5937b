"""How copies wait for their time: in queues, one for each step. All that stands in one waits for about as long, so that
nothing holds up what stands behind it.

A copy waits in the largest step that is not longer than its time, and then in the next: so it is never early, and late
by a small part at most. `moving.py` takes it out when its time there is over, which its routing key says.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from tidings.delivery import Header

STEPS: Final[tuple[int, ...]] = tuple(100 * 8**power for power in range(7))
"""Milliseconds: from a tenth of a second to 7 hours. What waits for longer waits there several times."""
SHORT: Final = 0.1
"""Seconds that a copy may be late: less than that it waits with us."""
LATE: Final = 0.1
"""By which part of its time a copy may be late."""


def step_for(seconds: float) -> int:
    """The step, in milliseconds, that a copy with so much time left waits in next; 0 if it need not."""
    if seconds <= 0:
        return 0
    wanted = seconds * 1000
    for step in STEPS:
        if wanted <= step <= wanted * (1 + LATE) + SHORT * 1000:
            return step
    return max((step for step in STEPS if step <= wanted), default=STEPS[0])


def due_text(due: float) -> str:
    """As it stands in a header."""
    return datetime.fromtimestamp(due, UTC).isoformat(timespec="microseconds")


def seconds_left(headers: Mapping[str, str]) -> float:
    """Until when nobody may see a copy; what cannot be read holds nothing up."""
    try:
        moment = datetime.fromisoformat(headers.get(Header.DUE, ""))
    except ValueError:
        return 0.0
    return moment.timestamp() - time.time() if moment.tzinfo is not None else 0.0
