"""The garbage collector of `tidings run` looks less often, unless the program says something of it itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

SETTLE = "from tidings.cli.garbage import settle_garbage; settle_garbage()"
TOLD = f"{SETTLE}; print(gc.get_threshold(), gc.get_freeze_count() > 0)"


def after(program: str) -> str:
    """What is so in a new process, after what the program itself says."""
    command = [sys.executable, "-c", f"import gc; {program}; {TOLD}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout.strip()


def test_what_is_there_at_the_start_is_left_out_and_the_rest_looked_at_less_often() -> None:
    assert after("pass") == "(10000, 50, 100) True"


@pytest.mark.parametrize("program", ["gc.set_threshold(5000, 10, 10)", "gc.disable()"])
def test_what_the_program_has_set_stays(program: str) -> None:
    assert after(program).endswith("False")
