"""Somebody loses patience with the demo."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.drill_kit import end_all_of

ROOT = Path(__file__).parents[2]
LIMIT = 60.0

pytestmark = pytest.mark.server


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_again_and_again_leaves_no_process_behind(
    number: signal.Signals, tmp_path: Path
) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "examples.shop", "--orders", "2000", "--folder", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert demo.stdout is not None
        while "killed a worker of payments" not in demo.stdout.readline():
            assert demo.poll() is None
        for _ in range(3):
            demo.send_signal(number)
            time.sleep(0.2)
        _, said = demo.communicate(timeout=LIMIT)
        assert demo.returncode == 130
        assert "Traceback" not in said
        assert said.endswith("stopped before the end: nothing was compared\n")
        _wait_until(lambda: not _processes_of(tmp_path))
    finally:
        demo.kill()
        end_all_of(tmp_path)


def _processes_of(folder: Path) -> list[int]:
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in command.read_bytes():
                found.append(int(command.parent.name))
        except OSError:
            pass  # it has just ended
    return found


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.1)
