"""Run the promises' tests and print promise x broker x store: passed, allowed gap, MISSING or FAILED.

    python -m tools.promises [--json] [--promises-all] [pytest's own arguments, such as -m "not long" or a folder]

With `--promises-all` the tests that prove no promise run too: all that `make test` does, and the table at the end.

The exit status is 1 if a test failed, or if a promise has no test that passed where it must be shown.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.promises_table import ANY, BROKERS, GAPS, NEEDED, PROMISES

NOBODY_RAN, FAILED_TESTS, PASSED = 5, 1, 0
"""The exit statuses of pytest after which its results are whole."""


@dataclass(frozen=True)
class Result:
    """What became of one test: `passed`, `failed`, `skipped`, or `unfinished` if the run ended before it did."""

    test: str
    promises: tuple[str, ...]
    broker: str
    store: str
    outcome: str


@dataclass(frozen=True)
class Cell:
    """One promise on one broker with one store."""

    promise: str
    broker: str
    store: str
    state: str
    """`passed`, `FAILED`, `MISSING`, `allowed gap`, or `-` where nothing is asked for."""
    passed: int = 0

    def __str__(self) -> str:
        return f"passed {self.passed}" if self.state == "passed" else self.state


def run(arguments: Sequence[str], output: Path, *, quiet: bool = False) -> int:
    """Run pytest on the promises' tests; its exit status. `quiet` leaves stdout to the table."""
    command = [sys.executable, "-m", "pytest", "-p", "tools.promises_plugin", f"--promises-out={output}", "-q"]
    return subprocess.run([*command, *arguments], stdout=sys.stderr if quiet else None, check=False).returncode


def read(output: Path) -> list[Result]:
    """The results that the plugin wrote."""
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    outcomes: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        if "outcome" in line:
            outcomes[line["test"]].add(line["outcome"])
    return [
        Result(line["test"], tuple(line["promises"]), line["broker"], line["store"], _worst(outcomes[line["test"]]))
        for line in lines
        if "promises" in line
    ]


def _worst(outcomes: set[str]) -> str:
    return next((one for one in ("failed", "skipped", "passed") if one in outcomes), "unfinished")


def table(results: Iterable[Result]) -> list[Cell]:
    """Every cell, in order: first what must be shown, then what was shown besides."""
    shown: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for result in results:
        for promise in result.promises:
            shown[promise, result.broker, _row(promise, result.store)].append(result.outcome)
    cells = []
    for promise in PROMISES:
        extra = {store for one, _, store in shown if one == promise}
        needed = NEEDED.get(promise, (ANY,))
        for store in [*needed, *sorted(extra - set(needed))]:
            for broker in [ANY, *BROKERS]:
                outcomes = shown[promise, broker, store]
                cells.append(_cell(promise, broker, store, outcomes, needed=broker != ANY and store in needed))
    return cells


def _row(promise: str, store: str) -> str:
    """Where the store does not matter a test counts on any; where it does, one that names none has none."""
    if promise not in NEEDED:
        return ANY
    return "none" if store == ANY else store


def _cell(promise: str, broker: str, store: str, outcomes: list[str], *, needed: bool) -> Cell:
    passed = outcomes.count("passed")
    if "failed" in outcomes or "unfinished" in outcomes:
        state = "FAILED"
    elif passed:
        state = "passed"
    elif not needed:
        state = "-"
    elif (promise, broker) in GAPS:
        state = "allowed gap"
    else:
        state = "MISSING"
    return Cell(promise, broker, store, state, passed)


def text(cells: Sequence[Cell], results: Sequence[Result]) -> str:
    """The table for a person, with whatever needs a word below it."""
    columns = [ANY, *BROKERS]
    rows = [["promise", "", "store", *("broker: any" if one == ANY else one for one in columns)]]
    for first in range(0, len(cells), len(columns)):
        row = cells[first : first + len(columns)]
        rows.append([row[0].promise, PROMISES[row[0].promise], row[0].store, *map(str, row)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines.append("")
    lines += [f"allowed gap: {promise} on {broker}: {why}" for (promise, broker), why in GAPS.items()]
    for result in results:
        if result.outcome != "passed":
            lines.append(f"{result.outcome}: {', '.join(result.promises)}: {result.test}")
    counts = {state: sum(cell.state == state for cell in cells) for state in ("passed", "allowed gap", "MISSING")}
    failed = sum(cell.state == "FAILED" for cell in cells)
    lines.append(
        f"passed={counts['passed']} allowed_gaps={counts['allowed gap']} missing={counts['MISSING']} failed={failed}"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    as_json = "--json" in arguments
    passed_on = [one for one in arguments if one != "--json"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results"
        status = run(passed_on, output, quiet=as_json)
        if status not in (PASSED, FAILED_TESTS, NOBODY_RAN) or not output.exists():
            print(f"pytest ended with status {status}, so that its results are not whole (see above)", file=sys.stderr)
            return 1
        results = read(output)
    cells = table(results)
    if as_json:
        print(json.dumps([vars(cell) for cell in cells], indent=1))
    else:
        print("\n" + text(cells, results))
    return 1 if status == FAILED_TESTS or any(cell.state in ("FAILED", "MISSING") for cell in cells) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
