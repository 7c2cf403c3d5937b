"""``tidings replay``: what is refused, what is asked for, and what is said before it begins."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.service.test_replays import LONG_AGO, World
from tidings import replay
from tidings.cli import main
from tidings.cli.failures import CommandError, Status
from tidings.cli.output import Out
from tidings.cli.replay import Order, obey

SERVICE = """
from tidings import Event, Service

class Placed(Event, type="order.placed", version=1, key="order_id"):
    order_id: str

stock = Service("stock")

@stock.on(Placed)
async def reserve(placed: Placed) -> None: ...
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "replayed_shop.py").write_text(SERVICE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "replayed_shop:stock"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("stock.reserve",), 2, "--from"),
        (("reserve", "--from", "1h"), 2, "'reserve' is no handler: service.handler"),
        (("a.b.c", "--from", "1h"), 2, "is no handler"),
        (("stock.reserve", "--from", "2026-02-01T00:00Z", "--to", "2026-01-01T00:00Z"), 2, "is after --to"),
        (("stock.reserve", "--from", "2999-01-01T00:00Z"), 2, "is still to come"),
        (("stock.reserve", "--from", "soon"), 2, "--from soon: a time with its zone"),
        (("stock.reserve", "--from", "1h", "--rate", "0"), 2, "--rate 0: more than 0"),
        (
            ("stock.reserve", "--from", "1h", "--as", "two"),
            2,
            "its code is needed: tidings replay module:service reserve",
        ),
        (("SHOP", "reserve", "--from", "1h", "--as", "two", "--to", "1m"), 2, "--to, --again and --rate do not go"),
        (("SHOP", "resreve", "--from", "1h"), 3, "has no handler 'resreve'; its handlers: reserve"),
        (("SHOP", "--from", "1h"), 3, "which of its handlers is meant; its handlers: reserve"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(
    shop: str, arguments: tuple[str, ...], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["replay", *(shop if one == "SHOP" else one for one in arguments)]) == status
    assert says in capsys.readouterr().err


def order(**more: Any) -> Order:
    return Order(**{"position": "stock.reserve", "since": LONG_AGO, "asked": "--from 1d", "once": True, **more})


def never() -> Callable[[], bool]:
    return lambda: False


@asynccontextmanager
async def handled(count: int = 4) -> AsyncIterator[World]:
    world = World()
    async with world.running():
        await world.publish(*range(count))
        await world.broker.idle()
        yield world
    await world.broker.close()


@pytest.mark.parametrize("wanted", [order(again=True), order(once=False)])
async def test_effects_are_not_repeated_before_somebody_has_said_yes(wanted: Order) -> None:
    async with handled() as world:
        with pytest.raises(CommandError, match=r"once more.*add --yes"):
            await obey(world.broker, wanted, Out(), never)
        assert await replay.known(world.broker, "stock.reserve") == []


@pytest.mark.parametrize(
    ("once", "again", "says"),
    [
        (True, False, "what was applied before is not repeated\n"),
        (None, False, "unless the handler is idempotent=True: then all of it is\n"),
        (False, False, "(idempotent=True), so every effect is repeated\n"),
        (True, True, "every event is applied once more, and what it causes is published anew\n"),
    ],
)
async def test_it_says_before_it_begins_what_will_be_repeated(
    once: bool | None, again: bool, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with handled() as world:
        assert await obey(world.broker, order(once=once, again=again, yes=True), Out(), never) is Status.OK
        first, last = capsys.readouterr().out.splitlines()
        assert first.startswith("begins replay ")
        assert f"{first}\n".endswith(says)
        assert last == "4 copies are with stock.reserve"


async def test_a_dry_run_counts_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    async with handled() as world:
        before = len(world.broker._server.notes.entries), len(world.deliveries)
        assert await obey(world.broker, order(dry_run=True, again=True), Out(), never) is Status.OK
        await world.broker.idle()
        assert (len(world.broker._server.notes.entries), len(world.deliveries)) == before
        assert world.broker._server.retries.entries == []
    assert "would give 4 events to stock.reserve, stored from" in capsys.readouterr().out


async def test_the_same_command_takes_up_what_was_stopped_and_begins_anew_what_has_ended(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with handled() as world:
        assert await obey(world.broker, order(), Out(json=True), lambda: lambda: True) is Status.INTERRUPTED
        assert await obey(world.broker, order(), Out(json=True), never) is Status.OK
        assert await obey(world.broker, order(), Out(json=True), never) is Status.OK
        begun, stopped, taken_up, done, anew, _ = [json.loads(one) for one in capsys.readouterr().out.splitlines()]
        assert begun["replay"] == stopped["replay"] == taken_up["replay"] == done["replay"] != anew["replay"]
        assert (stopped["state"], taken_up["taken_up"], done["state"], done["copied"]) == ("running", True, "done", 4)
        (first, second) = await replay.known(world.broker, "stock.reserve")
        assert "@" in first.by
        assert first.ended
        assert second.id == anew["replay"]


async def test_another_span_or_a_fresh_one_is_another_replay(capsys: pytest.CaptureFixture[str]) -> None:
    async with handled() as world:
        for wanted in (order(), order(fresh=True), order(asked="--from 2d", since=LONG_AGO - timedelta(days=1))):
            assert await obey(world.broker, wanted, Out(), lambda: lambda: True) is Status.INTERRUPTED
        assert len(await replay.known(world.broker, "stock.reserve")) == 3
    assert "To go on: the same command with --from 1d" in capsys.readouterr().out


async def test_a_handler_that_does_not_run_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "MOST_WAITING", 0)
    monkeypatch.setattr(replay, "LOOK", 0.01)
    async with handled() as world:
        looks = iter([False, False, True])
        assert await obey(world.broker, order(), Out(), lambda: lambda: next(looks)) is Status.INTERRUPTED
    assert capsys.readouterr().err.count("and the replay waits. Does it run?") == 1
