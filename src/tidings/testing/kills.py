"""`TIDINGS_KILL_AT=point:count`: the process ends itself with SIGKILL when it reaches the point for that time.

For tests and proofs. No service reads the variable: a process that did not call `install` cannot be ended by it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Final

from tidings import points

VARIABLE: Final = "TIDINGS_KILL_AT"

log = logging.getLogger("tidings.testing")


def parse(text: str) -> tuple[str, int]:
    """The point and how often it is reached until the end.

    Raises:
        ValueError: no such point, or no count.
    """
    point, _, count = text.partition(":")
    if point not in points.ALL + points.OF_LETTERS:
        raise ValueError(
            f"{VARIABLE}={text}: there is no point {point!r}. There are: {', '.join(points.ALL + points.OF_LETTERS)}"
        )
    if not (count or "1").isdigit() or int(count or "1") < 1:
        raise ValueError(f"{VARIABLE}={text}: write point:count, with a count of 1 or more")
    return point, int(count or "1")


def install(environment: Mapping[str, str] = os.environ, last: Callable[[str], None] | None = None) -> None:
    """Arm this process, if the variable is set; `last` is called with the point right before the end."""
    if not (text := environment.get(VARIABLE, "")):
        return
    wanted, left = parse(text)
    log.warning("%s=%s is set: this process ends itself with SIGKILL there", VARIABLE, text)
    lock = threading.Lock()  # a point may be reached in the thread of a connection

    def reached(point: str) -> None:
        nonlocal left
        if point != wanted:
            return
        with lock:
            left -= 1
            if left:
                return
        if last is not None:
            last(point)
        os.kill(os.getpid(), signal.SIGKILL)

    points.reached = reached
