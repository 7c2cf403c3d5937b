"""The reference says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.test_docs import ROOT
from tidings import TidingsError, WorldError, errors
from tidings.cli import main as cli
from tidings.cli.failures import explain
from tidings.delivery import DeadLettered, Done, Duplicate, Retried, Unsettled
from tidings.observe._progress import STUCK
from tidings.observe.health import LIVE
from tidings.observe.logs import FIELDS
from tools import reference

PAGES = sorted(reference.FOLDER.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_stands_in_the_reference_is_what_the_code_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == reference.filled(text), "write it anew: make reference"


def test_all_that_the_code_says_has_a_place() -> None:
    placed = [found["name"] for page in PAGES for found in reference.PART.finditer(page.read_text(encoding="utf-8"))]
    assert sorted(placed) == sorted(reference.parts())


def test_a_part_that_is_wrong_is_written_anew() -> None:
    page = "a\n<!-- from the code: statuses -->\nold\n<!-- end -->\nb\n"
    new = reference.filled(page)
    assert "| `130` | interrupted" in new
    assert "old" not in new
    assert new.startswith("a\n") and new.endswith("<!-- end -->\nb\n")  # noqa: PT018
    assert reference.filled(new) == new


def test_every_error_stands_in_the_tree_once() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, TidingsError)]
    tree = reference.error_tree()
    for one in classes:
        assert len(re.findall(rf"\b{one.__name__}\b", tree)) == 1, one


def test_the_exit_statuses_of_the_branches_are_those_of_the_page() -> None:
    rows = dict(
        re.findall(r"^\| `(\w+Error)` \|.*exit status (\d) \|$", (reference.FOLDER / "errors.md").read_text(), re.M)
    )
    assert rows == {one.__name__: str(int(explain(one())[0])) for one in TidingsError.__subclasses__()}
    assert explain(WorldError())[0] == 4


def test_every_variable_of_the_environment_stands_in_the_reference() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "src" / "tidings").rglob("*.py"))
    used = set(re.findall(r'"(TIDINGS_[A-Z]+)"', sources))
    page = (reference.FOLDER / "configuration.md").read_text()
    assert used == set(re.findall(r"^\| `(TIDINGS_[A-Z]+)`", page, re.M))


def test_the_numbers_of_the_health_page_are_those_of_the_code() -> None:
    page = (reference.FOLDER / "health.md").read_text()
    assert f"within the last {LIVE:.0f} seconds" in page
    assert STUCK == 60.0
    assert "for a minute" in page


def test_every_outcome_of_the_metrics_is_explained() -> None:
    page = (reference.FOLDER / "metrics.md").read_text()
    for label in ("outcome", "counted", "code", "of"):
        assert f"| `{label}` | `" in page
    kinds = {one.kind for one in (Done, Duplicate, Retried, DeadLettered, Unsettled)} | {"skipped"}
    (row,) = re.findall(r"^\| `outcome` \|(.*)\|$", page, re.M)
    assert set(re.findall(r"`(\w+)`", row)) == kinds


def test_every_command_and_every_field_of_a_log_line_stands_in_the_reference() -> None:
    commands = (reference.FOLDER / "cli.md").read_text()
    for name in (one for one in cli.app if not one.startswith("-")):
        assert f"| `tidings {name}" in commands
    logs = (reference.FOLDER / "logs.md").read_text()
    for field in FIELDS:
        assert f"`{field}`" in logs


def test_the_metrics_of_the_reference_are_all_that_there_are() -> None:
    made = reference.all_metrics()
    named = {re.sub(r"_(total|info)$", "", name) for name in re.findall(r"`(tidings_\w+)`", reference.metrics())}
    assert named == {one.name for one in made.registry.collect() if one.name.startswith("tidings_")}
