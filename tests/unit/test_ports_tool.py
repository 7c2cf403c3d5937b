"""Ports of tests: nobody is given one that another process was given, whether its server runs or not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tools.services import ports

ONE = """
import sys
from tools.services import ports
ports.FIRST, ports.LAST = int(sys.argv[1]), int(sys.argv[1]) + 4
print(*(ports.free_port() for _ in range(4)), flush=True)
sys.stdin.read()
"""


def test_a_port_that_one_process_was_given_is_given_to_no_other_before_that_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Where nobody else looks: above what outgoing connections are given, which may take any of theirs at any time.
    first = 61_000 + (ports.free_port(following=8) - ports.FIRST) * 4 // 9
    command = [sys.executable, "-c", ONE, str(first)]
    monkeypatch.setattr(ports, "FIRST", first)
    monkeypatch.setattr(ports, "LAST", first + 4)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        given = {int(one) for one in other.stdout.readline().split()}
        assert len(given) == 4
        with pytest.raises(ports.NoPort):
            ports.free_port()
        other.stdin.close()
        other.wait(60)
    assert {ports.free_port() for _ in range(4)} == given
