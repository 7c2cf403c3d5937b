"""Messages as bytes, checked before they are sent."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from tidings.brokers.nats.frames import frame_of
from tidings.delivery import Message, Route
from tidings.errors import EventTooLarge, InvalidEvent

MIB = 1024 * 1024


def message(**given: Any) -> Message:
    return Message(**({"id": "i", "stream": "order", "type": "order.placed", "body": b"{}"} | given))


def test_an_event_carries_its_id_and_the_stream_that_must_take_it() -> None:
    frame = frame_of(message(headers={"a": "b"}), MIB, 2 * MIB)
    bytes_ = frame.publish(b"in.1")
    head, _, body = bytes_.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    assert lines == [b"NATS/1.0", b"Nats-Msg-Id: i", b"Nats-Expected-Stream: order", b"a: b"]
    size = len(head) - len(first) - 2 + 4
    assert first == b"HPUB order.placed in.1 %d %d" % (size, size + 2)
    assert body == b"{}\r\n"


def test_a_copy_that_has_to_wait_is_a_schedule_on_a_subject_of_its_own() -> None:
    due = time.time() + 60
    frame = frame_of(message(route=Route.RETRY, position="stock.reserve", due=due), MIB, 2 * MIB)
    assert frame.subject.startswith(b"tidings-retry.wait.stock_reserve.")
    assert re.search(rb"Nats-Schedule: @at \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\r\n", frame.head)
    assert b"Nats-Schedule-Target: tidings-retry.due.stock_reserve._0.0\r\n" in frame.head
    assert b"tidings-due: " in frame.head


@pytest.mark.parametrize("due", [None, 1.0])
def test_a_copy_that_is_due_goes_straight_to_its_position(due: float | None) -> None:
    frame = frame_of(message(route=Route.RETRY, position="stock.reserve", due=due, type=""), MIB, 2 * MIB)
    assert frame.subject == b"tidings-retry.due.stock_reserve._0.0"
    assert b"Nats-Schedule" not in frame.head


def test_a_copy_of_a_keyed_event_reaches_whoever_has_the_key() -> None:
    copy = message(route=Route.RETRY, position="stock.reserve", key="A-1001")
    assert frame_of(copy, MIB, 2 * MIB).subject == b"tidings-retry.due.stock_reserve._2.1"
    wait = frame_of(message(route=Route.RETRY, position="stock.reserve", key="A-1001", due=9e9), MIB, 2 * MIB)
    assert b"Nats-Schedule-Target: tidings-retry.due.stock_reserve._2.1\r\n" in wait.head


def test_a_dead_letter_may_be_of_a_message_without_type() -> None:
    frame = frame_of(message(route=Route.DEAD, position="stock.reserve", type=""), MIB, 2 * MIB)
    assert (frame.subject, frame.stream, frame.batches) == (b"tidings-dead.stock_reserve", "tidings-dead", True)


def test_trap_51_headers_count_too() -> None:
    frame_of(message(body=b"x" * MIB), MIB, MIB + 65536)
    with pytest.raises(EventTooLarge, match="1,048,577 bytes; 1,048,576 may travel"):
        frame_of(message(body=b"x" * (MIB + 1)), MIB, MIB + 65536)
    with pytest.raises(EventTooLarge, match="with its headers; the server takes 1,048,576"):
        frame_of(message(body=b"x" * (MIB - 1060)), MIB, MIB)
    frame_of(message(body=b"x" * MIB, route=Route.DEAD, position="a.b"), MIB - 65536, MIB + 65536)


def test_more_headers_than_the_server_can_store_are_refused() -> None:
    with pytest.raises(EventTooLarge, match="the server stores 64 KiB"):
        frame_of(message(headers={"a": "x" * 65000}), MIB, 2 * MIB)


def test_trap_62_the_callers_headers_stay_as_they_are() -> None:
    headers = {"a": "b"}
    frame_of(message(headers=headers, due=time.time() + 9, route=Route.RETRY, position="a.b"), MIB, 2 * MIB)
    assert headers == {"a": "b"}


def test_an_id_with_line_breaks_stays_in_its_line() -> None:
    frame = frame_of(message(id="a\r\nNats-Rollup: all"), MIB, 2 * MIB)
    assert b"\r\nNats-Rollup" not in frame.head


def test_an_impossible_type_is_refused() -> None:
    with pytest.raises(InvalidEvent):
        frame_of(message(type="order.*"), MIB, 2 * MIB)
