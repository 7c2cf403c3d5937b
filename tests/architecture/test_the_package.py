"""The package holds every rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture.rules import RULES, Rule
from tests.architecture.source import PACKAGE

ROOT = Path(__file__).parents[2] / "src" / PACKAGE


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_holds_the_rule(rule: Rule) -> None:
    found = rule(ROOT)
    assert not found, f"{rule.__doc__}\n" + "\n".join(found)


def test_the_rules_look_at_the_package_itself() -> None:
    assert list(ROOT.rglob("*.py")), f"{ROOT} has no source, so that no rule could find anything"


def test_every_public_name_can_be_had() -> None:
    import tidings

    assert [name for name in getattr(tidings, "__all__", ()) if not hasattr(tidings, name)] == []
