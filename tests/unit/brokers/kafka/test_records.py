"""Messages as records, and records as deliveries."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Message as Record

from tidings.brokers.kafka.records import TYPE, delivery_of, due_of, pairs_of, record_of, type_of
from tidings.delivery import Message, Route
from tidings.errors import EventTooLarge, InvalidEvent
from tidings.partition import slot_of

MOST = 1000


def message(**more: Any) -> Message:
    return Message(**{"id": "1", "stream": "order", "type": "order.placed", "body": b"{}", "key": "k é", **more})


def through(sent: Message, **more: Any) -> Record:
    made = record_of(sent, MOST)
    return Record(
        topic=made.topic, partition=3, offset=17, key=made.key, value=made.value, headers=made.headers, **more
    )


def test_what_goes_in_comes_out() -> None:
    headers = {"X-Mixed-Case": "yes", "x-empty": "", "x-inner": 'a b: c=d; %0A, "e" é'}
    record = through(message(headers=headers))
    found = delivery_of(record, pairs_of(record), Route.EVENT, slots=True)
    assert (bytes(found.body), dict(found.headers), found.stream) == (b"{}", headers, "order")
    assert found.origin == ("order", 3, 17)
    assert found.slot == slot_of("k é")


def test_the_type_is_known_without_a_look_at_the_body() -> None:
    assert type_of(pairs_of(through(message(body=b"\xff")))) == b"order.placed"


@pytest.mark.parametrize("name", ["ce_type", "ce-type", "Ce_Type", TYPE])
def test_a_foreign_publishers_type_is_known_too(name: str) -> None:
    assert type_of([("other", b"x"), (name, b"order.placed")]) == b"order.placed"


def test_P13_a_record_without_a_type_is_for_the_handler_to_judge() -> None:
    assert type_of([]) is None
    record = Record(topic="order", partition=0, offset=0, value=None)
    found = delivery_of(record, pairs_of(record), Route.EVENT, slots=True)
    assert (found.body, dict(found.headers), found.slot) == (b"", {}, None)


def test_a_copy_keeps_its_stream_and_its_time() -> None:
    record = through(message(route=Route.RETRY, position="stock.reserve", due=1234.5, headers={"x": "y"}))
    found = delivery_of(record, pairs_of(record), Route.RETRY, slots=True)
    assert due_of(pairs_of(record)) == 1234.5
    assert (found.stream, dict(found.headers), found.route) == ("order", {"x": "y"}, Route.RETRY)


def test_a_time_that_cannot_be_read_holds_nothing_up() -> None:
    assert due_of([("tidings.due", b"soon")]) == 0.0
    assert due_of([]) == 0.0


def test_a_note_without_a_body_is_a_tombstone_under_its_name() -> None:
    note = message(route=Route.NOTE, position="stock.reserve", key="held/é", body=b"", stream="", type="")
    made = record_of(note, MOST)
    assert (made.key, made.value) == ("stock.reserve/held/é".encode(), None)


def test_one_byte_too_many_is_refused_and_copies_are_not_measured_by_that() -> None:
    record_of(message(body=b"x" * MOST), MOST)
    record_of(message(body=b"x" * (MOST + 1), route=Route.DEAD, position="stock.reserve"), MOST)
    with pytest.raises(EventTooLarge):
        record_of(message(body=b"x" * (MOST + 1)), MOST)


@pytest.mark.parametrize("headers", [{"tidings.type": "other"}, {"x": "\ud800"}, {"x": 3}])
def test_headers_that_cannot_travel_are_refused(headers: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent):
        record_of(message(headers=headers), MOST)
