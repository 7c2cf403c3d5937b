"""A worker killed with SIGKILL at any point: each effect once, each caused event published."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.stores.ledger import Where, applied, notes, waiting
from tests.integration.stores.worker import POINTS

ROOT = Path(__file__).parents[3]
EVENTS = 60
CASES = [
    pytest.param(place, kind, id=f"{place}-{kind}", marks=pytest.mark.proves(broker="memory", store=store))
    for place, store, kind in [
        ("sqlite", "sqlite", "with_connection"),
        ("sqlite", "sqlite", "with_sync_session"),
        ("postgresql", "postgres", "with_session"),
        ("mariadb", "mariadb", "with_sync_connection"),
    ]
]


def work(database: Where, published: Path, kind: str, point: str, count: int) -> int:
    """Run the worker until it has done all or is killed; its exit status."""
    command = [sys.executable, "-m", "tests.integration.stores.worker", str(database), str(published)]
    done = subprocess.run([*command, str(EVENTS), kind, point, str(count)], cwd=ROOT, timeout=60, check=False)
    return done.returncode


@pytest.mark.parametrize(("where", "kind"), CASES, indirect=["where"])
@pytest.mark.parametrize("point", POINTS)
def test_P4_a_kill_at_any_point_leaves_each_effect_applied_once(
    where: Where, tmp_path: Path, point: str, kind: str
) -> None:
    database, published = where, tmp_path / "published"
    published.touch()
    assert work(database, published, kind, point, POINTS[point]) == -signal.SIGKILL, "the point was never reached"
    if POINTS[point]:  # a part is done, and of each event all of it or nothing
        assert 0 < len(notes(database)) < EVENTS
    assert sorted(notes(database)) == [key.removeprefix("@order-") for key in applied(database)]
    assert work(database, published, kind, "never", 0) == 0

    ids = [f"{number:03}" for number in range(EVENTS)]
    assert sorted(notes(database)) == ids
    assert applied(database) == [f"@order-{id}" for id in ids]
    assert waiting(database) == []
    lines = published.read_text().splitlines()
    assert sorted({line.split()[1] for line in lines}) == ids  # every caused event left
    assert len(set(lines)) == EVENTS  # and with one id, however often
    if point == "after the relay published":
        assert len(lines) > EVENTS, "what was published and not marked comes again"
