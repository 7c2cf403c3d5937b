"""For pytest: the fixture `prover`. Write ``pytest_plugins = ["tidings.testing.plugin"]`` into the topmost conftest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidings.testing.prover import Prover


@pytest.fixture
def prover(tmp_path: Path) -> Prover:
    """Proves services in a folder of this test's own."""
    return Prover(tmp_path / "prover")
