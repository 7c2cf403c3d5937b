"""A pytest plugin that runs the promises' tests alone and writes down what became of each.

What a test proves stands in its name (`test_P4_…`, `test_P4_P7_…`) or in its marks:
`@pytest.mark.proves("P4", broker="nats", store="sqlite")`. Where it proves it stands in the marks, of the test, its
class, its module or its parameter, or else in the parameters: one called `broker` or `store`, or a part of the id such
as `nats` in `test_P1_…[nats-small]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.promises_table import ANY, BROKERS, PROMISES, STORES

_NAMED = re.compile(r"test_((?:P\d+_)+)")
_OUTPUT = pytest.StashKey[Path]()
_PLACES = {"broker": BROKERS, "store": STORES}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--promises-out", type=Path, help="write the results of the promises' tests to this file")
    parser.addoption("--promises-all", action="store_true", help="run the tests that prove no promise too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "proves(*promises, broker=, store=): what a test proves, and where")
    output = config.getoption("--promises-out")
    if output:
        config.stash[_OUTPUT] = output
        output.write_text("")
        config.pluginmanager.register(_Recorder(output), "promises-recorder")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _OUTPUT not in config.stash or config.getoption("--promises-all"):
        return
    others = [item for item in items if not promises_of(item)]
    items[:] = [item for item in items if promises_of(item)]
    config.hook.pytest_deselected(items=others)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write down what is to run: what was left out by a mark need not end."""
    if _OUTPUT not in session.config.stash:
        return
    for item in session.items:
        if promises := promises_of(item):
            place = {kind: place_of(item, kind) for kind in _PLACES}
            _append(session.config.stash[_OUTPUT], {"test": item.nodeid, "promises": promises, **place})


def promises_of(item: pytest.Item) -> list[str]:
    """The promises that a test proves; empty for a test that proves none."""
    named = _NAMED.match(item.name)
    promises = named[1].rstrip("_").split("_") if named else []
    promises += [str(one) for mark in item.iter_markers("proves") for one in mark.args]
    for one in promises:
        if one not in PROMISES:
            raise pytest.UsageError(f"{item.nodeid}: there is no promise {one}; they are {', '.join(PROMISES)}")
    return list(dict.fromkeys(promises))


def place_of(item: pytest.Item, kind: str) -> str:
    """The broker or store (`kind`) on which a test proves it; ANY if it does not say."""
    known = _PLACES[kind]
    for mark in item.iter_markers("proves"):
        if kind in mark.kwargs:
            place = str(mark.kwargs[kind])
            if place not in known:
                raise pytest.UsageError(f"{item.nodeid}: there is no {kind} {place!r}; they are {', '.join(known)}")
            return place
    return next((word for word in _words(item, kind) if word in known), ANY)


def _words(item: pytest.Item, kind: str) -> Iterator[str]:
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return
    value = callspec.params.get(kind)
    yield value if isinstance(value, str) else str(getattr(value, "name", ""))
    for word in re.split(r"[^a-z]+", callspec.id.lower()):
        # `memory` is a broker and a store: in an id it is the broker.
        if not (kind == "store" and word in BROKERS):
            yield word


class _Recorder:
    """Writes one line for each phase of a test, at once: a run that dies leaves what it had."""

    def __init__(self, output: Path) -> None:
        self._output = output

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # An expected failure is reported as skipped: it proves nothing.
        if report.when == "call" or report.outcome != "passed":
            _append(self._output, {"test": report.nodeid, "outcome": report.outcome})


def _append(output: Path, line: dict[str, object]) -> None:
    with output.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
