"""Processes killed, stopped and replaced under load, on NATS with SQLite: what the ledger says at the end."""

from __future__ import annotations

import asyncio
import signal
from itertools import groupby

import pytest

from tests.acceptance.services import Placed
from tests.acceptance.stage import Stage
from tools.drill_kit import Process

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="nats", store="sqlite")]

KEYS = 12


def orders(count: int) -> list[Placed]:
    """Each key gets its numbers in rising order."""
    return [Placed(order_id=f"order-{number % KEYS:02}", number=number) for number in range(count)]


def load(stage: Stage, events: list[Placed], per_second: float = 200.0) -> asyncio.Task[None]:
    return asyncio.create_task(stage.publish(events, per_second=per_second))


def newest(stage: Stage, workers: list[Process]) -> Process:
    """Of these, the worker that applied the newest effect."""
    return next(one for row in reversed(stage.rows("stock.reserve")) for one in workers if one.pid == row.worker)


def check_order(stage: Stage) -> None:
    for key, rows in groupby(sorted(stage.rows("stock.reserve"), key=lambda row: row.key), key=lambda row: row.key):
        numbers = [row.number for row in rows]
        assert numbers == sorted(numbers), f"{key} was handled out of order"


async def test_P4_workers_killed_one_after_the_other_lose_nothing_and_double_nothing(stage: Stage) -> None:
    events = orders(500)
    workers = [(name, await stage.run(name)) for name in ("stock", "money", "money")]
    publishing = load(stage, events)
    for reached in (60, 180, 300):
        await stage.applied("stock.reserve", reached)
        name, killed = workers.pop(0)
        killed.end(signal.SIGKILL)
        workers.append((name, await stage.run(name)))
    await publishing
    await stage.judge("stock.reserve", events)
    await stage.judge("money.charge", events)
    assert await stage.letters() == []


async def test_P4_a_kill_between_the_commit_and_the_publish_of_what_it_caused_loses_nothing(stage: Stage) -> None:
    events = orders(KEYS)
    killed = await stage.run("dying", broker="")
    await stage.publish(events)
    assert await asyncio.to_thread(killed.wait) == -signal.SIGKILL
    assert stage.rows("stock.reserve"), "it was killed before the commit"
    assert (stage.kit.folder / "died").exists()
    await stage.run("money")
    assert stage.rows("money.charge") == []
    await stage.run("dying", broker="")
    await stage.judge("stock.reserve", events)
    await stage.judge("money.charge", events)


async def test_P8_the_order_of_a_key_holds_when_the_active_of_three_processes_is_killed(stage: Stage) -> None:
    events = orders(600)
    workers = [await stage.run("stock") for _ in range(3)]
    publishing = load(stage, events)
    for reached in (100, 250):
        await stage.applied("stock.reserve", reached)
        killed = newest(stage, workers)
        killed.end(signal.SIGKILL)
        workers.remove(killed)
        workers.append(await stage.run("stock"))
    await publishing
    await stage.judge("stock.reserve", events)
    check_order(stage)
    assert len({row.worker for row in stage.rows("stock.reserve")}) >= 2


async def test_P9_a_stop_under_load_finishes_what_runs_and_makes_no_dead_letter(stage: Stage) -> None:
    events = orders(400)
    worker = await stage.run("stock")
    publishing = load(stage, events)
    await stage.applied("stock.reserve", 60)
    slow = Placed(order_id="slow", number=0, wanted="slow")
    await stage.publish([slow])
    await stage.wait((stage.kit.folder / "slow-began").exists)
    assert await asyncio.to_thread(worker.end, signal.SIGTERM) == 0
    assert [row for row in stage.rows("stock.reserve") if row.key == "slow"], "what ran was not finished"
    after = await stage.run("stock")
    await publishing
    await stage.judge("stock.reserve", [*events, slow])
    check_order(stage)
    assert await stage.letters() == []
    assert await asyncio.to_thread(after.end, signal.SIGTERM) == 0


async def test_P3_without_a_store_an_event_whose_process_was_killed_is_handled_again(stage: Stage) -> None:
    killed = await stage.run("long")
    await stage.publish([Placed(order_id="a")])
    await stage.wait(lambda: len(stage.noted("long.take-long")) == 1)
    killed.end(signal.SIGKILL)
    await stage.run("long")
    await stage.wait(lambda: len(stage.noted("long.take-long")) >= 2)
    await stage.drained()
