"""What passes over the wire, against pamqp, which speaks the same."""

from __future__ import annotations

import datetime
from typing import Any

import pamqp.frame
import pytest
from pamqp import commands, header

from tidings.brokers.rabbitmq import frames


def parsed(data: bytes) -> list[Any]:
    found = []
    while data:
        size, channel, frame = pamqp.frame.unmarshal(data)
        assert channel == 7
        found.append(frame)
        data = data[size:]
    return found


@pytest.mark.parametrize("size", [0, 1, 4088, 4089, 20_000])
def test_P1_a_message_goes_out_as_amqp_wants_it(size: int) -> None:
    headers = {"ce-id": "é", "x-empty": "", "X-Mixed": "v" * 4000}
    body = b"b" * size
    sent = frames.message(7, "order", "order.placed", frames.properties(headers, "id-1", size), body, 4096)
    method, head, *bodies = parsed(sent)
    assert isinstance(method, commands.Basic.Publish)
    assert (method.exchange, method.routing_key, method.mandatory) == ("order", "order.placed", True)
    assert (head.body_size, head.properties.delivery_mode, head.properties.message_id) == (size, 2, "id-1")
    assert head.properties.headers == headers
    assert b"".join(one.value for one in bodies) == body
    assert all(len(one.value) <= 4088 for one in bodies)


def test_what_comes_is_read_as_it_was_sent() -> None:
    method = commands.Basic.Deliver("t1", 2**40, True, "order", "order.placed._2.1")
    found = frames.delivered(pamqp.frame.marshal(method, 7)[7:-1])
    assert (found.consumer, found.tag, found.exchange) == ("t1", 2**40, "order")
    assert found.routing_key == "order.placed._2.1"
    sent = frames.properties({"a": "b", "x-h": "é"}, "id-1", 12)
    assert frames.read_header(sent, found) == 12
    assert (found.headers, found.marks, found.id) == ({"a": "b", "x-h": "é"}, {}, "id-1")


def test_P13_whatever_a_stranger_sends_along_is_read() -> None:
    """Other types of headers, all properties, and what the server adds itself."""
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    given: Any = {
        "text": "t",
        "number": 7,
        "yes": True,
        "nothing": None,
        "when": now,
        "bytes": bytearray(b"b"),
        "list": ["a", 1],
        "x-delivery-count": 3,
        "x-death": [{"queue": "q", "count": 1}],
        "x-first-death-queue": "q",
        "last": "l",
    }
    properties = commands.Basic.Properties(
        content_type="application/json", content_encoding="utf-8", headers=given, delivery_mode=2, priority=1,
        correlation_id="c", reply_to="r", expiration="1000", message_id="m", timestamp=now, message_type="t",
        app_id="a",
    )  # fmt: skip
    payload = pamqp.frame.marshal(header.ContentHeader(0, 5, properties), 7)[7:-1]
    content = frames.Content()
    assert frames.read_header(payload, content) == 5
    assert content.id == "m"
    assert content.marks == {"x-delivery-count": 3, "x-death": [{"queue": "q", "count": 1}]}
    assert content.headers["content-type"] == "application/json"
    assert {name: content.headers[name] for name in ("text", "number", "yes", "nothing", "bytes", "last")} == {
        "text": "t", "number": "7", "yes": "true", "nothing": "", "bytes": "b", "last": "l",
    }  # fmt: skip
    assert not any(name.startswith("x-") for name in content.headers)


def test_attributes_are_known_as_other_publishers_write_them() -> None:
    headers = {"cloudEvents:id": "1", "cloudEvents_type": "order.placed", "cloudEventsX": "x", "ce-version": "v1"}
    content = frames.Content()
    frames.read_header(frames.properties(headers, "id", 0), content)
    assert content.headers == {"ce-id": "1", "ce-type": "order.placed", "cloudEventsX": "x", "ce-version": "v1"}


def test_an_acknowledgement_is_one_frame_and_a_hand_back_asks_to_queue_it_again() -> None:
    (ack,) = parsed(frames.acknowledge(7, 2**33, multiple=True))
    assert (type(ack), ack.delivery_tag, ack.multiple) == (commands.Basic.Ack, 2**33, True)
    (one,) = parsed(frames.acknowledge(7, 5))
    assert (one.delivery_tag, one.multiple) == (5, False)
    (back,) = parsed(frames.give_back(7, 6))
    assert (type(back), back.delivery_tag, back.multiple, back.requeue) == (commands.Basic.Nack, 6, False, True)


def test_a_name_or_an_id_that_is_too_long_does_not_break_the_frame() -> None:
    with pytest.raises(ValueError, match="255 are the most"):
        frames.properties({"n" * 256: "v"}, "id", 0)
    assert len(frames.fit_id("é" * 200)) <= 255
    assert frames.fit_id("short") == "short"
