"""From events to messages: what stands on them, and what may not leave."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import pytest

from tests.golden.examples import OrderPlaced, OrderPlacedV1, StockReserved, examples
from tidings import Delivery, InvalidEvent, MisuseError, event_id
from tidings.context import Scope, current, derived_id
from tidings.envelope import read_envelope
from tidings.publisher import Wrapper, refuse_in_handler


def scope(**changes: Any) -> Scope:
    envelope = msgspec.structs.replace(examples()["caused"][1], **changes)
    delivery = Delivery(body=b"", stream="stock", origin=("stock", 3), token=None, envelope=envelope)
    return Scope(delivery, "shop.follow")


def wrapper(content: Literal["structured", "binary"] = "structured") -> Wrapper:
    return Wrapper("shop", [OrderPlaced, StockReserved], content)


@pytest.mark.parametrize("content", ["structured", "binary"])
def test_P14_a_message_carries_id_source_key_and_its_place(content: Literal["structured", "binary"]) -> None:
    event = StockReserved(order_id="A-1")
    message = wrapper(content).message(event)
    assert (message.id, message.stream, message.type, message.key) == (
        event_id(event),
        "stock",
        "stock.reserved",
        "A-1",
    )
    envelope = read_envelope(message.body, message.headers)
    assert (envelope.id, envelope.source, envelope.key) == (message.id, "shop", "A-1")
    assert (envelope.correlation_id, envelope.causation_id) == (message.id, None)


def test_the_content_type_tells_the_modes_apart() -> None:
    event = StockReserved(order_id="A-1")
    assert wrapper().message(event).headers == {"content-type": "application/cloudevents+json"}
    assert wrapper("binary").message(event).headers["content-type"] == "application/json"


@pytest.mark.parametrize("content", ["structured", "binary"])
def test_P14_a_caused_event_carries_cause_correlation_and_trace(content: Literal["structured", "binary"]) -> None:
    within = scope()
    cause = within.delivery.envelope
    assert cause is not None
    messages = wrapper(content).caused([StockReserved(order_id="A-1"), StockReserved(order_id="A-2")], within)
    for place, message in enumerate(messages):
        envelope = read_envelope(message.body, message.headers)
        assert envelope.id == message.id == derived_id(cause.id, "shop.follow", place)
        assert envelope.causation_id == cause.id
        assert envelope.correlation_id == cause.correlation_id != cause.id
        assert envelope.traceparent == cause.traceparent is not None
        assert envelope.tracestate == cause.tracestate is not None


def test_a_trace_that_is_none_is_not_handed_on() -> None:
    (message,) = wrapper().caused(StockReserved(order_id="A-1"), scope(traceparent="x" * 5000))
    envelope = read_envelope(message.body, message.headers)
    assert (envelope.traceparent, envelope.tracestate) == (None, None)


def test_a_repeat_causes_the_same_ids() -> None:
    def ids() -> list[str]:
        events = [StockReserved(order_id="A-1"), StockReserved(order_id="A-2")]
        return [message.id for message in wrapper().caused(events, scope())]

    assert ids() == ids()


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ("done", "returned str"),
        ({StockReserved}, "returned set"),
        ([StockReserved(order_id="A-1"), None], "returned list with NoneType"),
        ((1,), "returned tuple with int"),
        ([StockReserved], "returned list with EventMeta"),
    ],
    ids=str,
)
def test_what_is_no_event_cannot_be_returned(result: Any, found: str) -> None:
    with pytest.raises(InvalidEvent, match=f"shop.follow {found}; a handler returns None, an event, or a list of"):
        wrapper().caused(result, scope())


def test_an_empty_list_causes_nothing() -> None:
    assert list(wrapper().caused([], scope())) == []


def test_an_event_that_was_not_declared_does_not_leave() -> None:
    quiet = Wrapper("shop", [], "structured")
    with pytest.raises(MisuseError, match=r"Write: Service\('shop', publishes=\[StockReserved\]\)"):
        quiet.message(StockReserved(order_id="A-1"))


def test_every_version_of_a_declared_type_may_leave() -> None:
    envelope = examples()["placed-v1"][1]
    v1 = msgspec.json.decode(bytes(envelope.data), type=OrderPlacedV1)
    assert read_envelope(wrapper().message(v1).body, {}).version == "v1"


def test_a_bare_publish_inside_a_handler_is_refused_with_the_way_out() -> None:
    refuse_in_handler()
    token = current.set(scope())
    try:
        with pytest.raises(MisuseError, match=r"shop\.follow called publish: .*publish\(event, tx=db\)"):
            refuse_in_handler()
    finally:
        current.reset(token)
