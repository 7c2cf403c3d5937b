"""A worker killed with SIGKILL at any point: each effect once, each caused event published."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.nats.server import NatsServer
from tests.integration.postgres.ledger import applied, eventually, in_transaction, notes, waiting
from tests.integration.stores.worker import POINTS, messages
from tidings.brokers import broker_from
from tidings.ports import EVENT_MARK, Plan, StreamPlan

ROOT = Path(__file__).parents[3]
EVENTS = 60
IDS = [f"{number:03}" for number in range(EVENTS)]


def work(url: str, broker: str, published: Path, kind: str, point: str, count: int) -> int:
    """Run the worker until it has done all or is killed; its exit status."""
    command = [sys.executable, "-m", "tests.integration.postgres.worker", url, broker, str(published)]
    done = subprocess.run([*command, str(EVENTS), kind, point, str(count)], cwd=ROOT, timeout=90, check=False)
    return done.returncode


async def kill_and_go_on(url: str, broker: str, published: Path, kind: str, point: str) -> None:
    published.touch()
    assert work(url, broker, published, kind, point, POINTS[point]) == -signal.SIGKILL, "the point was never reached"
    await eventually(lambda: in_transaction(url) == 0)
    if POINTS[point]:  # a part is done, and of each event all of it or nothing
        assert 0 < len(notes(url)) < EVENTS
    assert sorted(notes(url)) == [key.removeprefix(f"{EVENT_MARK}order-") for key in applied(url)]
    assert work(url, broker, published, kind, "never", 0) == 0
    assert sorted(notes(url)) == IDS
    assert applied(url) == [f"{EVENT_MARK}order-{id}" for id in IDS]
    assert waiting(url) == []
    lines = published.read_text().splitlines()
    assert sorted({line.split()[1] for line in lines}) == IDS  # every caused event left
    assert len(set(lines)) == EVENTS  # and with one id, however often
    if point == "after the relay published":
        assert len(lines) > EVENTS, "what was published and not marked comes again"


@pytest.mark.proves(broker="memory", store="postgres")
@pytest.mark.parametrize(
    ("point", "kind"),
    [
        ("after the claim", "connection"),
        ("inside the transaction", "statements"),
        ("after the commit", "connection"),
        *(
            pytest.param(point, kind, marks=pytest.mark.long)
            for point in POINTS
            for kind in ("connection", "statements")
        ),
    ],
)
async def test_P4_a_kill_at_any_point_leaves_each_effect_applied_once(
    url: str, tmp_path: Path, point: str, kind: str
) -> None:
    await kill_and_go_on(url, "memory", tmp_path / "published", kind, point)


@pytest.mark.proves("P3", "P4", broker="nats", store="postgres")
@pytest.mark.parametrize(
    "point",
    ["before the commit", *(pytest.param(point, marks=pytest.mark.long) for point in POINTS)],
)
async def test_P4_a_real_broker_gives_again_what_was_not_acknowledged(url: str, tmp_path: Path, point: str) -> None:
    server = NatsServer(tmp_path / "nats").start()
    try:
        broker = broker_from(server.url)
        await broker.open(Plan(service="shop", streams=(StreamPlan(name="order"),)))
        assert not any(await broker.publish(messages(EVENTS), timeout=10))
        await broker.close()
        await kill_and_go_on(url, f"{server.url}?ack_wait=1s", tmp_path / "published", "connection", point)
    finally:
        server.stop()
