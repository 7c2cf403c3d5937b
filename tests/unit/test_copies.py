"""Retry copies and dead letters: what they carry, and under which ids they are stored."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.parts import delivery
from tidings.copies import (
    MAX_REASON,
    MAX_TRACEBACK,
    dead_letter,
    header_text,
    letter_id,
    plain_text,
    replay_copy,
    restore,
    retry_copy,
)
from tidings.delivery import DeadLettered, Delivery, Header, Message, Retried, Route
from tidings.errors import Dead, UndecodableEvent

POSITION = "stock.step"
AGAIN = Retried(after=2.0, reason="ValueError: no stock")
DEAD = DeadLettered(reason="failed 3 times", code="failed", error=ValueError("no stock"))


def _came_back(message: Message, *, number: int = 77) -> Delivery:
    """A copy as the retry route delivers it."""
    back = Delivery(
        body=message.body,
        stream="order",
        origin=("tidings-retry", number),
        token=object(),
        headers=message.headers,
        route=Route.RETRY,
    )
    restore(back)
    return back


def _letters(one: Delivery, dead: DeadLettered = DEAD, room: int = 1 << 20) -> list[Message]:
    return dead_letter(one, POSITION, dead, "1.2.3", room)


def _redriven(letter: Message, redrive: int) -> Delivery:
    headers: Mapping[str, str] = {
        Header.ORIGIN: letter.headers[Header.ORIGIN],
        Header.LETTER: letter.headers[Header.LETTER],
        Header.REDRIVE: str(redrive),
    }
    return Delivery(
        body=letter.body,
        stream="order",
        origin=("tidings-retry", 100 + redrive),
        token=None,
        headers=headers,
        route=Route.RETRY,
    )


# ── headers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.text(st.characters(blacklist_categories=["Cs"])))
def test_P7_any_text_survives_a_header_that_holds_printable_ascii(text: str) -> None:
    packed = header_text(text)
    assert all(" " <= one <= "~" for one in packed)
    assert packed == packed.strip()
    assert plain_text(packed) == text


def test_half_a_character_in_an_error_message_does_not_keep_its_event_from_being_copied() -> None:
    assert plain_text(header_text("file \udc80")) == "file \\udc80"


@given(st.text(min_size=1, max_size=400), st.integers(0, 40))
def test_a_long_reason_and_a_long_traceback_are_cut_without_half_a_character(unit: str, times: int) -> None:
    reason = unit.encode(errors="replace").decode() * (times * 10)
    try:
        raise ValueError(reason)
    except ValueError as error:
        (letter,) = _letters(delivery(read=True), DeadLettered(reason=reason, code="failed", error=error))
    for header, most in ((Header.REASON, MAX_REASON), (Header.TRACEBACK, MAX_TRACEBACK)):
        text = letter.headers[header]
        assert len(text) <= most
        parts = text.split("%")[1:]
        assert all(len(part) >= 2 and all(one in "0123456789ABCDEF" for one in part[:2]) for part in parts)


def test_P7_the_end_of_a_long_traceback_is_kept_since_the_cause_stands_there() -> None:
    error = ValueError("x" * 10_000 + "the cause")
    (letter,) = _letters(delivery(read=True), DeadLettered(reason="r", error=error))
    assert letter.headers[Header.TRACEBACK].endswith("the cause")


# ── retry copies ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_P6_a_retry_copy_carries_the_bytes_the_count_and_the_time_before_which_it_stays_away() -> None:
    one = delivery(read=True, headers={"traceparent": "00-1", "Tidings-Type": "a stranger's"})
    before = time.time()
    copy = retry_copy(one, POSITION, AGAIN)
    assert copy.body == one.body
    assert copy.route is Route.RETRY
    assert (copy.position, copy.stream, copy.type, copy.key) == (POSITION, "order", "order.placed", "a")
    assert copy.due is not None
    assert before + 2.0 <= copy.due <= time.time() + 2.0
    assert copy.headers["traceparent"] == "00-1"
    assert "Tidings-Type" not in copy.headers
    assert copy.headers[Header.FAILURES] == "1"
    assert plain_text(copy.headers[Header.REASON]) == "ValueError: no stock"
    assert _came_back(copy).failures == 1
    assert _came_back(copy).attempt == 2


def test_P6_failures_count_up_from_copy_to_copy_and_the_first_failure_keeps_its_time() -> None:
    one = delivery(read=True)
    first = retry_copy(one, POSITION, AGAIN)
    second = retry_copy(_came_back(first), POSITION, AGAIN)
    assert _came_back(second).failures == 2
    assert second.headers[Header.FIRST_FAILURE] == first.headers[Header.FIRST_FAILURE]
    assert second.headers[Header.ORIGIN] == first.headers[Header.ORIGIN] == "order@1"


def test_P6_what_is_no_failure_is_not_counted() -> None:
    copy = retry_copy(delivery(read=True), POSITION, Retried(after=1.0, reason="busy", counted=False))
    assert copy.headers[Header.FAILURES] == "0"


def test_P3_a_copy_that_is_stored_again_after_a_crash_has_the_same_id() -> None:
    assert retry_copy(delivery(), POSITION, AGAIN).id == retry_copy(delivery(), POSITION, AGAIN).id


def test_another_handler_message_or_failure_makes_another_copy() -> None:
    first = retry_copy(delivery(), POSITION, AGAIN)
    others = [
        retry_copy(delivery(), "stock.other", AGAIN),
        retry_copy(delivery(number=2), POSITION, AGAIN),
        retry_copy(_came_back(first), POSITION, AGAIN),
    ]
    assert len({first.id, *(one.id for one in others)}) == 4


@pytest.mark.parametrize("count", ["", "-1", "x", "²", "1" * 5000])
def test_P13_a_count_that_is_none_means_no_failures(count: str) -> None:
    one = delivery(route=Route.RETRY, headers={Header.FAILURES: count})
    restore(one)
    assert one.failures == 0


def test_a_stream_that_was_made_anew_gives_out_its_places_again_and_no_copy_is_taken_for_an_old_one() -> None:
    one, two = delivery("a", 1), delivery("b", 1)
    assert one.origin == two.origin
    assert retry_copy(one, POSITION, AGAIN).id != retry_copy(two, POSITION, AGAIN).id
    assert letter_id(one, POSITION) != letter_id(two, POSITION)


def test_what_a_stranger_wrote_into_our_headers_of_an_event_says_nothing() -> None:
    strange = {Header.ORIGIN: "order@9", Header.LETTER: "l9", Header.REDRIVE: "3", Header.FIRST_FAILURE: "long ago"}
    plain, forged = retry_copy(delivery(), POSITION, AGAIN), retry_copy(delivery(headers=strange), POSITION, AGAIN)
    assert forged.id == plain.id
    assert forged.headers[Header.ORIGIN] == "order@1"
    assert Header.LETTER not in forged.headers
    assert letter_id(delivery(headers=strange), POSITION) == letter_id(delivery(), POSITION)


def test_an_origin_that_is_no_ascii_stays_what_it_is_over_several_copies() -> None:
    one = delivery()
    one.origin = ("bestellung-ü 100%", 1)
    first = retry_copy(one, POSITION, AGAIN)
    second = retry_copy(_came_back(first), POSITION, AGAIN)
    assert first.headers[Header.ORIGIN] == second.headers[Header.ORIGIN]
    assert letter_id(one, POSITION) == letter_id(_came_back(second), POSITION)


def test_a_key_with_spaces_at_its_ends_comes_back_whole() -> None:
    copy = retry_copy(delivery(" ä b ", read=True), POSITION, AGAIN)
    assert _came_back(copy).key == " ä b "
    assert _came_back(copy).event_id == " ä b 1"


# ── dead letters ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_P7_a_dead_letter_carries_the_original_bytes_and_headers_the_reason_the_traceback_and_the_attempts() -> None:
    one = delivery(read=True, headers={"ce-extension": "kept"})
    one.failures = 2
    (letter,) = _letters(one)
    headers = letter.headers
    assert letter.body == one.body
    assert letter.route is Route.DEAD
    assert letter.id == f"{headers[Header.LETTER]}/1"
    assert headers["ce-extension"] == "kept"
    assert headers[Header.FAILURES] == "3"
    assert headers[Header.REASON] == "failed 3 times"
    assert headers[Header.ERROR] == "failed"
    assert "ValueError: no stock" in plain_text(headers[Header.TRACEBACK])
    assert (headers[Header.HANDLER], headers[Header.STREAM], headers[Header.TYPE]) == (
        POSITION,
        "order",
        "order.placed",
    )
    assert (headers[Header.ID], headers[Header.KEY], headers[Header.SERVICE_VERSION]) == ("a1", "a", "1.2.3")
    assert headers[Header.ORIGIN] == "order@1"
    assert Header.REDRIVEN_FROM not in headers


@pytest.mark.parametrize(
    ("dead", "failures"),
    [
        (DEAD, "1"),
        (DeadLettered(reason="r", code="rejected", error=Dead("no")), "1"),
        (DeadLettered(reason="r", code="copy-too-large"), "1"),
        (DeadLettered(reason="r", code="not-json", error=UndecodableEvent("not-json", "r")), "0"),
        (DeadLettered(reason="r", code="conflict"), "0"),
    ],
)
def test_P7_the_attempts_of_a_letter_are_those_that_the_handler_saw(dead: DeadLettered, failures: str) -> None:
    (letter,) = _letters(delivery(read=True), dead)
    assert letter.headers[Header.FAILURES] == failures


def test_P7_bytes_that_cannot_be_read_are_kept_as_they_are() -> None:
    one = delivery(body=b"\xff\x00{", headers={Header.KEY: "a%20b", Header.TYPE: "order.placed"})
    (letter,) = _letters(one, DeadLettered(reason="r", code="not-json"))
    assert letter.body == b"\xff\x00{"
    assert letter.key == "a b"
    assert letter.type == "order.placed"


def test_P3_a_letter_that_is_stored_again_after_a_crash_has_the_same_id() -> None:
    assert _letters(delivery())[0].id == _letters(delivery())[0].id


def test_P7_a_letter_of_the_same_death_on_the_retry_route_has_the_id_of_its_event() -> None:
    back = _came_back(retry_copy(delivery(), POSITION, AGAIN))
    assert letter_id(back, POSITION) == letter_id(delivery(), POSITION)


def test_P7_a_redriven_copy_that_dies_again_is_a_new_letter_that_names_the_old_one() -> None:
    (first,) = _letters(delivery(read=True))
    redriven = _redriven(first, 1)
    (second,) = _letters(redriven)
    assert second.headers[Header.LETTER] != first.headers[Header.LETTER]
    assert second.headers[Header.REDRIVEN_FROM] == first.headers[Header.LETTER]


def test_P7_the_letter_a_copy_was_is_remembered_over_its_retries() -> None:
    (first,) = _letters(delivery(read=True))
    retried = _came_back(retry_copy(_redriven(first, 1), POSITION, AGAIN))
    assert retried.headers[Header.LETTER] == first.headers[Header.LETTER]
    assert letter_id(retried, POSITION) == letter_id(_redriven(first, 1), POSITION)


def test_P7_a_second_redrive_of_one_letter_has_copies_and_a_death_of_its_own() -> None:
    (first,) = _letters(delivery(read=True))
    one, two = _redriven(first, 1), _redriven(first, 2)
    assert retry_copy(one, POSITION, AGAIN).id != retry_copy(two, POSITION, AGAIN).id
    assert letter_id(one, POSITION) != letter_id(two, POSITION)


@given(st.binary(max_size=200), st.integers(1, 60))
def test_P7_a_letter_too_large_for_one_message_is_kept_in_parts(body: bytes, room: int) -> None:
    parts = _letters(delivery(body=body), DeadLettered(reason="r", code="not-json"), room)
    assert b"".join(part.body for part in parts) == body
    assert all(len(part.body) <= room for part in parts)
    assert [part.headers[Header.PART] for part in parts] == [f"{n}/{len(parts)}" for n in range(1, len(parts) + 1)]
    assert len({part.id for part in parts}) == len(parts)
    assert len({part.headers[Header.LETTER] for part in parts}) == 1


def test_P7_an_event_that_failed_in_its_place_keeps_the_time_of_its_first_failure() -> None:
    one = delivery(read=True)
    one.first_failed = 1_000_000_000.0
    (letter,) = _letters(one)
    assert letter.headers[Header.FIRST_FAILURE].startswith("2001-09-09T01:46:40.000")
    assert letter.headers[Header.LAST_FAILURE] > letter.headers[Header.FIRST_FAILURE]


def test_the_same_place_of_a_stream_that_was_made_anew_is_another_death_and_another_retry() -> None:
    before, after = delivery(body=b"one"), delivery(body=b"two")
    assert before.origin == after.origin
    assert letter_id(before, POSITION) != letter_id(after, POSITION)
    assert retry_copy(before, POSITION, AGAIN).id != retry_copy(after, POSITION, AGAIN).id


def test_P6_a_copy_says_when_its_event_first_failed_also_after_several_attempts() -> None:
    first = delivery(read=True)
    first.failures, first.first_failed = 2, 1_000_000_000.25
    message = retry_copy(first, POSITION, AGAIN)
    again = delivery(headers=message.headers, route=Route.RETRY)
    restore(again)
    assert (again.failures, again.first_failed) == (3, 1_000_000_000.25)
    strange = delivery(headers={**message.headers, Header.FIRST_FAILURE: "yesterday"}, route=Route.RETRY)
    restore(strange)
    assert (strange.failures, strange.first_failed) == (3, 0.0)


# ── replays ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("again", "scope"), [(False, ""), (True, "r-1")])
def test_P7_the_copy_of_a_replay_is_the_event_with_its_own_id_for_this_handler_alone(again: bool, scope: str) -> None:
    one = delivery(" ü ", 7, read=True, headers={"traceparent": "00-1", "tidings-letter": "a stranger's"})
    message = replay_copy(one, POSITION, "r-1", again=again)
    assert (message.route, message.position, message.stream, message.key) == (Route.RETRY, POSITION, "order", " ü ")
    assert message.body == one.body
    assert message.due is None
    copy = _came_back(message)
    assert (copy.event_id, copy.key, copy.failures, copy.scope) == (" ü 7", " ü ", 0, scope)
    assert copy.headers["traceparent"] == "00-1"
    assert Header.LETTER not in copy.headers
    assert copy.headers[Header.ORIGIN] == "order@7"
    assert (
        message.id
        == replay_copy(one, POSITION, "r-1", again=again).id
        != replay_copy(one, POSITION, "r-2", again=again).id
    )


def test_P7_what_fails_in_a_replay_stays_in_it_and_is_apart_from_what_failed_live() -> None:
    one = delivery(read=True)
    copy = _came_back(replay_copy(one, POSITION, "r-1", again=True))
    retried = _came_back(retry_copy(copy, POSITION, AGAIN))
    assert retried.scope == "r-1"
    (letter,) = _letters(retried)
    assert (letter.headers[Header.SCOPE], letter.headers[Header.REPLAY]) == ("r-1", "r-1")
    assert len({letter_id(each, POSITION) for each in (one, copy, retried)}) == 2
    assert retry_copy(one, POSITION, AGAIN).id != retry_copy(copy, POSITION, AGAIN).id


@pytest.mark.parametrize("shift", range(3))
def test_P7_a_letter_can_be_stored_wherever_its_reason_and_its_traceback_are_cut(shift: int) -> None:
    text = "a" * shift + " b%" * 4000
    dead = DeadLettered(reason=text, code="failed", error=ValueError(text))
    message = _letters(delivery(read=True), dead)[0]
    copied = retry_copy(delivery(read=True), POSITION, Retried(after=1.0, reason=text))
    for value in (*message.headers.values(), *copied.headers.values()):
        assert value == value.strip()
