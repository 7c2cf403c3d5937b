"""The suite as an adapter's author runs it, in a folder of their own, on a server that runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.nats.server import NatsServer

ONE = "test_P1_what_is_published_comes_back_equal"
PARTS = f"{ONE} or copies_outlive or stopped_node_by_node"


def _pytest(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "tidings.testing.conformance.plugin", "-p", "no:cacheprovider"]
    command += ["--pyargs", "tidings.testing.conformance", *more]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.server
def test_a_url_is_enough_for_what_needs_no_hand_on_the_server(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats").start()
    try:
        done = _pytest(tmp_path, "--broker", f"nats://127.0.0.1:{server.port}", "-k", PARTS)
    finally:
        server.stop()
    assert "1 passed, 2 skipped" in done.stdout, done.stdout + done.stderr
    assert f"nats  {ONE}" in done.stdout
    assert "not in this run: restart (nats: a URL is no hand on it: write a Rig)" in done.stdout


def test_without_a_url_it_says_what_is_missing(tmp_path: Path) -> None:
    done = _pytest(tmp_path, "-k", ONE)
    assert "say which broker is to be tested: --broker URL" in done.stdout + done.stderr
    assert done.returncode == pytest.ExitCode.USAGE_ERROR


def test_a_gap_without_a_reason_is_refused(tmp_path: Path) -> None:
    done = _pytest(tmp_path, "-k", ONE, "--broker", "memory:", "--gap", "history")
    assert "--gap history: write NAME=REASON" in done.stdout + done.stderr
    assert done.returncode != pytest.ExitCode.OK
