"""What cannot be handled, and what fails for a while: letters, redrives, retries, on NATS with SQLite."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from itertools import pairwise

import msgspec
import pytest

from tests.acceptance.services import DELAY, Placed
from tests.acceptance.stage import Stage
from tests.acceptance.test_delayed import waiting
from tidings.cli.failures import Status
from tidings.envelope import envelope_of, to_structured
from tools.drill_kit import Process
from tools.drill_shop import backlog, send_raw

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="nats", store="sqlite")]

GARBAGE = (b"", b"\xff\xfe\x00garbage", b"{", b"[1, 2]", b"[" * 4000 + b"]" * 4000, b'{"type": "order.placed"}')


def from_the_future(order: str) -> bytes:
    envelope = envelope_of(Placed(order_id=order), "tomorrow")
    return to_structured(msgspec.structs.replace(envelope, version="v9"))


async def test_P13_garbage_and_unknown_versions_become_letters_and_hold_up_nothing(stage: Stage) -> None:
    worker = await stage.run("stock")
    before, after = [Placed(order_id="before")], [Placed(order_id=f"after-{n}") for n in range(20)]
    await stage.publish(before)
    bodies = [*GARBAGE, from_the_future("future-1"), from_the_future("future-2")]
    await asyncio.to_thread(send_raw, stage.server.url, "order.placed", bodies)
    await stage.publish(after)
    await stage.judge("stock.reserve", [*before, *after])
    letters = await stage.letters()
    codes = sorted(letter["code"] for letter in letters)
    assert codes == sorted(
        ["empty", "not-json", "not-json", "not-an-envelope", "too-deep", "not-an-envelope", *2 * ["unknown-version"]]
    )
    assert worker.popen.poll() is None
    shown = await stage.tidings("dead", "show", *(letter["id"] for letter in letters))
    kept = {bytes.fromhex(one["body_hex"]) for one in shown if "body_hex" in one}
    assert {GARBAGE[0], GARBAGE[1], GARBAGE[2], GARBAGE[4]} <= kept, "the bytes were not kept as they were"


async def test_P7_a_letter_redriven_twice_is_applied_once_by_the_handler_that_failed(stage: Stage) -> None:
    await stage.run("stock")
    await stage.run("flaky")
    order = Placed(order_id="a", wanted="fail")
    await stage.publish([order])
    await stage.wait(lambda: len(stage.noted("flaky.deliver")) == 3)  # another handler, which succeeds in the end
    async with asyncio.timeout(60):
        while not (letters := await stage.letters()):  # noqa: ASYNC110  # another process writes them
            await asyncio.sleep(0.2)
    assert [(one["position"], one["code"], one["failures"]) for one in letters] == [("stock.reserve", "failed", 2)]
    assert stage.rows("stock.reserve") == [], "what failed was not taken back"
    (stage.kit.folder / "mended").touch()
    await stage.tidings("dead", "redrive", letters[0]["id"])
    await stage.tidings("dead", "redrive", letters[0]["id"], "--again")
    await stage.judge("stock.reserve", [order])
    assert await stage.letters() == []
    assert len(stage.noted("flaky.deliver")) == 3, "the letter reached a handler that had not failed"


async def test_P6_a_retry_comes_after_its_delay_and_its_failures_are_counted_across_a_restart(stage: Stage) -> None:
    worker = await stage.run("flaky")
    healthy = [Placed(order_id=f"healthy-{number}") for number in range(10)]
    await stage.publish([Placed(order_id="a", wanted="fail"), *healthy])
    await stage.wait(lambda: len(stage.noted("flaky.deliver")) >= 1 + len(healthy))
    between = [row.key for row in stage.noted("flaky.deliver")][1:]
    assert between[: len(healthy)] == [order.order_id for order in healthy], "a retry held up healthy events"
    await stage.wait(lambda: len(asyncio.run(waiting(stage))) == 1)
    worker.end(signal.SIGKILL)
    await stage.run("flaky")
    await stage.wait(lambda: len([row for row in stage.noted("flaky.deliver") if row.key == "a"]) == 3)
    tries = [row for row in stage.noted("flaky.deliver") if row.key == "a"]
    assert [row.attempt for row in tries] == [1, 2, 3]
    assert tries[0].worker != tries[1].worker == tries[2].worker != os.getpid()
    pauses = [later.at - earlier.at for earlier, later in pairwise(tries)]
    assert all(pause >= DELAY for pause in pauses), pauses
    await stage.drained()
    assert await stage.letters() == []


async def test_P14_cause_and_correlation_pass_through_a_chain_of_three_services(stage: Stage) -> None:
    for service in ("stock", "money", "post"):
        await stage.run(service)
    orders = [Placed(order_id=f"order-{number}") for number in range(3)]
    await stage.publish(orders)
    await stage.judge("post.send", orders)
    placed, reserved, charged = [
        {one["subject"]: one for one in await stage.tidings("tail", stream)} for stream in ("order", "stock", "payment")
    ]
    assert set(placed) == set(reserved) == set(charged) == {order.order_id for order in orders}
    for key, first in placed.items():
        story = first.get("correlationid", first["id"])
        assert reserved[key]["causationid"] == first["id"]
        assert charged[key]["causationid"] == reserved[key]["id"]
        assert reserved[key]["correlationid"] == charged[key]["correlationid"] == story
        assert len({first["id"], reserved[key]["id"], charged[key]["id"]}) == 3
        assert (reserved[key]["source"], charged[key]["source"]) == ("stock", "money")


async def test_P7_P8_many_letters_redriven_by_a_command_that_is_stopped_and_killed_are_applied_once_and_in_order(
    stage: Stage,
) -> None:
    await stage.run("stock")
    orders = [Placed(order_id=f"k{number % 20}", number=number, wanted="reject") for number in range(200)]
    await stage.publish(orders)
    await stage.wait(lambda: not backlog(stage.server.url))
    letters = await stage.letters()
    assert len(letters) == len(orders)
    (stage.kit.folder / "mended").touch()
    choice = ("dead", "redrive", "--handler", "stock.reserve", "--broker", stage.broker, "--json")
    assert len(await stage.tidings("dead", "redrive", "--handler", "reserve", "--dry-run")) == len(orders)
    assert await stage.letters() == letters, "a dry run changed something"
    gone = 0
    for number in (signal.SIGINT, signal.SIGKILL):
        command = stage.kit.start(*choice, "--rate", "20", "--yes", "--reason", "mended", name=f"redrive-{number}")
        await stage.wait(partial(has_changed, command, 20))
        status = command.end(number)
        assert status == (Status.INTERRUPTED if number == signal.SIGINT else -number)
        gone += len(changed(command))
        if number == signal.SIGINT:
            assert len(await stage.letters()) == len(orders) - gone, "what was stored is not what was told"
    await stage.tidings("dead", "redrive", "--handler", "stock.reserve", "--yes")
    await stage.judge("stock.reserve", orders)
    assert await stage.letters() == []
    for key in {order.order_id for order in orders}:
        applied = [row.number for row in stage.rows("stock.reserve") if row.key == key]
        assert applied == sorted(applied), f"{key} was reordered"
    (shown,) = await stage.tidings("dead", "show", letters[0]["id"])
    (mark,) = shown["marks"]
    assert (mark["what"], mark["reason"], mark["choice"]) == ("redriven", "mended", "--handler stock.reserve")
    assert "@" in mark["by"]


async def test_P7_a_redriven_letter_that_dies_again_points_back(stage: Stage) -> None:
    await stage.run("stock")
    await stage.publish([Placed(order_id="a", wanted="reject")])
    await stage.wait(lambda: not backlog(stage.server.url))
    (first,) = await stage.letters()
    await stage.tidings("dead", "redrive", first["id"])
    async with asyncio.timeout(60):
        while not (letters := await stage.letters()):  # noqa: ASYNC110  # another process writes them
            await asyncio.sleep(0.2)
    (second,) = letters
    assert (second["redriven_from"], second["event_id"]) == (first["id"], first["event_id"])
    (shown,) = await stage.tidings("dead", "show", first["id"])
    assert (shown["state"], shown["died_again"]) == ("redriven", second["id"])


def has_changed(command: Process, least: int) -> bool:
    return len(changed(command)) >= least


def changed(command: Process) -> list[str]:
    """The letters that a command says it has changed."""
    return [one["id"] for one in command.records if one.get("changed")]
