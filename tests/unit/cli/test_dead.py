"""Dead letters on the command line: which are meant, how carefully, and what is shown of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.observe.shop import Placed, shop
from tidings import dead_letters
from tidings.cli.dead import AT_ONCE, Change, Filter, _confirm, _grouped, apply_to
from tidings.cli.failures import CommandError, Status
from tidings.cli.letters import story
from tidings.cli.output import Out
from tidings.dead_letters import Letter
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


@pytest.mark.parametrize(
    ("which", "meant"),
    [
        (Filter("stock.reserve", None, None), True),
        (Filter("reserve", None, None), True),
        (Filter("ship", None, None), False),
        (Filter(None, "order.placed", "failed"), True),
        (Filter(None, "order.placed", "bad-data"), False),
        (Filter("orders.reserve", None, None), False),
    ],
)
def test_a_filter_means_what_it_says(which: Filter, meant: bool) -> None:
    assert which(letter()) is meant


def test_an_empty_filter_is_told_from_one_that_means_all() -> None:
    assert not Filter(None, None, None)


def test_those_that_died_alike_stand_together() -> None:
    alike = [letter(id=f"{number:024}", reason=f"failed {number} times: ValueError: {number}") for number in range(5)]
    others = [letter(reason="failed 2 times: KeyError: no"), letter(code="bad-data", reason="no JSON")]
    rows = _grouped([*alike, *others])
    assert [(row[0], row[3]) for row in rows] == [("5", "failed"), ("1", "failed"), ("1", "bad-data")]


def test_many_are_only_changed_when_it_is_said_twice() -> None:
    change = Change("redrive", "redriven", dead_letters.redrive)
    with pytest.raises(CommandError, match=r"redrive 12 letters.*--yes"):
        _confirm(change, 12, named=False)
    _confirm(change, 1, named=False)
    _confirm(change, 12, named=True)
    _confirm(Change("redrive", "redriven", dead_letters.redrive, yes=True), 12, named=False)


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
    broker = await dead(AT_ONCE + 3)
    ids = [one.id for one in await dead_letters.list_letters(broker)]
    assert len(ids) == AT_ONCE + 3
    change = Change("redrive", "redriven", dead_letters.redrive)
    assert await apply_to(broker, change, ids, Out(json=True)) is Status.OK
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["id"] for record in records] == ids
    assert await dead_letters.list_letters(broker) == []
    assert len(await dead_letters.list_letters(broker, state="redriven")) == len(ids)


async def test_one_letter_that_cannot_be_changed_does_not_hold_up_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    broker = await dead(3)
    ids = [one.id for one in await dead_letters.list_letters(broker)]
    from tidings import BrokerUnavailable

    broker.fail_publish(BrokerUnavailable("gone"), times=1)
    change = Change("discard", "discarded", dead_letters.discard)
    assert await apply_to(broker, change, ids, Out()) is Status.WORLD
    told = capsys.readouterr().out
    assert f"{ids[0]}: not discarded: gone" in told
    assert "2 discarded, 1 failed" in told
    assert [one.id for one in await dead_letters.list_letters(broker)] == ids[:1]
