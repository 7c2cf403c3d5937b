"""Dead letters on the command line: which are meant, how carefully, and what is shown of them."""

from __future__ import annotations

import json
import os
import pty
from contextlib import closing
from typing import Any

import pytest

from tests.unit.observe.shop import Placed, shop
from tests.unit.parts import delivery
from tidings import BrokerUnavailable, ConfigurationError, dead_letters
from tidings.bulk import TOGETHER, Choice
from tidings.cli.dead import Order, _confirm, carry_out, obey
from tidings.cli.failures import CommandError, Status
from tidings.cli.letters import grouped, story
from tidings.cli.output import Out
from tidings.cli.progress import Progress
from tidings.cli.who import who
from tidings.copies import dead_letter
from tidings.dead_letters import Letter, Mark
from tidings.delivery import DeadLettered
from tidings.testing import MemoryBroker


def letter(**fields: Any) -> Letter:
    known = {
        "id": "a" * 24,
        "position": "stock.reserve",
        "stream": "order",
        "type": "order.placed",
        "key": "o-1",
        "event_id": "e-1",
        "code": "failed",
        "reason": "ValueError: no",
        "failures": 2,
        "first_failure": "2026-01-01T00:00:00+00:00",
        "last_failure": "2026-01-02T00:00:00+00:00",
        "origin": "order@7",
        "whole": True,
    }
    return Letter(**{**known, **fields})


def test_those_that_died_alike_stand_together() -> None:
    alike = [
        letter(
            id=f"{number:024}", reason=f"failed {number} times: ValueError: {number}", last_failure=f"2026-01-0{day}"
        )
        for number, day in enumerate([3, 1, 5, 2, 4])
    ]
    others = [letter(reason="failed 2 times: KeyError: no"), letter(code="bad-data", reason="no JSON")]
    rows = grouped([*alike, *others])
    assert [(row[0], row[3]) for row in rows] == [("5", "failed"), ("1", "failed"), ("1", "bad-data")]
    assert rows[0][4:8] == (alike[0].error, "2026-01-01", "2026-01-05", alike[2].id[:10])


def test_those_that_died_once_and_oftener_of_the_same_stand_together() -> None:
    rows = grouped([letter(reason="failed once: ValueError: no"), letter(reason="failed 3 times: ValueError: no")])
    assert [row[0] for row in rows] == ["2"]


def order(verb: str = "redrive", past: Any = "redriven", **more: Any) -> Order:
    return Order(verb, past, (), Choice(handler="reserve"), **more)


async def test_more_than_one_are_only_changed_when_it_is_said_twice() -> None:
    with pytest.raises(CommandError, match=r"redrive 2 letters.*--yes"):
        await _confirm(order(), 2)
    await _confirm(order(), 1)
    await _confirm(order(yes=True), 12)


@pytest.mark.parametrize(("answer", "goes_on"), [("y", True), ("YES", True), ("", False), ("yes please", False)])
async def test_a_question_goes_on_after_a_yes_alone(
    answer: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keyboard, terminal = pty.openpty()
    with closing(os.fdopen(terminal, "r")) as there, closing(os.fdopen(keyboard, "wb", buffering=0)) as typed:
        monkeypatch.setattr("sys.stdin", there)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        monkeypatch.setattr("tidings.cli.asking.opened", lambda name: os.fdopen(os.dup(terminal), "rb"))
        typed.write(answer.encode() + b"\n")
        if goes_on:
            await _confirm(order(), 2)
        else:
            with pytest.raises(CommandError, match="nothing was changed"):
                await _confirm(order(), 2)
    assert "redrive 2 letters? [y/N]" in capsys.readouterr().err


def test_a_story_says_who_did_what_when_and_why_and_what_came_of_it() -> None:
    marks = [
        Mark("redriven", "2026-01-03T00:00:00+00:00", "ann@host", "--handler reserve", "the shelf is mended"),
        Mark("discarded", ""),
    ]
    found = story(letter(marks=marks, died_again="b" * 24, redriven_from="c" * 24, where="shop.py:reserve"))
    assert (
        "redriven     2026-01-03T00:00:00+00:00 by ann@host, chosen by --handler reserve, because: the shelf" in found
    )
    assert "discarded    at an unknown time" in found
    assert "(dead, redriven once)" in story(letter(redriven=1))
    assert f"as letter {'b' * 24}" in found
    assert f"letter {'c' * 24}, which was redriven and died again" in found
    assert "raised in shop.py:reserve" in found


def test_a_story_cannot_forge_lines_or_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    """Trap 169."""
    forged = "x\x1b[2J\rletter 1 (done)"
    Out().text(story(letter(key=forged, traceback=f"Traceback\n{forged}", headers={"a": forged}, body=b"\x00\xffz")))
    found = capsys.readouterr().out
    assert "\x1b" not in found
    assert "\r" not in found
    assert "3 bytes that are no JSON" in found
    assert "00 ff 7a" in found


async def dead(count: int) -> MemoryBroker:
    """A broker with so many dead letters."""
    service, broker = shop(), MemoryBroker()
    await broker.open(service.plan)
    async with service.running(broker=broker):
        for number in range(count):
            await service.publish(Placed(order_id=str(number), wanted="dead"))
        await broker.idle()
    return broker


async def test_P7_letters_are_redriven_whole_also_when_they_are_more_than_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    broker = await dead(TOGETHER + 3)
    letters = await dead_letters.list_letters(broker)
    ids = [one.id for one in letters]
    assert len(ids) == TOGETHER + 3
    assert await carry_out(broker, order(), letters, Out(json=True)) is Status.OK
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["id"] for record in records] == ids
    assert await dead_letters.list_letters(broker) == []
    assert len(await dead_letters.list_letters(broker, state="redriven")) == len(ids)


