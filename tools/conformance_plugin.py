"""A pytest plugin that writes down what became of each test of the conformance suite, and with which sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

_OUTPUT = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--conformance-out", type=Path, help="write what became of each test to this file")


def pytest_configure(config: pytest.Config) -> None:
    if output := config.getoption("--conformance-out"):
        output.write_text("")
        config.pluginmanager.register(_Recorder(output), "conformance-recorder")


class _Recorder:
    """Writes one line for each phase of a test, at once: a run that dies leaves what it had."""

    def __init__(self, output: Path) -> None:
        self._output = output

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        line: dict[str, object] = {"test": report.nodeid.rpartition("::")[2].partition("[")[0]}
        if report.when == "call" or report.outcome != "passed":
            line["outcome"] = _outcome(report)
        if report.when == "teardown":
            line["sizes"] = dict(report.user_properties).get("sizes", {})
        if len(line) > 1:
            with self._output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _outcome(report: pytest.TestReport) -> str:
    from tidings.testing.conformance.plugin import APART, NOT_SUPPORTED  # not before pytest has made it speak

    why = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
    return next((word.rstrip(": ") for word in (NOT_SUPPORTED, APART) if word in why), report.outcome)
