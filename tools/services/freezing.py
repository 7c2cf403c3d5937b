"""To stop a process in the midst of what it does, as a host that hangs, and to know that it stands.

`kill` returns before the signal has arrived: each thread stops only once it is scheduled. On a busy machine a server of
several threads has answered one time in four after that, so that a test had half of what it asked answered.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

STOPS_WITHIN = 20.0
PROC = Path("/proc")
STOPPED, OVER = "Tt", "ZX"
"""Letters of `proc(5)`."""


def freeze(pid: int) -> None:
    """`freeze_all` for one."""
    freeze_all(lambda: [pid])


def freeze_all(pids: Callable[[], Iterable[int]]) -> None:
    """Stop these processes; returns when none of their threads runs any more, nor has begun another process.

    Raises:
        TimeoutError: one of them still runs.
    """
    ends = time.monotonic() + STOPS_WITHIN
    while moving := [pid for pid in pids() if not stands(pid)]:
        for pid in moving:
            tell(pid, signal.SIGSTOP)
        if time.monotonic() > ends:
            raise TimeoutError(f"these were told to stand still, and do not: {moving}")
        time.sleep(0.001)


def tell(pid: int, what: signal.Signals) -> None:
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        pass


def stands(pid: int) -> bool:
    """Whether nothing of this process runs; also where it is over."""
    try:
        return all(_state(task) in STOPPED + OVER for task in (PROC / str(pid) / "task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return not (PROC / str(pid)).exists()


def _state(task: Path) -> str:
    """The letter for a process or a thread of it."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"  # this thread is over; another may have begun meanwhile, as the next look shows


def living(pid: int) -> bool:
    """Whether it is there, and not over."""
    return _state(PROC / str(pid)) not in OVER


def members(group: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for entry in PROC.iterdir():
        try:
            if entry.name.isdecimal() and os.getpgid(pid := int(entry.name)) == group and living(pid):
                found.append(pid)
        except ProcessLookupError:
            pass
    return found
