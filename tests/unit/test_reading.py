"""Reading a batch at once gives what reading it one by one gives, whatever is in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.parts import Placed, Shipped, delivery, handler_of
from tidings import reading
from tidings.delivery import SKIPPED, DeadLettered, Delivery, Envelope, Header, Retried, Route
from tidings.envelope import are_plain, read_envelope
from tidings.event import Event, stamp_of
from tidings.grouping import Grouping, Work
from tidings.handler import Handler
from tidings.reading import read

OLD: Final = {"specversion": "1.0", "id": "17", "source": "/erp", "type": "order.placed", "version": "v1"}


def taker() -> Handler:
    async def reserve(event: Placed | Shipped) -> None: ...

    return handler_of(reserve, Placed, Shipped)


def body(**changes: Any) -> bytes:
    data = {"order_id": "a", "number": 1}
    attributes = {**OLD, "subject": "a", "data": data, **changes}
    return json.dumps(
        {name: value for name, value in attributes.items() if value is not ...}, ensure_ascii=False
    ).encode()


def nested(depth: int) -> Any:
    return {"a": nested(depth - 1)} if depth else 1


BODIES: Final[Mapping[str, bytes]] = {
    "plain": body(),
    "long": body(tracestate="a=" + "b" * 400),
    "longer than what is looked through together": body(tracestate="a=" + "b" * 6000),
    "too large": body(tracestate="b" * (1 << 20)),
    "umlaut": body(subject="é"),
    "escape": body().replace(b'"a"', b'"\\u0061"', 1),
    "control in the key": body(subject="a\u0085b"),
    "delete in the key": body(subject="a\x7fb"),
    "control in the id": json.dumps({**OLD, "id": "a\nb", "data": {"order_id": "a"}}).encode(),
    "nul in the data": json.dumps({**OLD, "data": {"order_id": "a\x00"}}).encode(),
    "list": body(data={"order_id": "a", "number": 1, "more": [1]}),
    "deep": body(more=nested(70)),
    "deep lists": body(more=json.loads("[" * 70 + "]" * 70)),
    "empty": b"",
    "no json": b"{",
    "two": body() + body(),
    "half of two": b'{"a":1},{"b":[1',
    "the other half": b"2]}",
    "no object": b"7",
    "no version": body(version=...),
    "unknown version": body(version="v9"),
    "another type": body(type="order.paid"),
    "another class": body(type="order.shipped"),
    "no data": body(data=...),
    "base64": body(data=..., data_base64="eyJvcmRlcl9pZCI6ImIifQ=="),
    "data that does not fit": body(data={"order_id": 7}),
    "no utf-8": body().replace(b'"17"', b'"\xff"'),
}
HEADERS: Final[Mapping[str, Mapping[str, str]]] = {
    "none": {},
    "structured": {"content-type": "application/cloudevents+json"},
    "binary": {f"ce-{name}": value for name, value in OLD.items()},
    "binary in capitals": {f"CE-{name}": value for name, value in OLD.items()},
    "both": {"content-type": "application/cloudevents+json", **{f"ce-{name}": value for name, value in OLD.items()}},
}
KINDS: Final = st.tuples(
    st.sampled_from(sorted(BODIES)), st.sampled_from(sorted(HEADERS)), st.sampled_from([0, 1, 1, 1, 20])
)
MOSTLY_PLAIN: Final = st.one_of(st.just(("plain", "none", 1)), st.just(("umlaut", "structured", 1)), KINDS)


def made(kinds: list[tuple[str, str, int]]) -> list[Delivery]:
    """What was drawn: of which body and headers; a number tells a few that failed before, or are copies."""
    deliveries = []
    for place, (text, head, special) in enumerate(kinds):
        one = delivery(number=place, body=BODIES[text], headers=HEADERS[head])
        if special == 0:
            one.failures = 2
        if special == 20:
            one.route = Route.RETRY
        deliveries.append(one)
    return deliveries


def seen(works: list[Work], grouping: Grouping) -> list[Any]:
    """All that is known of what was read."""

    def of(work: Work) -> Any:
        one, decision = work.delivery, work.decision
        why = (decision.code, decision.reason) if isinstance(decision, DeadLettered) else decision
        stamp = None if work.event is None else stamp_of(work.event)
        return one.origin, one.envelope, work.event, stamp, why, work.first, work.most, one.failures

    return [grouping.unasked, *map(of, works)]


@given(st.lists(MOSTLY_PLAIN, min_size=1, max_size=6))
def test_P13_what_is_read_at_once_is_what_is_read_one_by_one(kinds: list[tuple[str, str, int]]) -> None:
    handler, together, alone = taker(), Grouping(4, blames_nobody=True), Grouping(4, blames_nobody=True)
    at_once = seen(read(made(kinds), handler, together), together)
    assert at_once == seen(reading._read_one_by_one(made(kinds), handler, alone), alone)


@pytest.mark.parametrize("head", sorted(HEADERS))
@pytest.mark.parametrize("text", sorted(BODIES))
def test_P13_one_that_is_special_is_read_as_it_would_be_without_its_neighbours(text: str, head: str) -> None:
    kinds = [("plain", "none", 1), (text, head, 1), ("plain", "structured", 1)]
    handler, together, alone = taker(), Grouping(4, blames_nobody=True), Grouping(4, blames_nobody=True)
    found = seen(read(made(kinds), handler, together), together)
    one_by_one = [seen(reading._read_one_by_one([one], handler, alone), alone)[1] for one in made(kinds)]
    assert found[1:] == one_by_one


CLOSER: Final = {
    *("longer than what is looked through together", "too large", "umlaut", "escape", "list", "deep", "deep lists"),
    *("control in the key", "delete in the key", "control in the id", "nul in the data", "no utf-8", "half of two"),
}
"""What has to be looked at closer."""
PLAIN: Final = ("plain", "long")


@pytest.mark.parametrize("text", PLAIN)
def test_what_nothing_is_to_be_said_of_is_read_at_once(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object) -> list[Work]:
        raise AssertionError("read one by one")

    monkeypatch.setattr(reading, "_read_one_by_one", refused)
    kinds = [("plain", "none", 1), (text, "structured", 1), ("another class", "none", 1)]
    works = read(made(kinds), taker(), Grouping(4))
    assert [type(work.event) for work in works] == [Placed, Placed, Shipped]
    assert [work.delivery.envelope is not None for work in works] == [True] * 3


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("text", sorted(BODIES))
def test_bodies_are_plain_together_where_each_of_them_is(text: str, place: int) -> None:
    bodies = [BODIES["plain"]] * 2
    bodies.insert(place, BODIES[text])
    assert are_plain(bodies, [{}, {}, {}]) is (text not in CLOSER)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("head", sorted(HEADERS))
def test_what_may_be_in_binary_mode_is_not_plain(head: str, place: int) -> None:
    headers: list[Mapping[str, str]] = [HEADERS["none"], HEADERS["structured"]]
    headers.insert(place, HEADERS[head])
    assert are_plain([BODIES["plain"]] * 3, headers) is (head not in ("binary", "both"))


@pytest.mark.parametrize("raises", [ValueError, SystemExit, GeneratorExit])
def test_P13_what_a_class_raises_of_its_own_is_of_its_event_alone(raises: type[BaseException]) -> None:
    calls: list[str] = []

    def broken(data: object) -> Placed:
        calls.append("called")
        raise raises("no")

    handler = taker()
    handler.reader._by_type["order.shipped"]["v1"] = broken
    kinds = [("plain", "none", 1), ("another class", "none", 1), ("plain", "none", 1)]
    works = read(made(kinds), handler, Grouping(4))
    assert [work.event is None for work in works] == [False, True, False]
    assert isinstance(works[1].decision, DeadLettered)
    assert works[1].decision.code == "bad-data"
    assert calls == ["called", "called"], "at once, and then alone"


class Unprintable(Exception):
    """Its text raises as well."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_P2_an_error_of_a_class_that_cannot_be_printed_is_of_its_event_alone() -> None:
    def broken(data: object) -> Placed:
        raise Unprintable

    handler = taker()
    handler.reader._by_type["order.shipped"]["v1"] = broken
    kinds = [("plain", "none", 1), ("another class", "none", 1), ("plain", "none", 1)]
    works = read(made(kinds), handler, Grouping(4))
    assert [type(work.decision) for work in works] == [type(None), Retried, type(None)]


