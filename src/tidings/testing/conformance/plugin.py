"""For pytest: the options of the suite, and what it prints at the end. ``-p tidings.testing.conformance.plugin``."""

from __future__ import annotations

import pytest

SAYS = "conformance"
"""The user property in which a test says more than that it passed, also from another process (pytest-xdist)."""

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
    said = [
        text
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "teardown"
        for name, text in report.user_properties
        if name == SAYS
    ]
    missing = [
        word + report.longrepr[2].partition(word)[2] + ": " + report.nodeid.rpartition("::")[2]
        for report in terminalreporter.stats.get("skipped", [])
        for word in (NOT_SUPPORTED, APART)
        if isinstance(report.longrepr, tuple) and word in report.longrepr[2]
    ]
    if not said and not missing:
        return
    terminalreporter.section(f"conformance ({config.getoption('--conformance')})")
    for line in said + missing:
        terminalreporter.line(str(line))
