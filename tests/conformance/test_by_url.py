"""The suite as an adapter's author runs it, in a folder of their own, on a server that runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.nats.server import NatsServer
from tests.unit.test_docs import ROOT, blocks

ONE = "test_P1_what_is_published_comes_back_equal"
PAGE = ROOT / "docs" / "howto" / "write-an-adapter.md"
PARTS = f"{ONE} or copies_outlive or stopped_node_by_node"


def _pytest(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "tidings.testing.conformance.plugin", "-p", "no:cacheprovider"]
    command += ["--pyargs", "tidings.testing.conformance", *more]
    return _run(folder, command)


def _run(folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
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
    done = _pytest(tmp_path, "-k", ONE, "--broker", "nats://127.0.0.1:1", "--gap", "history")
    assert "--gap history: write NAME=REASON" in done.stdout + done.stderr
    assert done.returncode != pytest.ExitCode.OK


def test_the_broker_in_memory_is_refused_since_its_clients_share_nothing(tmp_path: Path) -> None:
    done = _pytest(tmp_path, "-k", ONE, "--broker", "memory:")
    assert "each client of memory: has a memory of its own" in done.stdout + done.stderr
    assert "Write a Rig" in done.stdout + done.stderr
    assert done.returncode == pytest.ExitCode.USAGE_ERROR


def test_the_file_that_the_page_on_adapters_shows_passes_as_it_stands(tmp_path: Path) -> None:
    """Each part of the suite that a rig may lack, and two that none may."""
    shown = [block for block in blocks(PAGE) if block.language == "python"]
    (tmp_path / "test_mine.py").write_text("\n\n".join(block.text for block in shown))
    lines = [line for block in blocks(PAGE) if block.language == "sh" for line in block.text.splitlines()]
    command = next(line for line in lines if line.endswith(" test_mine.py"))
    some = f"{ONE} or copies_outlive or node_by_node or packet_loss or the_ack_wait or killed_at_a_point"
    more = ["-p", "no:cacheprovider", "-k", some]
    done = _run(tmp_path, [sys.executable, "-m", *shlex.split(command), *more])
    assert "2 passed, 13 skipped" in done.stdout, done.stdout + done.stderr
    parts = re.findall(r"^not in this run: ([a-z ]+) \(", done.stdout, re.MULTILINE)
    assert set(parts) == {"cluster", "network", "ack wait", "processes"}
