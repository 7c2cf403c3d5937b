"""A folder of its own for each test, and an end for everything that was started in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli.shell import Shell


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    yield made
    made.close()


@pytest.fixture
def served(shell: Shell) -> Shell:
    """With an embedded server that runs."""
    shell.embedded()
    return shell
