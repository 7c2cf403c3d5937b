"""Run the conformance suite on each broker, and write what was seen into docs/reference/brokers.md.

    python -m tools.conformance [--short] [--no-write] [memory|nats|kafka|kafka-old|rabbitmq ...] [-- pytest's options]

Results stand in docs/reference/conformance.json, a broker at a time; what was not run now stays as it was seen last,
with its date; so does what pytest's arguments leave out. The exit status is 1 if a test failed or lacks something that
this project does not allow to be missing.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "docs" / "reference" / "conformance.json"
BROKERS: Final = {
    "memory": ("memory", ["test_memory.py"]),
    "nats": ("NATS JetStream", ["test_nats.py", "test_nats_cluster.py::TestNatsCluster"]),
    "kafka": ("Kafka", ["test_kafka.py", "test_kafka_cluster.py"]),
    "kafka-old": ("Kafka 2.8", ["test_kafka_old.py"]),
    "rabbitmq": ("RabbitMQ", ["test_rabbitmq.py", "test_rabbitmq_cluster.py"]),
}
LIMIT: Final = 7200
"""Seconds that a test may take: publishing a million events and reading them slowly is one."""
WORST_FIRST: Final = ("failed", "not supported", "passed", "not in this run", "skipped")
"""What a test that ran several times has come to."""
SHOWN: Final = {"not in this run": "", "skipped": "", "failed": "**FAILED**"}


class Test(msgspec.Struct):
    """One test of the suite on one broker; `times` says with how many parameters it passed."""

    outcome: str = "not in this run"
    times: int = 0
    sizes: dict[str, tuple[int, int]] = {}
    """What was used, and what is full."""


class Column(msgspec.Struct):
    """One broker."""

    when: str
    version: str
    mode: str
    tests: dict[str, Test]


def read(lines: Iterable[str]) -> dict[str, Test]:
    """What the plugin wrote, a test at a time."""
    outcomes: dict[str, Counter[str]] = {}
    sizes: dict[str, dict[str, tuple[int, int]]] = {}
    for line in lines:
        found: dict[str, Any] = json.loads(line)
        seen = outcomes.setdefault(found["test"], Counter())
        if "outcome" in found:
            seen[found["outcome"]] += 1
        sizes.setdefault(found["test"], {}).update({what: (used, full) for what, (used, full) in _sizes(found)})
    return {
        name: Test(next((one for one in WORST_FIRST if seen[one]), "skipped"), seen["passed"], sizes[name])
        for name, seen in outcomes.items()
    }


def _sizes(found: Mapping[str, Any]) -> Iterable[tuple[str, tuple[int, int]]]:
    sizes: Mapping[str, tuple[int, int]] = found.get("sizes", {})
    return sizes.items()


def run(broker: str, mode: str, more: Sequence[str]) -> tuple[int, Column]:
    """Run the suite on a broker; pytest's exit status, and what was seen."""
    files = [str(ROOT / "tests" / "conformance" / file) for file in BROKERS[broker][1]]
    with tempfile.TemporaryDirectory(prefix="tidings-conformance-") as folder:
        output = Path(folder) / "results"
        command = [sys.executable, "-m", "pytest", "-p", "tools.conformance_plugin", f"--conformance-out={output}"]
        command += [f"--conformance={mode}", "-q", f"--timeout={LIMIT}", "-o", f"faulthandler_timeout={LIMIT}"]
        status = subprocess.run([*command, *files, *more], cwd=ROOT, check=False).returncode
        tests = read(output.read_text().splitlines()) if output.exists() else {}
    return status, Column(f"{datetime.now(UTC):%Y-%m-%d}", version("tidings"), mode, tests)


def _with(before: Column | None, now: Column) -> Column:
    """What was seen now; where only a part was asked for, beside what was seen before in the same sizes."""
    if before is None or before.mode != now.mode:
        return now
    ran = {name: test for name, test in now.tests.items() if test.outcome != "not in this run"}
    return msgspec.structs.replace(now, tests={**before.tests, **ran})


def load() -> dict[str, Column]:
    """What was seen so far."""
    return msgspec.json.decode(RESULTS.read_bytes(), type=dict[str, Column]) if RESULTS.exists() else {}


def save(columns: Mapping[str, Column]) -> None:
    known = {broker: columns[broker] for broker in BROKERS if broker in columns}
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(known), indent=1) + b"\n")


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────────


def table(columns: Mapping[str, Column]) -> str:
    """What was seen, as a table of Markdown: what is asked for, its sizes, and each broker."""
    names = sorted({name for column in columns.values() for name in column.tests}, key=_order)
    head = ["promise", "what is asked for", "sizes", *(BROKERS[broker][0] for broker in columns)]
    rows = [head, ["---"] * len(head)]
    for name in names:
        promises, sentence = _sentence(name)
        found = [column.tests.get(name, Test()) for column in columns.values()]
        rows.append([promises, sentence, _used(found), *(_cell(test) for test in found)])
    said = [
        f"{BROKERS[broker][0]}: {column.mode} sizes, Tidings {column.version}, {column.when}."
        for broker, column in columns.items()
    ]
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows]) + "\n\n" + "\n".join(said) + "\n"


def _order(name: str) -> tuple[tuple[int, ...], str]:
    promises, sentence = _sentence(name)
    return tuple(int(one[1:]) for one in promises.split()) or (99,), sentence


def _sentence(name: str) -> tuple[str, str]:
    promises = re.findall(r"P\d+", name)
    return " ".join(promises), re.sub(r"^test_(P\d+_)*", "", name).replace("_", " ")


def _cell(test: Test) -> str:
    if test.outcome == "passed":
        return f"passed {test.times}" if test.times > 1 else "passed"
    return SHOWN.get(test.outcome, test.outcome)


def _used(tests: Iterable[Test]) -> str:
    """The sizes that were used; what was measured, or is not the same everywhere, with its least and most."""
    found: dict[str, list[int]] = {}
    for test in tests:
        for what, (used, _) in test.sizes.items():
            found.setdefault(what, []).append(used)
    parts = []
    for what, numbers in found.items():
        least, most = min(numbers), max(numbers)
        parts.append(f"{what} {least:,}" + (f" to {most:,}" if most > least else ""))
    return ", ".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    mine, more = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = argparse.ArgumentParser(prog="python -m tools.conformance")
    parser.add_argument("brokers", nargs="*", help=f"of {', '.join(BROKERS)}; all without one")
    parser.add_argument("--short", action="store_true", help="the sizes of make test")
    parser.add_argument("--no-write", action="store_true", help="write nothing down")
    asked = parser.parse_args(mine)
    if unknown := [one for one in asked.brokers if one not in BROKERS]:
        parser.error(f"there is no broker {unknown[0]!r}; they are {', '.join(BROKERS)}")
    columns, worst = load(), 0
    for broker in asked.brokers or BROKERS:
        status, column = run(broker, "short" if asked.short else "full", more)
        worst = max(worst, status)
        if not asked.no_write and column.tests:
            columns[broker] = _with(columns.get(broker) if more else None, column)
            save(columns)
            subprocess.run([sys.executable, "-m", "tools.reference"], cwd=ROOT, check=True)
    return int(worst != 0)


if __name__ == "__main__":
    sys.exit(main())
