"""Histories given again on NATS with SQLite: the command and the worker are killed in the middle, the ledger judges."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest

from tests.acceptance.services import Placed
from tests.acceptance.stage import Stage
from tidings.brokers import broker_from
from tidings.cli.failures import Status
from tidings.ports import Plan
from tidings.replay import known, write
from tools.drill_kit import ROOT, Process

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="nats", store="sqlite")]

TARGET = "tests.acceptance.services:history"
HANDLER = "history.record"


def orders(begin: int, end: int) -> list[Placed]:
    return [Placed(order_id=f"k{number % 10}", number=number) for number in range(begin, end)]


def start(stage: Stage, *arguments: str, name: str) -> Process:
    """The command, beside the test."""
    env = {"STAGE": str(stage.kit.folder), "NOTES": str(stage.notes)}
    everything = ("replay", *arguments, "--broker", stage.broker, "--json")
    return stage.kit.start(*everything, name=name, cwd=ROOT, env=env)


async def judge(stage: Stage, events: Sequence[Placed], times: int) -> None:
    """Each event has its effect so often, and copies of a key were handled in the order of the stream."""
    wanted = {(one.order_id, one.number): times for one in events}
    await stage.wait(lambda: len(stage.rows(HANDLER)) >= times * len(events))
    await stage.drained()
    effects = Counter((row.key, row.number) for row in stage.rows(HANDLER))
    assert effects == wanted


async def lose_the_progress(stage: Stage, id: str) -> None:
    broker = broker_from(stage.broker)
    await broker.open(Plan(service="test"))
    try:
        (found,) = [one for one in await known(broker, HANDLER) if one.id == id]
        await write(broker, msgspec.structs.replace(found, copied=0, place=(), stored=0.0, state="running"))
    finally:
        await broker.close()


def in_order(stage: Stage, since: int) -> None:
    rows = stage.rows(HANDLER)[since:]
    for key in {row.key for row in rows}:
        applied = [row.number for row in rows if row.key == key]
        assert applied == sorted(applied), f"{key} was reordered"


async def test_P4_P7_P8_a_replay_that_is_killed_and_whose_worker_is_killed_repairs_and_repeats_nothing(
    stage: Stage,
) -> None:
    missed, live = orders(0, 1500), orders(1500, 1600)
    await stage.publish(missed)
    worker = await stage.run("history")
    await stage.publish(live)
    await stage.applied(HANDLER, len(live))
    (dry,) = await stage.tidings("replay", HANDLER, "--from", "1h", "--dry-run")
    assert dry["events"] == len(missed) + len(live)
    for number in (signal.SIGINT, signal.SIGKILL):
        before = len(stage.rows(HANDLER))
        command = start(stage, HANDLER, "--from", "1h", "--rate", "150", name=f"replay-{number}")
        await stage.applied(HANDLER, before + 150)
        if number == signal.SIGKILL:
            worker.end(signal.SIGKILL)
        assert command.end(number) == (Status.INTERRUPTED if number == signal.SIGINT else -number)
    await stage.run("history")
    taken_up, done = await stage.tidings("replay", HANDLER, "--from", "1h")
    assert (taken_up["taken_up"], done["state"]) == (True, "done")
    assert len(missed) <= done["copied"] <= len(missed) + len(live)
    await judge(stage, [*missed, *live], times=1)
    in_order(stage, len(live))
    assert {row.number for row in stage.noted("history.witness")} == {one.number for one in live}, "it reached another"
    assert await stage.letters() == []


async def test_P4_again_applies_everything_once_more_and_within_the_replay_nothing_twice(stage: Stage) -> None:
    worker = await stage.run("history")
    placed = orders(0, 800)
    await stage.publish(placed)
    await judge(stage, placed, times=1)
    again = (HANDLER, "--from", "1h", "--again", "--yes")
    command = start(stage, *again, "--rate", "150", name="again")
    await stage.applied(HANDLER, len(placed) + 150)
    worker.end(signal.SIGKILL)
    command.end(signal.SIGKILL)
    await stage.run("history")
    taken_up, done = await stage.tidings("replay", *again)
    assert (taken_up["taken_up"], done["copied"]) == (True, len(placed))
    await judge(stage, placed, times=2)
    in_order(stage, len(placed))
    # A kill before the progress was written down, and a server that has forgotten the ids: everything comes once more.
    await asyncio.to_thread(stage.server.stop)
    await asyncio.to_thread(stage.server.start)
    await lose_the_progress(stage, done["replay"])
    _, done = await stage.tidings("replay", *again)
    assert done["copied"] == len(placed)
    await judge(stage, placed, times=2)
    ids = [one["id"] for one in await stage.tidings("tail", "stock.reserved")]
    assert len(ids) == len(set(ids)) == 2 * len(placed), "what was caused again has no ids of its own, or was repeated"
    assert len(stage.noted("history.witness")) == len(placed), "it reached another handler"


@pytest.mark.long
async def test_P4_a_position_beside_the_live_one_is_killed_and_goes_on_where_it_was(stage: Stage) -> None:
    await stage.run("history")
    placed = orders(0, 1500)
    await stage.publish(placed)
    await judge(stage, placed, times=1)
    beside = (TARGET, "record", "--from", "1h", "--as", "record-two", "--store", f"sqlite:///{stage.database}")
    command = start(stage, *beside, name="beside")
    await stage.applied(HANDLER, len(placed) + 50)
    command.end(signal.SIGKILL)
    last = start(stage, *beside, name="beside-again")
    assert await asyncio.to_thread(last.wait, 120.0) == 0, last.text
    assert last.records[-1]["left"] == 0
    await stage.wait(lambda: len(stage.rows(HANDLER)) >= 2 * len(placed))
    effects = Counter((row.key, row.number) for row in stage.rows(HANDLER))
    assert effects == {(one.order_id, one.number): 2 for one in placed}
    assert len(stage.noted("history.witness")) == len(placed), "it reached another handler"
