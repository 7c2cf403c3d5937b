"""What a seeded bug is, and how one is tried: on a copy of the package, with the tests that must notice."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "tidings"

_UNITS = """policy limit order context copies claims settling supervision pipeline pipeline_batches batch_handlers
worker dead_letters publisher calling service"""
TESTS = (*(f"tests/unit/test_{name}.py" for name in _UNITS.split()), "tests/walk")
"""The fast ones first: the first that fails ends the run. Those of the file with the bug come before all others."""

LIMIT = 180
"""Seconds for one run of the tests; a bug that makes them hang is caught as well."""

FAILED = re.compile(r"^(?:FAILED|ERROR) \S*?tests/(\S+)", re.MULTILINE)


class Broken(Exception):
    """A mutant that shows nothing: its text is not there any more, or the package cannot be imported with it."""


@dataclass(frozen=True)
class Mutant:
    """A bug: in `file`, `old` becomes `new`. `tests` must notice, if not the usual ones."""

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = TESTS

    def seeded(self) -> str:
        """The text of its file with the bug in it.

        Raises:
            Broken: the text to replace is not there exactly once.
        """
        text = (PACKAGE / self.file).read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise Broken(f"its text stands {count} times in {self.file}; adapt the mutant")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Run:
    """What the tests said of a copy of the package."""

    passed: bool
    caught_by: str = ""


def run(mutant: Mutant | None, tests: Sequence[str] = TESTS) -> Run:
    """Run tests against a copy of the package: with a bug in it and its own tests, or as it is.

    Raises:
        Broken: the bug cannot be seeded, or nothing can be imported with it.
    """
    with tempfile.TemporaryDirectory(prefix="tidings-mutant-") as folder:
        copy = Path(folder) / "tidings"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            (copy / mutant.file).write_text(mutant.seeded(), encoding="utf-8")
        environment = {
            **os.environ,
            "PYTHONPATH": folder,
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(Path(folder) / "hypothesis"),
        }
        check = f"import tidings.service, tidings.running; assert tidings.__path__[0] == {str(copy)!r}"
        if subprocess.run([sys.executable, "-c", check], env=environment, cwd=ROOT, check=False).returncode:
            raise Broken("the package cannot be imported with it, or another copy of it is")
        stem = "" if mutant is None else mutant.file.removesuffix(".py")
        tests = tests if mutant is None else mutant.tests
        return _run_tests(sorted(tests, key=lambda test: f"test_{stem}" not in test), environment)


def _run_tests(tests: Sequence[str], environment: dict[str, str]) -> Run:
    options = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
    if not all("::" in test for test in tests):  # who names a test by itself means it, however long it is
        options += ["-m", "not long"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Run(False, f"a run that did not end in {LIMIT} s")
    if done.returncode not in (0, 1):
        raise Broken(f"pytest ended with status {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")
    found = FAILED.search(done.stdout)
    return Run(done.returncode == 0, found[1] if found else "")
