"""`tidings doctor` on clusters that are set up wrongly on purpose: the first line says what, the status how bad."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.services.kafka import Kafka
from tools.services.program import free_port

pytestmark = pytest.mark.server


def doctor(url: str, *more: str) -> tuple[int, list[str]]:
    """Its exit status and its lines."""
    command = [sys.executable, "-m", "tidings.cli", "doctor", url, *more]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_a_broker_that_advertises_a_name_nobody_knows_is_named_in_the_first_line(tmp_path: Path) -> None:
    server = Kafka(tmp_path / "server")
    server.far_advertised = "badhost:9092"
    with server:
        status, lines = doctor(f"kafka://127.0.0.1:{server.far_port}")
    assert status == 3
    assert "badhost:9092" in lines[0]
    assert "is not known" in lines[0]
    assert "advertised.listeners" in lines[1]


def test_nobody_at_the_port_and_an_unknown_name_are_told_apart(kafka: Kafka) -> None:
    status, lines = doctor(f"kafka://127.0.0.1:{free_port()}")
    assert (status, lines[0].split(":")[0]) == (4, "down")
    assert "nobody answers" in lines[0]
    status, lines = doctor("kafka://no-such-host.invalid:9092")
    assert status == 4
    assert "is not known" in lines[0]


def test_a_broker_that_makes_topics_by_accident_is_a_warning(kafka: Kafka) -> None:
    status, lines = doctor(kafka.url, "--json")
    found = [json.loads(line) for line in lines]
    assert status == 0
    assert [one["level"] for one in found] == ["warning", "fine"]
    assert "auto.create.topics.enable=false" in found[0]["remedy"]
