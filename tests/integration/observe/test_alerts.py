"""The alerts: right for promtool, firing for what they are for and for nothing like it, and each with a page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.integration.observe.alert_cases import CASES, Case
from tests.unit.test_docs import ROOT
from tidings import ConfigurationError
from tidings.cli.main import run
from tidings.observe.alerts import names, rules
from tools.services.prometheus import promtool

SEVERITY = re.compile(r"- alert: (\w+)$.*?severity: (\w+)", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("windows", [1.0, 0.05])
def test_promtool_finds_nothing_wrong_with_the_rules(windows: float, tmp_path: Path) -> None:
    path = tmp_path / "rules.yml"
    path.write_text(rules(windows=windows))
    assert f"{len(names()) + 3} rules found" in promtool("check", "rules", str(path))


def written(case: Case, folder: Path) -> Path:
    """The case as a file of promtool's; JSON is YAML too."""
    (folder / "rules.yml").write_text(bare(rules()))
    alerts = [] if case.fires is None else [{"exp_labels": {**case.fires, "severity": severities()[case.alert]}}]
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
                "alert_rule_test": [{"eval_time": f"{case.at}m", "alertname": case.alert, "exp_alerts": alerts}],
            }
        ],
    }
    path = folder / "test.yml"
    path.write_text(json.dumps(test))
    return path


def bare(text: str) -> str:
    """Without the texts for people, which hold figures that no case has to know."""
    return re.sub(r"^ +annotations:\n(?: {10}.+\n)+", "", text, flags=re.MULTILINE)


def severities() -> dict[str, str]:
    return dict(SEVERITY.findall(rules()))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.why}")
def test_an_alert_fires_for_what_it_is_for_and_for_nothing_like_it(case: Case, tmp_path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", str(written(case, tmp_path)))


def test_each_alert_is_shown_to_fire_and_not_to_fire() -> None:
    assert {case.alert for case in CASES if case.fires is not None} == set(names())
    assert {case.alert for case in CASES if case.fires is None} == set(names())


def test_each_alert_says_what_it_means_and_has_a_page() -> None:
    text = rules(runbooks="https://wiki/runbooks/")
    for name in names():
        assert f"runbook_url: https://wiki/runbooks/{name}.md\n" in text
        page = (ROOT / "docs" / "runbooks" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {name}\n")
        assert re.findall(r"^## (.+)$", page, re.MULTILINE) == ["What it means", "Where to look", "What to do"]
    pages = {page.stem for page in (ROOT / "docs" / "runbooks").glob("*.md")} - {"README"}
    assert pages == set(names())
    index = (ROOT / "docs" / "runbooks" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\w+)\.md\)", index) == list(names())


def test_shorter_windows_shorten_every_time_and_no_number_of_events() -> None:
    times = re.compile(r"(?<=\[)\d+[smhd]|(?<=for: )\d+[smhd]|(?<=offset )\d+[smhd]|\d+ \* 60|(?<=seconds\) > )\d+")
    whole, short = rules(), rules(windows=0.1)
    assert times.sub("…", whole) == times.sub("…", short)
    assert not [text for text in times.findall(short) if text.endswith(("m", "h", "d", "60")) and text != "60"]
    assert "for: 20s  # at least 20s" in short, "a process remembers that its loop was blocked for longer than 6 s"
    assert "tidings_call_overdue_seconds) > 6\n" in short
    assert "[90s]" in short


@pytest.mark.parametrize("windows", [0.0, -1.0, float("nan")])
def test_windows_that_are_none_are_refused(windows: float) -> None:
    with pytest.raises(ConfigurationError, match="more than 0"):
        rules(windows=windows)


def test_the_command_prints_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["observe", "alerts", "--windows", "0.05", "--runbooks", "https://wiki"]) == 0
    assert capsys.readouterr().out == rules(windows=0.05, runbooks="https://wiki")


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["observe", "alerts", "--windows", "0"]) != 0
    assert "more than 0" in capsys.readouterr().err


def test_promtool_finds_nothing_wrong_with_the_configuration_for_compose(tmp_path: Path) -> None:
    """Docker is not had here, so what it would mount is laid side by side, as it is there."""
    for source, name in (
        ("deploy/observe/prometheus.yml", "prometheus.yml"),
        ("src/tidings/observe/alerts/rules.yml", "rules.yml"),
    ):
        (tmp_path / name).write_text((ROOT / source).read_text(encoding="utf-8"))
    assert "SUCCESS" in promtool("check", "config", str(tmp_path / "prometheus.yml"))


def test_everything_that_compose_mounts_is_there() -> None:
    mounts = re.findall(r"^ +- \./(\S+?):/", (ROOT / "compose.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(mounts) == 5
    assert [one for one in mounts if not (ROOT / one).exists()] == []
