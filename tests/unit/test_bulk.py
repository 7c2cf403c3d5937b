"""Many dead letters at once: which are meant, in which order they go back, and what a failure stops."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from tests.unit.parts import RecordingBroker, delivery
from tidings import bulk
from tidings.bulk import Bulk, Changed, Choice, in_order
from tidings.copies import dead_letter
from tidings.dead_letters import Audit, Letter, fold, list_letters
from tidings.delivery import DeadLettered, Delivery, Message, Route
from tidings.errors import BrokerUnavailable, ConfigurationError
from tidings.pace import Pace

POSITION = "stock.step"
DEAD = DeadLettered(reason="failed 3 times: KeyError: 'tea'", code="failed")


async def die(broker: RecordingBroker, *deliveries: Delivery, room: int = 1 << 20, position: str = POSITION) -> None:
    for one in deliveries:
        await broker.publish(dead_letter(one, position, DEAD, "1", room), timeout=1)


def events(*names: str) -> list[Delivery]:
    """``a1`` is the event of key a that stands at place 1 of its stream."""
    return [delivery(name[0], int(name[1:]), read=True) for name in names]


def copies(broker: RecordingBroker) -> list[Message]:
    return [message for message in broker.published if message.route is Route.RETRY]


def names(broker: RecordingBroker) -> list[str]:
    return [f"{one.key}{one.headers['tidings-origin'].partition('@')[2]}" for one in copies(broker)]


async def change(broker: RecordingBroker, verb: Any = "redriven", **more: Any) -> list[Changed]:
    letters = await list_letters(broker)
    return [one async for one in Bulk(broker, verb, **more).run(letters)]


# ── which are meant ─────────────────────────────────────────────────────────────────────────────────────────────────

AT = "2026-01-02T00:00:00.000+00:00"


def letter(**fields: Any) -> Letter:
    known = {"id": "a" * 24, "position": POSITION, "stream": "order", "type": "order.placed", "key": "o-1"}
    known |= {"event_id": "e-1", "code": "failed", "reason": DEAD.reason, "origin": "order@7", "where": "shop.py:step"}
    return Letter(**{**known, "failures": 3, "first_failure": AT, "last_failure": AT, **fields})


def day(number: int) -> datetime:
    return datetime(2026, 1, number, tzinfo=UTC)


@pytest.mark.parametrize(
    ("choice", "meant"),
    [
        ({"handler": "stock.step"}, True),
        ({"handler": "step"}, True),
        ({"handler": "ste"}, False),
        ({"handler": "orders.step"}, False),
        ({"type": "order.placed", "code": "failed"}, True),
        ({"type": "order.placed", "code": "bad-data"}, False),
        ({"key": "o-1"}, True),
        ({"key": "o"}, False),
        ({"error": "keyerror"}, True),
        ({"error": "'TEA'"}, True),
        ({"error": "shop.py:step"}, True),
        ({"error": "ValueError"}, False),
        ({"since": day(2), "until": day(2)}, True),
        ({"since": day(3)}, False),
        ({"until": day(1)}, False),
    ],
)
def test_a_choice_means_what_it_says(choice: dict[str, Any], meant: bool) -> None:
    assert Choice(**choice)(letter()) is meant


def test_an_error_is_named_by_eight_digits_that_other_deaths_do_not_share() -> None:
    one = letter()
    assert Choice(error=one.error)(letter(reason="failed 7 times: KeyError: 'coffee'"))
    for other in (letter(where="shop.py:other"), letter(reason="ValueError: 'tea'"), letter(position="stock.other")):
        assert not Choice(error=one.error)(other)


def test_a_letter_whose_time_nobody_knows_is_not_meant_by_a_time() -> None:
    assert not Choice(since=day(1))(letter(last_failure="?"))
    assert not Choice(since=day(1))(letter(last_failure="2026-01-02T00:00:00"))


def test_a_choice_is_written_down_as_it_was_typed() -> None:
    assert not Choice()
    assert str(Choice(handler="step", error="no tea", until=day(1))) == (
        "--handler step --error 'no tea' --until 2026-01-01T00:00:00+00:00"
    )


# ── in which order they go ──────────────────────────────────────────────────────────────────────────────────────────


async def test_P8_letters_of_a_key_go_back_in_the_order_of_their_stream_however_they_died() -> None:
    broker = RecordingBroker()
    await die(broker, *events("a3", "b1", "a10", "c4", "a2"))
    changed = await change(broker)
    assert [one.error for one in changed] == [None] * 5
    assert [name for name in names(broker) if name[0] == "a"] == ["a2", "a3", "a10"]
    assert sorted(names(broker)) == ["a10", "a2", "a3", "b1", "c4"]
    assert [one.body for one in copies(broker)] == [events(name)[0].body for name in names(broker)]


async def test_P8_letters_of_a_key_whose_events_have_no_place_go_back_as_they_died_first() -> None:
    """On RabbitMQ an event is known by its id, and that of a caused event is a digest, which tells no order."""
    broker = RecordingBroker()
    first, second, third = events("a1", "a2", "a3")
    for one, id in ((first, "c0ffee"), (second, "0badc0de"), (third, "7ea-9")):
        one.origin = ("order", id)
    await die(broker, first, second)
    await change(broker)
    assert [one.headers["tidings-id"] for one in copies(broker)] == ["a1", "a2"]

    await die(broker, third)
    await die(broker, replace(first, route=Route.RETRY, headers=copies(broker)[0].headers))
    letters = await list_letters(broker)
    assert [one.event_id for one in letters] == ["a3", "a1"], "as they stand in the log"
    assert [one.event_id for one in in_order(letters)] == ["a1", "a3"]


async def test_P8_what_waits_for_an_earlier_one_and_is_too_large_is_read_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bulk, "WAITING_BYTES", 10)
    broker = RecordingBroker()
    await die(broker, *events("a5", "a4", "a3", "a2", "a1"), room=7)
    await change(broker)
    assert names(broker) == ["a1", "a2", "a3", "a4", "a5"]
    assert [one.body for one in copies(broker)] == [events(name)[0].body for name in names(broker)]


def test_P8_a_dry_run_names_them_in_the_order_in_which_they_would_go() -> None:
    letters = [letter(id=str(n), key=key, origin=f"order@{n}") for n, key in ((5, "a"), (1, "b"), (4, "a"))]
    assert [one.id for one in in_order(letters)] == ["4", "1", "5"]


async def test_P8_none_goes_past_an_earlier_one_of_its_key_that_could_not_be_given_back() -> None:
    broker = RecordingBroker()
    await die(broker, *events("a1", "b2", "a3", "b4"))
    broker.refuse_publish = lambda message: (
        BrokerUnavailable("no leader") if message.route is Route.RETRY and b'"a1"' in message.body else None
    )
    changed = await change(broker)
    assert names(broker) == ["b2", "b4"]
    errors = {one.letter.event_id: str(one.error) for one in changed if one.error is not None}
    assert errors["a1"] == "no leader"
    assert "an earlier letter of its key" in errors["a3"]
    assert [one.event_id for one in await list_letters(broker)] == ["a1", "a3"]


async def test_P7_what_was_given_back_and_could_not_be_marked_stays_listed_and_goes_under_the_same_id() -> None:
    broker = RecordingBroker()
    await die(broker, *events("a1"))
    broker.refuse_publish = lambda message: BrokerUnavailable("gone") if message.route is Route.DEAD else None
    (changed,) = await change(broker)
    assert "it was given back, and the log could not be told" in str(changed.error)
    broker.refuse_publish = lambda message: None
    (changed,) = await change(broker)
    assert changed.error is None
    first, second = copies(broker)
    assert first.id == second.id


async def test_P7_letters_reach_the_handler_that_failed_and_no_other() -> None:
    broker = RecordingBroker()
    await die(broker, *events("a1", "b2"))
    await die(broker, *events("a1"), position="stock.other")
    await change(broker)
    assert [(one.key, one.position, one.headers["tidings-handler"]) for one in copies(broker)] == [
        ("a", POSITION, POSITION),
        ("b", POSITION, POSITION),
        ("a", "stock.other", "stock.other"),
    ]


async def test_a_letter_that_the_log_does_not_hold_any_more_is_named() -> None:
    broker = RecordingBroker()
    with pytest.raises(ConfigurationError, match=r"'aaaa.*any more"):
        async for _ in Bulk(broker, "redriven").run([letter()]):
            pass


# ── stopped, and taken up again ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", ["redriven", "discarded"])
async def test_P7_stopped_anywhere_and_taken_up_again_nothing_is_done_twice(verb: str) -> None:
    broker = RecordingBroker()
    await die(broker, *events("a1", "b2", "a3", "b4", "a5", "c6"))
    for stop_after in range(4):
        asked = iter([False] * stop_after + [True] * 100)
        await change(broker, verb, pace=Pace(1000), stopped=lambda asked=asked: next(asked))
    await change(broker, verb)
    assert len({one.id for one in copies(broker)}) == len(copies(broker)) == (6 if verb == "redriven" else 0)
    letters = (await fold(broker)).letters.values()
    assert {one.state for one in letters} == {verb}
    markers = [one for one in broker.published if "tidings-marker" in one.headers]
    assert len(markers) == 6


async def test_who_when_how_chosen_and_why_stands_in_the_log() -> None:
    broker = RecordingBroker()
    await die(broker, *events("a1"))
    audit = Audit(by="jürgen@host", choice="--handler step", reason="the shelf\nis mended")
    await change(broker, audit=audit)
    (found,) = (await fold(broker, bodies=True)).letters.values()
    (mark,) = found.marks
    assert (mark.what, mark.by, mark.choice, mark.reason) == (
        "redriven",
        "jürgen@host",
        "--handler step",
        "the shelf is mended",
    )
    assert datetime.fromisoformat(mark.at).tzinfo is not None
    assert found.marked == mark.at


async def test_a_list_keeps_neither_headers_nor_tracebacks_nor_marks() -> None:
    broker = RecordingBroker()
    one = delivery(read=True, headers={"x-large": "x" * 1000})
    await broker.publish(dead_letter(one, POSITION, _raised(), "1", 1 << 20), timeout=1)
    await change(broker)
    (listed,) = (await fold(broker)).letters.values()
    assert (listed.body, listed.headers, listed.traceback, listed.marks) == (b"", {}, "", [])
    assert listed.where == "test_bulk.py:_raised"
    assert listed.state == "redriven"


def _raised() -> DeadLettered:
    try:
        raise ValueError("no stock")
    except ValueError as error:
        return DeadLettered(reason="ValueError: no stock", code="failed", error=error)


async def test_a_pace_is_kept_over_all() -> None:
    broker = RecordingBroker()
    await die(broker, *(delivery("k", number, read=True) for number in range(1, 21)))
    taken: list[int] = []
    waits: list[float] = []

    class Watched(Pace):
        async def take(self, count: int) -> None:
            taken.append(count)
            waits.append(self._next)
            await super().take(count)

    pace = Watched(100.0)
    await change(broker, pace=pace)
    assert sum(taken) == 20
    assert pace._next - waits[1] >= 19 / 100 - 1e-6, "each takes its time from the rate"
