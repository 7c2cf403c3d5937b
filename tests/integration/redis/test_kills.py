"""Workers killed with SIGKILL or paused with SIGSTOP, and what it costs: nothing is lost, and what repeats is known."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.nats.server import NatsServer
from tests.integration.redis.kit import look
from tests.integration.redis.worker import OrderPlaced, create, ids, rows
from tests.unit.parts import until
from tidings import Service
from tools.services.freezing import freeze
from tools.services.redis import Redis

ROOT = Path(__file__).parents[3]
EVENTS = 40
BATCH = 16
LEASE = "lease=600ms"

REPEATS = {
    "before the claim": 0,
    "after the claim": 0,
    "after the effect": 4,
    "before it is done": BATCH,
    "after it is done": 0,
    "never": 0,
}
"""At most so many effects are made again: those between the first effect of a batch and its mark."""


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    create(path)
    return path


Worker = subprocess.Popen[bytes]


def start(
    url: str, ledger: Path, point: str, count: int = 0, *, broker: str = "memory", events: int = EVENTS
) -> Worker:
    command = [sys.executable, "-m", "tests.integration.redis.worker", url, str(ledger), str(events)]
    return subprocess.Popen([*command, point, str(count), broker], cwd=ROOT)


@contextmanager
def gone_afterwards(*workers: Worker) -> Iterator[None]:
    """Whatever the test finds, no worker outlives it."""
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.wait(10)


def ended(worker: Worker) -> int:
    """Its status at its end."""
    with gone_afterwards(worker):
        return worker.wait(60)


async def all_are_applied(ledger: Path, by: Worker) -> None:
    """Wait for it. The limit is far beyond what it takes: a starved machine took 48 s, and that is no failure."""

    def applied() -> bool:
        assert by.poll() is None, f"the worker ended with status {by.returncode}"
        return {id for id, *_ in rows(ledger)} == set(ids(EVENTS))

    await until(applied, 120)


def judge(ledger: Path, point: str) -> None:
    effects = [id for id, *_ in rows(ledger)]
    assert sorted(set(effects)) == ids(EVENTS), "lost"
    repeated = len(effects) - EVENTS
    if REPEATS[point]:
        assert 0 < repeated <= REPEATS[point], "the window is as it is documented"
    else:
        assert repeated == 0, "applied twice"


@pytest.mark.proves(broker="memory", store="redis")
@pytest.mark.parametrize("point", [point for point in REPEATS if point != "never"])
def test_P5_trap_122_a_kill_at_any_point_loses_nothing_and_repeats_only_what_was_not_marked(
    server: Redis, ledger: Path, point: str
) -> None:
    url = f"{server.url}?{LEASE}"
    count = 3 if point == "after the effect" else 0
    assert ended(start(url, ledger, point, count)) == -signal.SIGKILL, "the point was never reached"
    assert ended(start(url, ledger, "never")) == 0
    judge(ledger, point)


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[str]:
    server = NatsServer(tmp_path / "nats").start()
    yield f"{server.url}?ack_wait=1s"
    server.stop()


@pytest.mark.server
@pytest.mark.proves("P3", broker="nats", store="redis")
@pytest.mark.parametrize("point", ["after the claim", "before it is done"])
async def test_P5_a_kill_is_survived_on_a_real_broker(server: Redis, nats: str, ledger: Path, point: str) -> None:
    url = f"{server.url}?{LEASE}"
    front = Service("front", broker=nats, publishes=[OrderPlaced])
    async with front.running():
        answers = await front.publish_many([OrderPlaced(order_id=id) for id in ids(EVENTS)])
        assert not any(answers)
    killed = start(url, ledger, point, broker=nats)
    assert await asyncio.to_thread(ended, killed) == -signal.SIGKILL
    after = start(url, ledger, "never", broker=nats)
    with gone_afterwards(after):
        await all_are_applied(ledger, after)
        after.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(after.wait, 30) == 0
    judge(ledger, point)


@pytest.mark.long
@pytest.mark.server
@pytest.mark.proves("P3", broker="nats", store="redis")
async def test_P5_trap_124_a_worker_that_is_starved_beyond_its_lease_and_ack_wait_applies_nothing_twice(
    server: Redis, nats: str, ledger: Path
) -> None:
    """It stands still again and again, for longer than either: what it holds comes again, and nobody else is there."""
    front = Service("front", broker=nats, publishes=[OrderPlaced])
    async with front.running():
        assert not any(await front.publish_many([OrderPlaced(order_id=id) for id in ids(EVENTS)]))
    starved = start(f"{server.url}?{LEASE}", ledger, "never", broker=nats)
    applied = asyncio.create_task(all_are_applied(ledger, starved))
    dice = random.Random(124)
    with gone_afterwards(starved):
        while not applied.done():
            starved.send_signal(signal.SIGSTOP)
            await asyncio.sleep(dice.choice([0.05, 0.3, 0.8, 1.5]))
            starved.send_signal(signal.SIGCONT)
            await asyncio.sleep(dice.choice([0.002, 0.01, 0.05, 0.2, 0.5]))
        await applied
        await asyncio.sleep(3 * 1.0)  # the ack wait: whatever would come again
        starved.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(starved.wait, 30) == 0
    judge(ledger, "never")


@pytest.mark.proves(broker="memory", store="redis")
async def test_P5_trap_124_a_worker_paused_beyond_its_lease_is_fenced_and_marks_nothing(
    server: Redis, ledger: Path
) -> None:
    url = f"{server.url}?{LEASE}"
    late = start(url, ledger, "waits", events=1)
    with gone_afterwards(late):
        await until(ledger.with_suffix(".began").exists, 60)
        freeze(late.pid)
        other = start(url, ledger, "never", events=1)
        assert await asyncio.to_thread(ended, other) == 0, "its events become free when the lease is over"
        with look(server.url) as client:
            (stored,) = client.keys("tidings:stock.reserve:*")
            mark = client.get(stored)
            assert mark.startswith(b"D")
            ledger.with_suffix(".go").touch()
            os.kill(late.pid, signal.SIGCONT)
            assert await asyncio.to_thread(late.wait, 60) == 0, "it learns that its event is a duplicate, and goes on"
            assert client.get(stored) == mark, "it cannot mark, renew or release what is not its own"
    (_, first, number, accepted), (_, second, smaller, refused) = rows(ledger)
    assert (first, accepted) == (other.pid, 1)
    assert (second, refused) == (late.pid, 0), "the resource saw the greater number, and refuses the smaller one"
    assert smaller < number
