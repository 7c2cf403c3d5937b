"""For pytest: the options of the suite, and what it prints at the end. ``-p tidings.testing.conformance.plugin``."""

from __future__ import annotations

from typing import NamedTuple

import pytest


class Report(NamedTuple):
    """What a test has to say besides that it passed."""

    broker: str
    test: str
    text: str


REPORTS = pytest.StashKey[list[Report]]()

NOT_SUPPORTED = "not supported: "
APART = "not in this run: "
"""A part that this broker, or this rig of it, has no place for: none of its gaps."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tidings")
    group.addoption(
        "--conformance",
        choices=("short", "full"),
        default="short",
        help="the sizes of the conformance suite: short divides them by 50, down to what keeps a test meaningful",
    )
    group.addoption(
        "--broker",
        metavar="URL",
        help="the running broker that `--pyargs tidings.testing.conformance` is to test",
    )
    group.addoption(
        "--gap",
        metavar="NAME=REASON",
        action="append",
        default=[],
        help="what the broker may lack, and why, such as history='a queue keeps none'; may be said several times",
    )


def gaps_of(config: pytest.Config) -> dict[str, str]:
    """What the options allow to be missing. Raises UsageError for one without a reason."""
    found = {}
    for text in config.getoption("--gap"):
        name, _, reason = text.partition("=")
        if not reason:
            raise pytest.UsageError(f"--gap {text}: write NAME=REASON; a gap without a reason is a defect")
        found[name] = reason
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reports = config.stash.get(REPORTS, [])
    missing = [
        word + report.longrepr[2].partition(word)[2] + ": " + report.nodeid.rpartition("::")[2]
        for report in terminalreporter.stats.get("skipped", [])
        for word in (NOT_SUPPORTED, APART)
        if isinstance(report.longrepr, tuple) and word in report.longrepr[2]
    ]
    if not reports and not missing:
        return
    terminalreporter.section(f"conformance ({config.getoption('--conformance')})")
    for broker, test, text in reports:
        terminalreporter.line(f"{broker}  {test}  {text}")
    for line in missing:
        terminalreporter.line(line)
