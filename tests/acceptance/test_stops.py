"""A service is stopped while its broker is away, and stopped twice: it ends in its time, and nothing is lost."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Literal

import pytest

from tests.acceptance.services import Placed
from tests.acceptance.stage import Stage
from tests.acceptance.test_kills import load, orders
from tidings.brokers import broker_from
from tidings.delivery import Route
from tidings.envelope import read_envelope
from tidings.ports import Plan

pytestmark = [pytest.mark.server, pytest.mark.proves("P9", broker="nats", store="sqlite")]

HANDLERS = ("pair.in-order", "pair.in-no-order")
Away = Literal["hangs", "killed"]


def take_away(stage: Stage, how: Away) -> None:
    if how == "hangs":
        stage.server.pause()
    else:
        stage.server.stop(signal.SIGKILL)


def bring_back(stage: Stage, how: Away) -> None:
    if how == "hangs":
        stage.server.resume()
    else:
        stage.server.start()


async def judge(stage: Stage, events: list[Placed]) -> None:
    """A process that starts afterwards finishes everything: once, in order, and without a letter."""
    after = await stage.run("pair")
    for handler in HANDLERS:
        await stage.judge(handler, events)
    numbers: dict[str, list[int]] = {}
    for row in stage.rows(HANDLERS[0]):
        numbers.setdefault(row.key, []).append(row.number)
    assert all(found == sorted(found) for found in numbers.values()), "out of order"
    assert await stage.letters() == []
    await stage.outbox_empty()
    assert await asyncio.to_thread(after.end, signal.SIGTERM) == 0
    reader = broker_from(stage.broker)
    await reader.open(Plan(service="reader"))
    caused = {read_envelope(one.body, one.headers).id async for one in reader.read(Route.EVENT, "stock")}
    await reader.close()
    assert len(caused) == len(events), "what they caused is lost"


async def both_at_work(stage: Stage) -> list[Placed]:
    """Events that each of the two handlers has begun, and takes long for."""
    slow = [Placed(order_id=f"slow-{name}", wanted=f"slow {name}") for name in ("in-order", "in-no-order")]
    await stage.publish(slow)
    await stage.wait(lambda: all((stage.kit.folder / one.order_id).exists() for one in slow))
    return slow


@pytest.mark.parametrize("how", ["hangs", "killed"])
async def test_P9_a_stop_while_the_broker_is_away_finishes_what_runs_and_ends_in_its_time(
    stage: Stage, how: Away
) -> None:
    stage.broker = stage.server.url  # with the ack wait that everybody has, for which acknowledgements are tried
    events = orders(300)
    worker = await stage.run("pair")
    publishing = load(stage, events)
    await stage.applied("pair.in-no-order", 40)
    slow = await both_at_work(stage)
    await asyncio.to_thread(take_away, stage, how)
    began = time.monotonic()
    status = await asyncio.to_thread(worker.end, signal.SIGTERM)
    took = time.monotonic() - began
    print(f"\nit ended {took:.1f} s after SIGTERM, while the broker {'hung' if how == 'hangs' else 'was gone'}")
    for one, handler in zip(slow, HANDLERS, strict=True):
        assert one.order_id in {row.key for row in stage.rows(handler)}, "what ran was not finished"
    assert status == 0, worker.text
    assert "not stopped after" not in worker.text, "it was ended by its own deadline"
    await asyncio.to_thread(bring_back, stage, how)
    await publishing
    await judge(stage, [*events, *slow])


@pytest.mark.parametrize("how", ["there", "hangs", "killed"])
async def test_P9_a_second_signal_ends_it_at_once_and_loses_nothing(stage: Stage, how: Literal["there"] | Away) -> None:
    events = orders(300)
    worker = await stage.run("pair")
    publishing = load(stage, events)
    await stage.applied("pair.in-no-order", 40)
    slow = await both_at_work(stage)
    held = Placed(order_id="held", wanted="held in-order")  # so that it cannot end before the second signal
    await stage.publish([held])
    await stage.wait((stage.kit.folder / "held-in-order").exists)
    if how != "there":
        await asyncio.to_thread(take_away, stage, how)
    worker.send(signal.SIGTERM)
    await stage.wait(lambda: "stopping; what runs is finished first" in worker.text)
    assert await asyncio.to_thread(worker.end, signal.SIGTERM, 15.0) == 130  # less than a stop has for what runs
    (stage.kit.folder / "let-go").touch()
    if how != "there":
        await asyncio.to_thread(bring_back, stage, how)
    await publishing
    await judge(stage, [*events, *slow, held])