@pytest.mark.parametrize("text", ["no json", "data that does not fit", "unknown version", "another type", "no data"])
def test_P13_one_that_cannot_be_read_has_few_of_its_neighbours_read_again(text: str) -> None:
    calls: list[object] = []
    handler = taker()
    decode = handler.reader._by_type["order.shipped"]["v1"]

    def counted(data: bytes | msgspec.Raw) -> Event:
        calls.append(data)
        return decode(data)

    handler.reader._by_type["order.shipped"]["v1"] = counted
    kinds = [("another class", "none", 1)] * 255
    kinds.insert(200, (text, "none", 1))
    works = read(made(kinds), handler, Grouping(4))
    assert [place for place, work in enumerate(works) if work.event is None] == [200]
    assert len(calls) <= 255 + 63


def test_P13_one_that_is_special_has_few_of_its_neighbours_looked_at_closer(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bytes] = []

    def counted(body: bytes, headers: Mapping[str, str]) -> Envelope:
        looked.append(body)
        return read_envelope(body, headers)

    monkeypatch.setattr(reading, "read_envelope", counted)
    kinds = [("plain", "none", 1)] * 255
    kinds.insert(200, ("deep lists", "none", 1))
    works = read(made(kinds), taker(), Grouping(4))
    assert [place for place, work in enumerate(works) if work.event is None] == [200]
    assert [work.delivery.origin[1] for work in works] == list(range(256))
    assert len(looked) <= 65


def test_a_copy_that_was_discarded_is_skipped_among_others() -> None:
    copy = delivery(number=2, headers={Header.MARKER: "discarded"}, route=Route.RETRY)
    works = read([delivery(number=1), copy, delivery(number=3)], taker(), Grouping(4))
    assert [work.decision for work in works] == [None, SKIPPED, None]


def test_what_has_failed_before_is_set_apart_among_others() -> None:
    grouping = Grouping(4)
    grouping.fewer([Work(delivery()), Work(delivery())])
    failed = delivery(number=2)
    failed.failures = 1
    works = read([delivery(number=1), failed, delivery(number=3)], taker(), grouping)
    assert [(work.first, work.most == 1) for work in works] == [(False, False), (True, True), (False, False)]
