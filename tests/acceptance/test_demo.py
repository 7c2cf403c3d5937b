"""The demo in small: it ends with nothing lost and nothing applied twice, and its comparison can fail."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.drill_kit import ROOT, commands, end_all_of

pytestmark = pytest.mark.server

ORDERS = 300


def demo(folder: Path, *more: str) -> tuple[int, dict[str, int]]:
    """Run it; its exit status, and the figures of its last line."""
    command = [sys.executable, "-m", "examples.shop", "--orders", str(ORDERS), "--folder", str(folder), *more]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=140, check=False)
    except BaseException:
        end_all_of(folder)
        raise
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"(\w+=\d+ ?)+", last), done.stdout + done.stderr
    assert not [command for _, command in commands() if str(folder).encode() in command], "left behind"
    return done.returncode, {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", last)}


@pytest.mark.proves("P4", broker="nats", store="sqlite")
def test_the_demo_ends_with_nothing_lost_and_nothing_applied_twice(tmp_path: Path) -> None:
    status, figures = demo(tmp_path)
    assert status == 0
    assert figures["lost"] == figures["applied_twice"] == 0
    assert figures["published"] == figures["applied"] == ORDERS
    assert figures["dead"] > 0, "the garbage left no letter"


def test_the_comparison_of_the_demo_fails_when_once_is_turned_off(tmp_path: Path) -> None:
    status, figures = demo(tmp_path, "--forgetful")
    assert status == 1
    assert figures["lost"] == 0
    assert figures["applied_twice"] > 0
