"""Members that leave while the partitions of their group move."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.kafka.storm import GROUPS
from tools.services.kafka import Kafka

pytestmark = [pytest.mark.server, pytest.mark.long, pytest.mark.proves(broker="kafka"), pytest.mark.timeout(400)]

LIMIT = 200
"""Seconds. A process that stands still does so with the interpreter's lock: only another one can end it."""


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_P9_members_that_leave_while_partitions_move_come_to_an_end_and_lose_nothing(kafka: Kafka, seed: int) -> None:
    """The library's trap is sprung by chance: before it was known, it held about one run of the three."""
    root = Path(__file__).parents[3]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
    url = f"{kafka.url}?session_timeout=3s&heartbeat.interval.ms=100&partitions=6"
    command = [sys.executable, "-m", "tests.integration.kafka.storm", url, str(seed)]
    storm = subprocess.run(command, cwd=root, env=env, timeout=LIMIT, capture_output=True, text=True, check=False)
    assert storm.returncode == 0, storm.stderr[-2000:]
    assert storm.stdout.count("lost=0") == GROUPS
