"""Nothing that the tests have started outlives them, whatever becomes of the run."""

import os
import subprocess
import sys
import uuid

import pytest

from tools.services.freezing import PROC
from tools.services.leftovers import MARK, beside

__all__: list[str] = []

_guard = pytest.StashKey[subprocess.Popen[bytes]]()


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") or not PROC.exists():
        return  # a worker of pytest-xdist, which has the mark of the run; or no Linux, where nobody looks
    os.environ[MARK] = uuid.uuid4().hex
    config.stash[_guard] = beside(os.environ[MARK])


def pytest_unconfigure(config: pytest.Config) -> None:
    if (guard := config.stash.get(_guard, None)) is not None:
        for left in guard.communicate(timeout=60)[0].decode().split("\n"):
            if left:
                print(f"left running by the tests, and ended: {left}", file=sys.stderr)
