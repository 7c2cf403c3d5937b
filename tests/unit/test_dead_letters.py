"""The dead letters: a log that is only appended to, and the list that is its fold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.parts import RecordingBroker, delivery
from tidings import dead_letters
from tidings.cli.letters import story
from tidings.copies import dead_letter, retry_copy
from tidings.dead_letters import Fold, Letter, discard, find, fold, list_letters, redrive
from tidings.delivery import DeadLettered, Delivery, Header, Message, Retried, Route
from tidings.errors import BrokerUnavailable, ConfigurationError, MisuseError

POSITION = "stock.step"
DEAD = DeadLettered(reason="ValueError: no stock", code="failed", error=ValueError("no stock"))


def _of(message: Message, number: int = 1) -> Delivery:
    return Delivery(
        body=message.body,
        stream="order",
        origin=("tidings-dead", number),
        token=None,
        headers=message.headers,
        route=message.route,
    )


async def _die(broker: RecordingBroker, *deliveries: Delivery, room: int = 1 << 20) -> None:
    for one in deliveries:
        await broker.publish(dead_letter(one, POSITION, DEAD, "1.2.3", room), timeout=1)


async def _only(broker: RecordingBroker) -> Letter:
    (letter,) = (await fold(broker, bodies=True)).letters.values()
    return letter


async def test_P7_a_letter_is_read_back_whole() -> None:
    broker = RecordingBroker()
    one = delivery(" ü ", read=True, headers={"traceparent": "00-1"})
    one.failures = 2
    await _die(broker, one)
    letter = await _only(broker)
    assert letter.body == one.body
    assert (letter.position, letter.stream, letter.type, letter.key) == (POSITION, "order", "order.placed", " ü ")
    assert (letter.event_id, letter.failures, letter.code, letter.state) == (" ü 1", 3, "failed", "dead")
    assert letter.reason == "ValueError: no stock"
    assert "no stock" in letter.traceback
    assert letter.headers == {"traceparent": "00-1"}
    assert letter.origin == "order@1"
    assert letter.service_version == "1.2.3"
    assert letter.fingerprint == "stock.step · order.placed · failed · ValueError"


async def test_a_list_keeps_no_bodies_and_takes_the_state_and_a_condition() -> None:
    broker = RecordingBroker()
    await _die(broker, delivery("a", 1, read=True), delivery("b", 2, read=True), delivery("c", 3, read=True))
    a, b, c = await list_letters(broker)
    assert [one.body for one in (a, b, c)] == [b"", b"", b""]
    await discard(broker, a)
    await redrive(broker, b)
    assert [one.key for one in await list_letters(broker)] == ["c"]
    assert [one.key for one in await list_letters(broker, state="discarded")] == ["a"]
    assert [one.key for one in await list_letters(broker, state="redriven")] == ["b"]
    assert [one.key for one in await list_letters(broker, state=None)] == ["a", "b", "c"]
    assert [one.key for one in await list_letters(broker, state=None, where=lambda one: one.key != "b")] == ["a", "c"]


@given(st.binary(min_size=1, max_size=60), st.integers(1, 20))
def test_P7_a_letter_in_parts_is_put_together(body: bytes, room: int) -> None:
    log = Fold(bodies=True)
    for part in dead_letter(delivery(body=body), POSITION, DEAD, "", room):
        assert not log.letters
        log.add(_of(part))
    (letter,) = log.letters.values()
    assert letter.body == body


def test_P7_a_letter_of_which_a_part_is_missing_is_completed_by_the_next_copy() -> None:
    log = Fold(bodies=True)
    parts = dead_letter(delivery(body=b"abcdef"), POSITION, DEAD, "", 2)
    for part in (*parts[:2], *parts):
        log.add(_of(part))
    (letter,) = log.letters.values()
    assert (letter.body, letter.copies) == (b"abcdef", 1)


def test_P7_parts_that_were_cut_in_another_size_are_not_mixed() -> None:
    log = Fold(bodies=True)
    one = delivery(body=b"abcdef")
    for part in (*dead_letter(one, POSITION, DEAD, "", 2)[:2], *dead_letter(one, POSITION, DEAD, "", 3)):
        log.add(_of(part))
    (letter,) = log.letters.values()
    assert letter.body == b"abcdef"


def test_P7_two_copies_of_one_death_are_one_letter() -> None:
    log = Fold()
    for _ in range(2):
        log.add(_of(dead_letter(delivery(), POSITION, DEAD, "", 100_000)[0]))
    (letter,) = log.letters.values()
    assert letter.copies == 2


@pytest.mark.parametrize("marker", ["redriven", "discarded"])
async def test_P7_a_letter_that_comes_again_after_it_was_put_away_is_seen_again(marker: str) -> None:
    broker = RecordingBroker()
    await _die(broker, delivery(read=True))
    letter = await _only(broker)
    await (redrive if marker == "redriven" else discard)(broker, letter)
    assert (await _only(broker)).state == marker
    await _die(broker, delivery(read=True))
    assert (await _only(broker)).state == "dead"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {Header.MARKER: "redriven"},
        {Header.LETTER: "unknown", Header.MARKER: "redriven"},
        {Header.LETTER: "odd", Header.PART: "x/y", Header.FAILURES: "many"},
        {Header.LETTER: "odd", Header.PART: "²/1", Header.FAILURES: "²"},
    ],
)
def test_P13_what_a_stranger_wrote_into_the_log_breaks_no_list(headers: dict[str, str]) -> None:
    log = Fold()
    log.add(Delivery(body=b"", stream="", origin=("log", 1), token=None, headers=headers, route=Route.DEAD))
    log.add(_of(dead_letter(delivery(read=True), POSITION, DEAD, "", 100_000)[0]))
    assert "a1" in [one.event_id for one in log.letters.values()]


async def test_P7_to_redrive_is_to_give_back_to_the_handler_that_failed_with_the_events_own_id() -> None:
    broker = RecordingBroker()
    one = delivery(" ü ", read=True, headers={"traceparent": "00-1"})
    one.failures = 5
    await _die(broker, one)
    await redrive(broker, await _only(broker))
    copy, marker = broker.published[1:]
    assert (copy.route, copy.position, copy.stream, copy.key) == (Route.RETRY, POSITION, "order", " ü ")
    assert copy.body == one.body
    assert copy.due is None
    assert copy.headers["traceparent"] == "00-1"
    assert copy.headers[Header.FAILURES] == "0"
    assert _of(copy).event_id == " ü 1"
    assert marker.route is Route.DEAD
    letter = await _only(broker)
    assert (letter.state, letter.redriven) == ("redriven", 1)


@pytest.mark.parametrize("body", [b"", b"abcdefgh"])
async def test_P7_a_letter_of_a_list_is_read_whole_before_it_is_redriven(body: bytes) -> None:
    broker = RecordingBroker()
    await _die(broker, delivery(body=body), room=3)
    (listed,) = await list_letters(broker)
    assert not listed.whole
    with pytest.raises(MisuseError, match="has no body"):
        story(listed)
    await redrive(broker, listed)
    (copy,) = [message for message in broker.published if message.route is Route.RETRY]
    assert copy.body == body
    whole = await _only(broker)
    assert whole.whole
    assert (whole.state, whole.redriven) == ("redriven", 1)


async def test_P7_a_letter_of_a_list_that_the_log_does_not_hold_is_not_redriven_empty() -> None:
    broker, other = RecordingBroker(), RecordingBroker()
    await _die(broker, delivery(read=True))
    (listed,) = await list_letters(broker)
    with pytest.raises(ConfigurationError, match="no dead letter has the id"):
        await redrive(other, listed)
    assert other.published == []


@pytest.mark.parametrize("cut", ["{}", "{}…", "{}...", " {}… "])
async def test_a_letter_is_found_by_a_beginning_of_its_id_that_a_terminal_has_cut(cut: str) -> None:
    broker = RecordingBroker()
    await _die(broker, delivery(read=True))
    letter = await _only(broker)
    (found,) = await find(broker, [cut.format(letter.id[:7])])
    assert found.id == letter.id


@pytest.mark.parametrize("nothing", ["", "…", "...", " "])
async def test_P7_what_is_no_beginning_of_an_id_names_no_letter_even_where_there_is_only_one(nothing: str) -> None:
    broker = RecordingBroker()
    await _die(broker, delivery(read=True))
    with pytest.raises(ConfigurationError, match="is no id of a dead letter"):
        await find(broker, [nothing])


async def test_P7_a_redrive_that_could_not_be_stored_leaves_the_letter_dead() -> None:
    broker = RecordingBroker()
    await _die(broker, delivery(read=True))
    letter = await _only(broker)
    broker.refuse_publish = lambda message: BrokerUnavailable("no leader") if message.route is Route.RETRY else None
    with pytest.raises(BrokerUnavailable):
        await redrive(broker, letter)
    assert (await _only(broker)).state == "dead"


async def test_P7_what_dies_again_after_a_redrive_is_a_letter_of_its_own_each_time() -> None:
    broker = RecordingBroker()
    await _die(broker, delivery(read=True))
    first = await _only(broker)
    for _ in range(2):
        await redrive(broker, (await find(broker, [first.id]))[0])
    copies = [message for message in broker.published if message.route is Route.RETRY]
    assert len({message.id for message in copies}) == 2
    redriven = [_of(message, number) for number, message in enumerate(copies, 50)]
    again = Retried(after=1.0, reason="x")
    assert len({retry_copy(one, POSITION, again).id for one in redriven}) == 2
    await _die(broker, *redriven)
    letters = await list_letters(broker)
    assert [one.redriven_from for one in letters] == [first.id, first.id]
    assert len({one.id for one in letters}) == 2


async def test_letters_are_found_by_the_beginning_of_their_id() -> None:
    broker = RecordingBroker()
    await _die(broker, *(delivery("k", number, read=True) for number in range(1, 40)))
    ids = [one.id for one in await list_letters(broker)]
    found = await find(broker, [ids[3], ids[7][:12]])
    assert [one.id for one in found] == [ids[3], ids[7]]
    assert all(one.body for one in found)
    with pytest.raises(ConfigurationError, match="tidings dead list"):
        await find(broker, ["nothing"])
    begins = [one[0] for one in ids]  # hexadecimal: of so many two are alike
    with pytest.raises(ConfigurationError, match="give more of the id"):
        await find(broker, [max(begins, key=begins.count)])


async def test_following_begins_with_what_comes_and_tells_each_letter_once() -> None:
    broker = RecordingBroker()
    await _die(broker, delivery("a", 1, read=True))
    seen = [letter.key async for letter in dead_letters.follow(broker)]
    assert seen == []
