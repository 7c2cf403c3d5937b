"""What moves: deliveries as handlers see them, and the copies that are made of them."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.golden.examples import FOLDER, PLACED_ID, examples, read_binary
from tidings.brokers.nats.frames import frame_of
from tidings.copies import (
    MAX_FOREIGN,
    dead_letter,
    header_text,
    letter_id,
    origin_of,
    original_headers,
    plain_text,
    restore,
    retry_copy,
)
from tidings.dead_letters import Fold
from tidings.delivery import DeadLettered, Delivery, Header, Message, Retried, Route, deliveries_repr
from tidings.envelope import read_envelope

FAILED = Retried(after=2.0, reason="ValueError: no")
DEAD = DeadLettered(reason="ValueError: no", code="failed", error=ValueError("no"))


def delivery(**changes: Any) -> Delivery:
    fields: dict[str, Any] = {"body": b"?", "stream": "order", "origin": ("order", 7), "token": None, **changes}
    return Delivery(**fields)


def received(name: str, **changes: Any) -> Delivery:
    """A delivery of a golden file, read."""
    headers, body = read_binary((FOLDER / f"binary-{name}.bin").read_bytes())
    made = delivery(body=body, headers=headers, **changes)
    made.envelope = read_envelope(made.body, made.headers)
    return made


def arrived(message: Message, **changes: Any) -> Delivery:
    """A copy as its broker hands it over."""
    return delivery(
        body=message.body,
        headers=dict(message.headers),
        stream=message.stream,
        origin=("tidings-retry", 99),
        route=message.route,
        **changes,
    )


# ── deliveries ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_P14_a_delivery_tells_the_ids_of_its_story() -> None:
    first, caused = received("placed-v1"), received("caused")
    assert (first.event_id, first.correlation_id, first.causation_id) == (PLACED_ID, PLACED_ID, "")
    assert (caused.correlation_id, caused.causation_id) == (PLACED_ID, PLACED_ID)
    assert caused.key == "A-1001"


def test_the_first_event_of_a_story_is_its_own_correlation() -> None:
    made = delivery()
    made.envelope = read_envelope((FOLDER / "foreign-minimal.json").read_bytes(), {})
    assert (made.correlation_id, made.causation_id, made.key) == ("17", "", None)


def test_what_could_not_be_read_is_known_by_where_it_stands() -> None:
    made = delivery()
    assert (made.event_id, made.correlation_id, made.causation_id, made.key) == ("order@7", "", "", None)
    assert repr(made) == "<Delivery order@7 attempt=1 delivered=1 event>"


def test_a_line_in_a_log_names_a_few_deliveries() -> None:
    many = [delivery(origin=("order", number)) for number in range(5)]
    assert deliveries_repr(many[:2]) == "order@0, order@1"
    assert deliveries_repr(many) == "order@0, order@1, order@2 and 2 more"


# ── text in headers ─────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_from_a_header(text: str) -> None:
    assert plain_text(header_text(text)) == text
    assert header_text(text).isascii()
    assert header_text(text) == header_text(text).strip()
    assert header_text(text).isprintable()


# ── retry copies ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_P6_a_retry_copy_counts_the_failure_and_says_when_it_is_due() -> None:
    before = time.time()
    copy = retry_copy(received("placed-v1"), "stock.reserve", FAILED)
    assert copy.route is Route.RETRY
    assert (copy.position, copy.stream, copy.type, copy.key) == ("stock.reserve", "order", "order.placed", "A-1001")
    assert copy.body == received("placed-v1").body
    assert copy.due is not None
    assert before + 2.0 <= copy.due <= time.time() + 2.0
    again = arrived(copy)
    restore(again)
    assert again.failures == 1
    assert copy.headers[Header.REASON] == "ValueError: no"
    assert original_headers(copy.headers) == dict(received("placed-v1").headers)


def test_P6_what_is_no_failure_is_not_counted() -> None:
    busy = Retried(after=0.2, reason="busy", counted=False)
    assert retry_copy(received("placed-v1"), "stock.reserve", busy).headers[Header.FAILURES] == "0"


def test_P6_a_second_copy_keeps_where_it_all_began() -> None:
    first = retry_copy(received("placed-v1"), "stock.reserve", FAILED)
    again = arrived(first)
    restore(again)
    second = retry_copy(again, "stock.reserve", FAILED)
    assert origin_of(again) == "order@7"
    assert second.headers[Header.ORIGIN] == "order@7"
    assert second.headers[Header.FIRST_FAILURE] == first.headers[Header.FIRST_FAILURE]
    assert second.headers[Header.FAILURES] == "2"
    assert first.id != second.id


def test_P6_the_same_failure_makes_the_same_copy_however_often_it_is_made() -> None:
    assert len({retry_copy(received("placed-v1"), "stock.reserve", FAILED).id for _ in range(3)}) == 1
    assert (
        retry_copy(received("placed-v1"), "stock.count", FAILED).id
        != retry_copy(received("placed-v1"), "stock.reserve", FAILED).id
    )


@pytest.mark.parametrize("count", ["", "-1", "1.5", "٣", "x", "9" * 5000])
def test_a_count_that_is_none_counts_as_nothing(count: str) -> None:
    made = delivery(route=Route.RETRY, headers={Header.FAILURES: count})
    restore(made)
    assert made.failures == 0


# ── dead letters ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_P7_a_dead_letter_keeps_bytes_headers_reason_and_traceback() -> None:
    made = received("not-ascii")
    made.failures = 5
    (letter,) = dead_letter(made, "stock.reserve", DEAD, "1.2.3", room=1000)
    fold = Fold(bodies=True)
    fold.add(arrived(letter))
    (found,) = fold.letters.values()
    assert found.body == made.body
    assert found.headers == dict(made.headers)
    assert (found.position, found.stream, found.type) == ("stock.reserve", "order", "order.placed")
    assert found.key == 'Zürich 7/"50 %"·🛒'
    assert (found.reason, found.code, found.failures) == ("ValueError: no", "failed", 6)
    assert (found.event_id, found.origin, found.service_version) == (made.event_id, "order@7", "1.2.3")
    assert "ValueError: no" in found.traceback


def test_P7_a_large_body_is_kept_in_parts() -> None:
    made = delivery(body=bytes(range(256)) * 10)
    letters = dead_letter(made, "stock.reserve", DEAD, "", room=1000)
    assert [letter.headers[Header.PART] for letter in letters] == ["1/3", "2/3", "3/3"]
    fold = Fold(bodies=True)
    for letter in letters:
        fold.add(arrived(letter))
    (found,) = fold.letters.values()
    assert found.body == made.body


def test_P7_an_empty_message_is_kept_too() -> None:
    (letter,) = dead_letter(delivery(body=b""), "stock.reserve", DEAD, "", room=1000)
    assert letter.body == b""
    assert letter.headers[Header.PART] == "1/1"


def test_P7_a_stranger_cannot_hide_a_letter_behind_another() -> None:
    forged = {Header.ORIGIN: "order@1", Header.LETTER: "abc", Header.FIRST_FAILURE: "never", Header.FAILURES: "99"}
    one, other = delivery(origin=("order", 1), headers=forged), delivery(origin=("order", 2), headers=forged)
    assert letter_id(one, "stock.reserve") != letter_id(other, "stock.reserve")
    (letter,) = dead_letter(one, "stock.reserve", DEAD, "", room=1000)
    assert letter.headers[Header.ORIGIN] == "order@1"
    assert letter.headers[Header.FAILURES] == "1"
    assert letter.headers[Header.FIRST_FAILURE] != "never"
    assert Header.REDRIVEN_FROM not in letter.headers


class Loud(Exception):
    def __str__(self) -> str:
        return "💥" * 20_000


STRANGE = {
    "a tab": {"x-note": "a\tb"},
    "spaces at the ends": {"x-note": "  a "},
    "not ASCII": {"x-note": "Grüße"},
    "a delete": {"x-note": "a\x7fb"},
    "bytes that were no UTF-8": {"x-note": "a\ufffdb"},
    "half a character": {"x-note": "a\udcffb"},
    "a name with a space": {"x note": "a"},
    "a name that is not ASCII": {"x-größe": "a"},
    "a name that was no ASCII": {"x-\ufffd": "a"},
    "no name": {"": "a"},
    "too much": {f"x-{number}": "y" * 1000 for number in range(63)},
    "one that is too large": {"x-large": "y" * 60_000, "content-type": "application/json"},
    "the largest allowed and a loud error": {"x-large": "y" * (MAX_FOREIGN - 100)},
}


@pytest.mark.parametrize("headers", STRANGE.values(), ids=STRANGE)
def test_P7_a_copy_can_be_stored_whatever_headers_a_stranger_wrote(headers: dict[str, str]) -> None:
    made = received("not-ascii")
    made.headers = {**made.headers, **headers}
    error = Loud()
    dead = DeadLettered(reason=f"Loud: {error}", code="failed", error=error)
    (letter,) = dead_letter(made, "stock.reserve", dead, "1.2.3", room=1_000_000)
    retry = retry_copy(made, "stock.reserve", Retried(after=1.0, reason=str(error)))
    for copy in (letter, retry):
        assert frame_of(copy, 1024 * 1024, 2 * 1024 * 1024).body == made.body
        again = read_envelope(copy.body, copy.headers)
        assert again.id == examples()["not-ascii"][1].id


def test_P7_a_header_that_cannot_stand_as_it_is_is_kept_in_percent_encoding() -> None:
    made = delivery(headers={"x-größe": "a\tb", "x-plain": "100% plain", "x-note": "Grüße ", "x-word": "Grüße"})
    copy = retry_copy(made, "stock.reserve", FAILED)
    assert copy.headers["x-gr%C3%B6%C3%9Fe"] == "a%09b"
    assert copy.headers["x-plain"] == "100% plain"
    assert unquote(copy.headers["x-note"]) == "Grüße "
    assert copy.headers["x-word"] == "Grüße"


def test_P7_what_had_to_be_left_out_of_a_copy_is_said() -> None:
    headers = {"x-large": "y" * 60_000, "ce-id": "17", "x-small": "z"}
    copy = retry_copy(delivery(headers=headers), "stock.reserve", FAILED)
    assert copy.headers[Header.LEFT_OUT] == "x-large"
    assert (copy.headers["ce-id"], copy.headers["x-small"]) == ("17", "z")
    assert Header.LEFT_OUT not in retry_copy(delivery(), "stock.reserve", FAILED).headers
