"""Events that kill their process: handled alone, and nobody healthy is buried with them; and counts that survive."""

from __future__ import annotations

import asyncio
import signal
from itertools import pairwise

import pytest

from tests.acceptance.services import Placed
from tests.acceptance.stage import LIMIT, Stage
from tidings import event_id
from tools.drill_kit import ROOT, Process, until

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="nats", store="sqlite")]

HEALTHY = 100
MOST_LIVES = 12


def start(stage: Stage, service: str) -> Process:
    """A process that may die before it is ready."""
    arguments = ("--store", f"sqlite:///{stage.database}", "--broker", f"{stage.server.url}?ack_wait=3s")
    env = {"STAGE": str(stage.kit.folder), "NOTES": str(stage.notes)}
    target = f"tests.acceptance.services:{service}"
    return stage.kit.start("run", target, *arguments, "--port", "0", "--json", name=service, cwd=ROOT, env=env)


def _has_ended(process: Process) -> bool:
    return until(lambda: process.popen.poll() is not None, 1.0)


async def live_until_buried(stage: Stage, service: str) -> int:
    """Start the service again whenever it has died, until the letter is there; how often it died."""
    deaths = 0
    for _ in range(MOST_LIVES):
        process = start(stage, service)
        for _ in range(int(LIMIT)):
            if await asyncio.to_thread(_has_ended, process):
                break
            if await stage.letters():
                return deaths
        assert process.popen.returncode == -signal.SIGKILL, process.text
        deaths += 1
    raise AssertionError(f"it killed {deaths} processes and is no dead letter")


@pytest.mark.parametrize(
    "service", ["deadly", pytest.param("deadly_in_order", marks=[pytest.mark.long, pytest.mark.timeout(300)])]
)
async def test_P6_P7_one_event_that_kills_its_process_is_buried_alone_and_all_the_healthy_beside_it_are_applied(
    stage: Stage, service: str
) -> None:
    events = [Placed(order_id=f"order-{n % 10}", number=n) for n in range(HEALTHY)]
    killer = Placed(order_id="order-5", number=-1, wanted="die")
    declaring = await stage.run(service)
    await asyncio.to_thread(declaring.end, signal.SIGTERM)
    await stage.publish([*events[:45], killer, *events[45:]])
    deaths = await live_until_buried(stage, service)
    await stage.judge("deadly.open-parcel", events)
    (letter,) = await stage.letters()
    assert (letter["code"], letter["event_id"], letter["failures"]) == ("killed", event_id(killer), 2)
    assert letter["reason"] == "killed its process 2 times while it was handled alone"
    assert deaths >= 5, "three deaths make a suspect, two more bury it"


async def _tried(stage: Stage, times: int) -> None:
    await stage.wait(lambda: len(stage.noted("stubborn.refuse")) >= times)


async def test_P6_P8_the_failures_of_an_event_that_waits_in_its_place_survive_the_death_of_its_process(
    stage: Stage,
) -> None:
    process = await stage.run("stubborn")
    await stage.publish([Placed(order_id="a", number=1, wanted="fail"), Placed(order_id="a", number=2)])
    for seen in (1, 3):
        await _tried(stage, seen)
        process.end(signal.SIGKILL)
        process = await stage.run("stubborn")
    await stage.wait(lambda: any(row.number == 2 for row in stage.noted("stubborn.refuse")))
    (letter,) = await stage.letters()
    assert (letter["failures"], letter["code"]) == (4, "failed")
    attempts = [row.attempt for row in stage.noted("stubborn.refuse") if row.number == 1]
    assert all(after >= before for before, after in pairwise(attempts)), f"the count began anew: {attempts}"
    assert set(attempts) == {1, 2, 3, 4}
    assert len(attempts) <= 4 + 2, f"more attempts than one more for each death: {attempts}"
