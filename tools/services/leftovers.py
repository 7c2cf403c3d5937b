"""Ends what a test run leaves running, also where the run was killed and could end nothing itself.

A process beside the run, which knows by a pipe when the run is over. What the run has started, and what that has
started in turn, is found by a mark in the environment that each of them got at its start (`proc(5)`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from tools.services.freezing import PROC, living, tell

MARK = "TIDINGS_TEST_RUN"
ENDS_WITHIN = 5.0
"""Seconds in which what is about to end may do so by itself."""


def beside(mark: str) -> subprocess.Popen[bytes]:
    """Start it for this process: it ends with it, or when its standard input is closed, and prints what it ended."""
    own = {name: value for name, value in os.environ.items() if name != MARK}
    command = [sys.executable, "-m", "tools.services.leftovers", mark]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=own, start_new_session=True)


def marked(mark: str) -> Iterator[int]:
    """The living processes that got this mark."""
    wanted = f"{MARK}={mark}".encode()
    for entry in PROC.iterdir():
        if entry.name.isdecimal() and living(pid := int(entry.name)):
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    yield pid
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                pass


def name_of(pid: int) -> str:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:150]
    except (FileNotFoundError, ProcessLookupError):
        return "?"


def end(mark: str) -> list[str]:
    """End what has this mark; the commands of what did not end by itself."""
    ends = time.monotonic() + ENDS_WITHIN
    while list(marked(mark)) and time.monotonic() < ends:
        time.sleep(0.1)
    ended: dict[int, str] = {}
    ends = time.monotonic() + 2 * ENDS_WITHIN
    while (left := list(marked(mark))) and time.monotonic() < ends:
        for pid in left:
            ended[pid] = ended.get(pid) or name_of(pid)
            tell(pid, signal.SIGKILL)
        time.sleep(0.1)
    return [f"{pid} {name}" for pid, name in ended.items()]


if __name__ == "__main__":
    sys.stdin.buffer.read()
    try:
        print("\n".join(end(sys.argv[1])))
    except BrokenPipeError:
        pass  # the run was killed
