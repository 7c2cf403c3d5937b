"""The reference pages name every command, option, status, metric and field that there is."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit.observe.shop import shop
from tidings.cli.failures import MEANINGS
from tidings.cli.main import app
from tidings.observe.logs import FIELDS
from tidings.observe.metrics import Figures, Lanes, Metrics
from tidings.ports import Backlog

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
COMMANDS = (REFERENCE / "command-line.md").read_text(encoding="utf-8")
SIGHT = (REFERENCE / "observability.md").read_text(encoding="utf-8")


def test_every_command_stands_in_the_reference() -> None:
    for name in ("run", "up", "publish", "tail", "dead", "demo"):
        assert name in app
        assert f"`tidings {name}" in COMMANDS


def test_every_exit_status_stands_in_the_reference() -> None:
    for status, meaning in MEANINGS.items():
        assert f"| {int(status)} | {meaning.partition(' (')[0]}" in COMMANDS


def test_every_metric_stands_in_the_reference_and_no_other() -> None:
    metrics = Metrics("shop", lambda: shop().handlers)
    lanes = {"shop.handle": Lanes(0, 0, Backlog(pending=0, in_flight=0))}
    metrics.figures = Figures(connected=True, lanes=lanes, outbox=(0, 0.0))
    counters = ("received", "outcomes", "retries", "dead_letters", "duplicates")
    there = {
        one.name + ("_total" if one.name.removeprefix("tidings_") in counters else "")
        for one in metrics.registry.collect()
        if one.name.startswith("tidings_")
    }
    there = {name + "_info" if name == "tidings_build" else name for name in there}
    told = set(re.findall(r"^\| `(tidings_\w+)`", SIGHT, re.MULTILINE))
    assert told == there | {"tidings_workers_alive"}


def test_every_field_of_a_log_line_stands_in_the_reference() -> None:
    for field in FIELDS:
        assert f"`{field}`" in SIGHT
