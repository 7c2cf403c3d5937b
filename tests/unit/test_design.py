"""The pages under docs/design name tests that exist, and the index names every record."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.unit.test_docs import ROOT

DESIGN = ROOT / "docs" / "design"
PAGES = sorted(DESIGN.glob("*.md"))


def names_of_tests(*folders: Path) -> set[str]:
    """The names of all test functions below some folders, methods of classes too."""
    return {
        node.name
        for folder in folders
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_test_that_is_named_exists() -> None:
    there = names_of_tests(ROOT / "tests", ROOT / "src" / "tidings" / "testing")
    named = {name: page.name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text("utf-8"))}
    assert len(named) > 50
    assert {name: page for name, page in named.items() if name not in there} == {}


def test_each_entry_of_what_is_not_obvious_names_a_test() -> None:
    text = (DESIGN / "non-obvious.md").read_text(encoding="utf-8")
    entries = re.findall(r"^\* (.+(?:\n  .+)*)", text, re.MULTILINE)
    assert [entry[:60] for entry in entries if "`test_" not in entry] == []


def test_the_index_names_every_record_by_its_title() -> None:
    rows = re.findall(r"^\| (\d+) \| \[(.+)\]\((.+)\) \|$", (DESIGN / "README.md").read_text("utf-8"), re.MULTILINE)
    titles = {page.name: page.read_text("utf-8").splitlines()[0] for page in PAGES if page.name[0].isdigit()}
    assert {name: f"# {number}. {title}" for number, title, name in rows} == titles
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name[0].isdigit()], ids=lambda page: page.stem)
def test_a_record_says_context_decision_and_consequence(page: Path) -> None:
    headings = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == ["Context", "Decision", "Consequence"]
