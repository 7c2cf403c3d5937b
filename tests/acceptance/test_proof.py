"""The proof on real parts, in its quick form: real processes on a real server are killed, and a ledger judges."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tidings.testing.kills import install, parse
from tools.drill_kit import ROOT
from tools.proof.__main__ import main
from tools.proof.every import STORES
from tools.proof.report import Line, Total
from tools.proof.rounds import points_of
from tools.proof.turns import manner
from tools.proof.verdict import Verdict
from tools.proof.world import Manner

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="nats", store="sqlite")]

LAST = re.compile(
    r"rounds=(?P<rounds>\d+) kills=(?P<kills>\d+) deliveries=(?P<deliveries>\d+) redeliveries=(?P<redeliveries>\d+)"
    r" lost=(?P<lost>\d+) applied_twice=(?P<twice>\d+)"
)


def prove(*arguments: str) -> tuple[int, dict[str, int], str]:
    """Run the proof; its exit status, its last line, and all that it said."""
    command = [sys.executable, "-m", "tools.proof", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    said = done.stdout + done.stderr
    found = LAST.fullmatch(done.stdout.splitlines()[-1])
    assert found, said
    return done.returncode, {name: int(value) for name, value in found.groupdict().items()}, said


def test_P4_the_quick_proof_kills_and_loses_nothing_and_doubles_nothing() -> None:
    status, last, said = prove("--quick", "--random", "4")
    assert status == 0, said
    assert last["rounds"] == 3
    assert last["kills"] >= 3
    assert last["redeliveries"] > 0
    assert last["lost"] == last["twice"] == 0


def test_the_quick_proof_catches_an_acknowledgement_before_the_commit() -> None:
    """Awake: the same rounds with a bug in the workers fail, and say what was lost."""
    status, last, said = prove("--quick", "--seed", "ack-before-commit", "--random", "4")
    assert status == 1, said
    assert last["lost"] > 0
    assert "ack-before-commit (the broker is told before the commit): caught" in said


def test_the_proof_fails_where_nothing_is_delivered_again_and_something_must_be() -> None:
    """Awake in the other way, too: kills that leave nothing open prove nothing."""
    status, last, said = prove("--quick", "--seed", "blind-to-redeliveries", "--random", "4")
    assert status == 1, said
    assert last["redeliveries"] == last["lost"] == last["twice"] == 0
    assert "nothing was delivered again, so the kill did not fall where it should" in said
    assert "blind-to-redeliveries (each delivery is written down as the first): caught" in said


def test_some_rounds_at_a_point_together_must_show_redeliveries() -> None:
    line = Line("SQLite", "random", must_redeliver=True)
    for redeliveries in (0, 0, 0):
        line.add(Manner("batch"), Verdict(kills=3, redeliveries=redeliveries))
    assert Total([line]).passed, "chance may have it so, three times"
    line.add(Manner("batch"), Verdict(kills=3))
    assert not Total([line]).passed
    assert Total([line]).wrong == ["SQLite, random: nothing was delivered again in 4 rounds, so no kill hit"]
    line.add(Manner("batch"), Verdict(kills=3, redeliveries=1))
    assert Total([line]).passed


@pytest.mark.parametrize("name", STORES)
def test_each_kind_of_handler_meets_each_point_and_each_way_out(name: str) -> None:
    """In a whole run, by the turns alone; and a whole run in which one did not is no proof."""
    kind = STORES[name]
    points, variants = points_of(kind), tuple(kind.variants)
    met = {
        (point, manner(kind, place, turn))
        for place, (point, count) in enumerate(points.items())
        for turn in range(count)
    }
    assert {(point, how.variant) for point, how in met} == {(point, one) for point in points for one in variants}
    ways = {how.way for _, how in met}
    assert ways == ({"before the mark"} if kind.effects_elsewhere else {"from memory", "by the relay"})
    assert {(how.variant, how.way) for _, how in met} == {(one, way) for one in variants for way in ways}

    line = Line(kind.title, "random", variants)
    line.add(Manner(variants[0]), Verdict())
    assert Total([line]).passed
    assert Total([line], whole=True).wrong == [f"{kind.title}: {one} never met random" for one in variants[1:]]


def test_a_bug_that_nobody_knows_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["--seed", "coffee"])
    assert refused.value.code == 2
    said = capsys.readouterr().err
    assert "unknown seed: coffee. There are mark-before-effect, ack-before-commit, publish-outside" in said


def test_a_process_is_armed_only_by_a_point_that_exists(caplog: pytest.LogCaptureFixture) -> None:
    from tidings import points

    install({})
    assert points.reached is None
    assert parse("after-commit") == ("after-commit", 1)
    for wrong in ("after-lunch:1", "after-commit:0", "after-commit:soon"):
        with pytest.raises(ValueError, match="TIDINGS_KILL_AT"):
            install({"TIDINGS_KILL_AT": wrong})
    assert points.reached is None
    try:
        install({"TIDINGS_KILL_AT": "after-commit:1000"})
        assert "this process ends itself with SIGKILL there" in caplog.text
    finally:
        points.reached = None
