"""What starts the servers of the tests: none is left behind by a start that comes to nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.integration.nats.server import NatsServer
from tools.services.kafka_cluster import KafkaCluster
from tools.services.program import Program


class TimeIsOver(BaseException):
    """What interrupts a test that takes too long."""


class Sleeper(Program):
    name = program = "sleep"
    package = "coreutils"
    started: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return ""

    def command(self) -> Sequence[str]:
        return [str(self._binary), "60"]

    def ready(self) -> bool:
        self.started = self._process
        raise TimeIsOver


def test_a_server_whose_start_is_interrupted_is_ended(tmp_path: Path) -> None:
    server = Sleeper(tmp_path)
    with pytest.raises(TimeIsOver):
        server.start()
    assert server.started is not None
    left = server.started.poll() is None
    server.started.kill()
    server.started.wait()
    assert not left


def test_a_nats_server_whose_start_is_interrupted_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(*where: object) -> None:
        assert server._process is not None
        started.append(server._process)
        raise TimeIsOver

    server = NatsServer(tmp_path)
    monkeypatch.setattr("socket.create_connection", interrupted)
    with pytest.raises(TimeIsOver):
        server.start()
    left = started[0].poll() is None
    started[0].kill()
    started[0].wait()
    assert not left


def test_the_others_of_a_cluster_end_with_the_one_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    cluster = KafkaCluster(tmp_path)
    for node in cluster.nodes:
        monkeypatch.setattr(node, "start", lambda node=node: node if node.number < 3 else int("no"))
        monkeypatch.setattr(node, "stop", lambda node=node: ended.append(node.number))
    with pytest.raises(ValueError, match="no"):
        cluster.start()
    assert ended == [1, 2, 3]
