"""Topics and groups."""

from __future__ import annotations

import pytest

from tidings.brokers.kafka.names import check_position, check_stream, retry_topic, topic_of
from tidings.delivery import Message, Route
from tidings.errors import ConfigurationError, InvalidEvent


@pytest.mark.parametrize("name", ["order", "o", "order-lines", "2nd", "x" * 249])
def test_lower_case_letters_digits_and_hyphens_are_a_stream(name: str) -> None:
    check_stream(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "lower case"),
        ("Order", "upper"),
        ("order_lines", "differ in . and _"),
        ("order.lines", "differ in . and _"),
        ("order lines", "lower case"),
        ("-order", "lower case"),
        ("x" * 250, "249"),
        ("ordér", "lower case"),
        ("tidings-dead", "keeps for itself"),
    ],
)
def test_a_name_that_kafka_would_refuse_or_collide_is_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        check_stream(name)


def test_a_position_whose_retry_route_could_have_no_topic_is_refused() -> None:
    check_position("stock.reserve-all")
    for wrong in ("Stock.reserve", "stock", "stock.reserve_all", f"stock.{'x' * 240}"):
        with pytest.raises(ConfigurationError, match="cannot be a position"):
            check_position(wrong)


def test_every_road_has_its_topic() -> None:
    message = Message(id="1", stream="order", type="order.placed", body=b"", position="stock.reserve")
    found = {
        route: topic_of(
            Message(id="1", stream="order", type="order.placed", body=b"", position="stock.reserve", route=route)
        )
        for route in Route
    }
    assert topic_of(message) == "order"
    assert found == {
        Route.EVENT: "order",
        Route.RETRY: retry_topic("stock.reserve"),
        Route.DEAD: "tidings-dead",
        Route.NOTE: "tidings-notes",
    }
    assert len(set(found.values())) == len(Route)


@pytest.mark.parametrize(("stream", "type"), [("order", "stock.taken"), ("order", "order"), ("Order", "Order.placed")])
def test_a_type_of_another_stream_goes_nowhere(stream: str, type: str) -> None:
    with pytest.raises(InvalidEvent):
        topic_of(Message(id="1", stream=stream, type=type, body=b""))