async def test_one_letter_that_cannot_be_changed_does_not_hold_up_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    broker = await dead(3)
    letters = await dead_letters.list_letters(broker)
    broker.fail_publish(BrokerUnavailable("gone"), times=1)
    assert await carry_out(broker, order("discard", "discarded"), letters, Out()) is Status.WORLD
    told = capsys.readouterr().out
    assert f"{letters[0].id}: not discarded: gone" in told
    assert "2 discarded, 1 failed" in told
    assert await dead_letters.list_letters(broker) == letters[:1]


async def test_what_was_not_reached_is_left_for_the_same_command(capsys: pytest.CaptureFixture[str]) -> None:
    broker = await dead(5)
    letters = await dead_letters.list_letters(broker)
    answers = iter([False, False, True])
    assert await carry_out(broker, order(rate=1e4), letters[:1], Out(), lambda: next(answers)) is Status.OK
    assert await carry_out(broker, order(rate=1e4), letters[1:], Out(), lambda: True) is Status.INTERRUPTED
    assert "4 were not reached; the same command goes on" in capsys.readouterr().err
    assert await dead_letters.list_letters(broker) == letters[1:]


@pytest.mark.parametrize("dry_run", [False, True])
async def test_P7_letters_of_a_handler_that_is_gone_are_not_given_to_nobody(dry_run: bool) -> None:
    broker = MemoryBroker()
    await broker.open(shop().plan)
    (stray,) = dead_letter(delivery(read=True), "shop.renamed", DeadLettered(reason="no", code="failed"), "1", 1 << 20)
    await broker.publish([stray], timeout=1)
    which = Order("redrive", "redriven", (), Choice(handler="renamed"), dry_run=dry_run, yes=True)
    with pytest.raises(ConfigurationError, match=r"no handler shop.renamed .* the handlers of shop are: shop.handle"):
        await obey(broker, which, Out(json=True), lambda: lambda: False)
    assert [one.state for one in await dead_letters.list_letters(broker)] == ["dead"]


async def test_a_dry_run_says_what_would_happen_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    broker = await dead(2)
    letters, log = await dead_letters.list_letters(broker), len(broker.dead_letters)
    meant = Order("redrive", "redriven", (), Choice(handler="handle"), dry_run=True, yes=True)
    assert await obey(broker, meant, Out(), lambda: lambda: False) is Status.OK
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"would redrive {letters[0].id} to shop.handle, its redrive number 1: event ")
    assert told[2] == "2 in all; nothing was changed"
    assert len(broker.dead_letters) == log
    assert await dead_letters.list_letters(broker) == letters


@pytest.mark.parametrize("by_id", [True, False])
async def test_many_are_not_changed_before_somebody_has_said_yes(by_id: bool) -> None:
    broker = await dead(2)
    letters, log = await dead_letters.list_letters(broker), len(broker.dead_letters)
    ids = tuple(one.id for one in letters) if by_id else ()
    meant = Order("discard", "discarded", ids, Choice() if by_id else Choice(handler="handle"))
    with pytest.raises(CommandError, match="add --yes"):
        await obey(broker, meant, Out(), lambda: lambda: False)
    assert len(broker.dead_letters) == log


def test_who_gives_an_order_is_known_also_where_a_user_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    assert who().startswith("ann@")

    def nobody() -> str:
        raise KeyError("uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert who().startswith("uid ")


def test_progress_is_told_now_and_then_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidings.cli.progress.EVERY", 0.0)
    with Progress(Out(), "redriven", 2000) as progress:
        progress.step(1500)
        progress.say("one failed")
    found = capsys.readouterr()
    assert found.out == ""
    assert "redriven: 1,500 of 2,000, " in found.err
    assert "one failed" in found.err
