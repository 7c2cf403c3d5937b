"""A key that is held behind a dead letter, with a process killed between each two writes, on NATS with SQLite."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.acceptance.services import Placed
from tests.acceptance.stage import LIMIT, Stage
from tidings import points
from tidings.testing.kills import VARIABLE
from tools.drill_kit import ROOT, Process, until

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="nats", store="sqlite")]

FOLLOWERS = 9
HELD = [Placed(order_id="a", number=number, wanted="fail" if not number else "") for number in range(1 + FOLLOWERS)]
FREE = [Placed(order_id="b", number=number) for number in range(5)]

BURYING = [(points.HELD_NOTED, 1), (points.BEFORE_ACK, 1), (points.AFTER_ACK, 1), (points.HELD_NOTED, 2)]
RELEASING = [
    (points.AFTER_COMMIT, 1),  # the effect is there, and that it has passed is not noted
    (points.HELD_NOTED, 1),  # that is noted, and not acknowledged
    (points.REDRIVEN, 1),  # a copy is on its way, and not marked as such
    (points.REDRIVEN, 3),
    (points.BEFORE_ACK, 2),
]


async def live(stage: Stage, at: str) -> Process:
    env = {"STAGE": str(stage.kit.folder), "NOTES": str(stage.notes)} | ({VARIABLE: at} if at else {})
    arguments = ("--store", f"sqlite:///{stage.database}", "--broker", stage.broker, "--port", "0", "--json")
    return stage.kit.start(
        "run", "tests.acceptance.services:holder", *arguments, name=f"holder {at}", cwd=ROOT, env=env
    )


async def die(stage: Stage, point: str, count: int) -> None:
    """A life that ends with SIGKILL at the point, as long as it comes there."""
    process = await live(stage, f"{point}:{count}")
    ended = await asyncio.to_thread(until, lambda: process.popen.poll() is not None, LIMIT)
    assert ended, f"it never came to {point} for the {count}. time"
    assert process.popen.returncode == -signal.SIGKILL, process.text


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_P7_P8_a_held_key_keeps_its_order_whatever_two_writes_its_process_is_killed_between(
    stage: Stage,
) -> None:
    first = await live(stage, "")
    await asyncio.to_thread(first.ready)
    await asyncio.to_thread(first.end)
    await stage.publish([*HELD, *FREE])
    for point, count in BURYING:
        await die(stage, point, count)
    process = await live(stage, "")
    await stage.wait(lambda: len(stage.rows("holder.keep")) == len(FREE))
    await stage.drained()
    letters = await stage.letters()
    assert {row.key for row in stage.rows("holder.keep")} == {"b"}, "a follower overtook the held event"
    assert sorted(letter["place"] for letter in letters) == list(range(1, 2 + FOLLOWERS))
    (head,) = [letter for letter in letters if letter["place"] == 1]
    assert (head["code"], head["behind"]) == ("failed", "")
    assert {letter["behind"] for letter in letters if letter["place"] > 1} == {head["id"]}
    await asyncio.to_thread(process.end)
    (stage.kit.folder / "mended").touch()
    await stage.tidings("dead", "redrive", head["id"])
    for point, count in RELEASING:
        await die(stage, point, count)
    await live(stage, "")
    await stage.judge("holder.keep", [*HELD, *FREE])
    assert [row.number for row in stage.rows("holder.keep") if row.key == "a"] == list(range(1 + FOLLOWERS))
    assert await stage.letters() == []


async def test_P8_a_blocked_key_waits_while_others_go_on_and_goes_on_by_itself_when_its_first_is_discarded(
    stage: Stage,
) -> None:
    process = await live(stage, "")
    await asyncio.to_thread(process.ready)
    await stage.publish([*HELD, *FREE])
    await stage.applied("holder.keep", len(FREE))
    await stage.drained()
    head, *followers = sorted(await stage.letters(), key=lambda letter: int(letter["place"]))
    assert len(followers) == FOLLOWERS
    await asyncio.to_thread(process.end, signal.SIGKILL)
    await live(stage, "")
    await stage.publish([late := Placed(order_id="a", number=99)])
    await stage.tidings("dead", "discard", head["id"])
    await stage.judge("holder.keep", [*HELD[1:], *FREE, late])
    assert [row.number for row in stage.rows("holder.keep") if row.key == "a"] == [*range(1, 1 + FOLLOWERS), 99]
    assert await stage.letters() == []
