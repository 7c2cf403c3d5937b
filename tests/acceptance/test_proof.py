"""The proof on real parts, in its quick form: real processes on a real server are killed, and a ledger judges."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tools.drill_kit import ROOT
from tools.proof.kill import install, parse

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="nats", store="sqlite")]

LAST = re.compile(
    r"rounds=(?P<rounds>\d+) kills=(?P<kills>\d+) deliveries=(?P<deliveries>\d+) redeliveries=(?P<redeliveries>\d+)"
    r" lost=(?P<lost>\d+) applied_twice=(?P<twice>\d+)"
)


def prove(*arguments: str) -> tuple[int, dict[str, int], str]:
    """Run the proof; its exit status, its last line, and all that it said."""
    command = [sys.executable, "-m", "tools.proof", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    said = done.stdout + done.stderr
    found = LAST.fullmatch(done.stdout.splitlines()[-1])
    assert found, said
    return done.returncode, {name: int(value) for name, value in found.groupdict().items()}, said


def test_P4_the_quick_proof_kills_and_loses_nothing_and_doubles_nothing() -> None:
    status, last, said = prove("--quick", "--random", "4")
    assert status == 0, said
    assert last["rounds"] == 3
    assert last["kills"] >= 3
    assert last["redeliveries"] > 0
    assert last["lost"] == last["twice"] == 0


def test_the_quick_proof_catches_an_acknowledgement_before_the_commit() -> None:
    """Awake: the same rounds with a bug in the workers fail, and say what was lost."""
    status, last, said = prove("--quick", "--seed", "ack-before-commit", "--random", "4")
    assert status == 1, said
    assert last["lost"] > 0
    assert "ack-before-commit (the broker is told before the commit): caught" in said


def test_a_process_is_armed_only_by_a_point_that_exists(caplog: pytest.LogCaptureFixture) -> None:
    from tidings import points

    install({})
    assert points.reached is None
    assert parse("after-commit") == ("after-commit", 1)
    for wrong in ("after-lunch:1", "after-commit:0", "after-commit:soon"):
        with pytest.raises(ValueError, match="TIDINGS_KILL_AT"):
            install({"TIDINGS_KILL_AT": wrong})
    assert points.reached is None
    try:
        install({"TIDINGS_KILL_AT": "after-commit:1000"})
        assert "this process ends itself with SIGKILL there" in caplog.text
    finally:
        points.reached = None
