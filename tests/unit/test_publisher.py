"""From events to messages: envelopes, the ids of what was caused, and what may be published from where."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.unit.parts import Placed, Shipped, delivery
from tidings.context import Scope, current, derived_id
from tidings.delivery import Content
from tidings.envelope import read_envelope
from tidings.errors import InvalidEvent, MisuseError
from tidings.event import event_id
from tidings.publisher import Wrapper, refuse_in_handler

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def _wrapper(content: Content = "structured") -> Wrapper:
    return Wrapper("stock", [Shipped], content)


def _scope(**changes: Any) -> Scope:
    cause = delivery(read=True)
    assert cause.envelope is not None
    cause.envelope = msgspec.structs.replace(cause.envelope, **changes)
    return Scope(cause, "stock.step")


@pytest.mark.parametrize("content", ["structured", "binary"])
def test_P14_an_event_travels_under_its_own_id_and_begins_a_story(content: Content) -> None:
    event = Shipped(order_id="a", number=3)
    message = _wrapper(content).message(event)
    envelope = read_envelope(message.body, message.headers)
    assert message.id == envelope.id == event_id(event)
    assert (message.stream, message.type, message.key) == ("order", "order.shipped", "a")
    assert (envelope.source, envelope.correlation_id, envelope.causation_id) == ("stock", event_id(event), None)


def test_P1_publishing_the_same_object_again_has_the_same_id() -> None:
    event = Shipped(order_id="a")
    assert _wrapper().message(event).id == _wrapper().message(event).id
    assert _wrapper().message(Shipped(order_id="a")).id != _wrapper().message(event).id


@pytest.mark.parametrize("content", ["structured", "binary"])
def test_P4_P14_a_caused_event_names_its_cause_keeps_the_story_and_has_the_same_id_each_time(content: Content) -> None:
    changes = {"correlation_id": "story", "traceparent": TRACE, "tracestate": "v=1"}
    messages = [_wrapper(content).caused(Shipped(order_id="a"), _scope(**changes))[0] for _ in range(2)]
    assert messages[0].id == messages[1].id == derived_id("a1", "stock.step", 0)
    envelope = read_envelope(messages[0].body, messages[0].headers)
    assert (envelope.causation_id, envelope.correlation_id) == ("a1", "story")
    assert (envelope.traceparent, envelope.tracestate) == (TRACE, "v=1")


def test_P14_what_the_first_event_of_a_story_causes_is_correlated_to_it() -> None:
    (message,) = _wrapper().caused(Shipped(order_id="a"), _scope())
    assert read_envelope(message.body, message.headers).correlation_id == "a1"


@pytest.mark.parametrize("kind", [list, tuple])
def test_P4_several_caused_events_have_ids_by_their_place(kind: type) -> None:
    messages = _wrapper().caused(kind([Shipped(order_id="a"), Shipped(order_id="b")]), _scope())
    assert [message.id for message in messages] == [derived_id("a1", "stock.step", place) for place in (0, 1)]


def test_P4_what_leaves_by_a_transaction_and_by_return_does_not_share_ids() -> None:
    scope, wrapper = _scope(), _wrapper()
    first = wrapper.message(Shipped(order_id="a"), scope)
    (second,) = wrapper.caused(Shipped(order_id="b"), scope)
    assert [first.id, second.id] == [derived_id("a1", "stock.step", place) for place in (0, 1)]


@pytest.mark.parametrize("result", ["done", 1, {"a": 1}, ["done"], [Shipped(order_id="a"), None]])
def test_a_result_that_is_no_event_is_refused(result: object) -> None:
    with pytest.raises(InvalidEvent, match=r"stock\.step returned"):
        _wrapper().caused(result, _scope())


def test_an_empty_list_causes_nothing() -> None:
    assert list(_wrapper().caused([], _scope())) == []


def test_an_event_that_the_service_does_not_declare_is_refused_with_the_line_to_write() -> None:
    with pytest.raises(MisuseError, match=r"publishes=\[Placed\]"):
        _wrapper().message(Placed(order_id="a"))


def test_a_bare_publish_inside_a_handler_is_refused_and_elsewhere_is_not() -> None:
    refuse_in_handler()
    token = current.set(_scope())
    try:
        with pytest.raises(MisuseError, match=r"stock\.step called publish"):
            refuse_in_handler()
    finally:
        current.reset(token)
