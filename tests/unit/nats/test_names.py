"""Streams, subjects and durable names."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.brokers.nats import names
from tidings.errors import ConfigurationError, InvalidEvent
from tidings.partition import slot_of


def test_an_events_subject_says_type_and_partition() -> None:
    assert (
        names.event_subject("order", "order.placed", "k1") == f"order.placed._{slot_of('k1') // 8}.{slot_of('k1') % 8}"
    )
    assert names.event_subject("order", "order.placed", None) == "order.placed"


@pytest.mark.parametrize(
    "type", ["order", "order.", "order.*", "order.>", "order.a b", "order..x", "order.a\r\nPUB x 0\r\n"]
)
def test_trap_45_no_type_reaches_beyond_its_subject(type: str) -> None:
    with pytest.raises(InvalidEvent, match="cannot be a type"):
        names.event_subject("order", type, None)


def test_a_type_of_another_stream_is_refused() -> None:
    with pytest.raises(InvalidEvent, match="does not belong to the stream 'order'"):
        names.event_subject("order", "payment.made", None)


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", ">", "a/b", "tidings-retry", "tidings-dead", "tidings-live"])
def test_trap_45_a_stream_has_a_plain_name_of_its_own(name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be a stream"):
        names.check_stream(name)


def test_a_durable_name_is_the_position_with_an_underscore() -> None:
    assert names.durable_of("stock.reserve-all") == "stock_reserve-all"


@pytest.mark.parametrize("position", ["stock", "stock.reserve_all", "a.b.c", "a.*", "a. b", ".b", "a."])
def test_trap_45_a_position_has_no_room_for_more(position: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be a position"):
        names.durable_of(position)


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_each_waiting_copy_has_a_plain_subject_of_its_own(one: str, other: str) -> None:
    subject = names.wait_subject("stock.reserve", one)
    assert subject.startswith("tidings-retry.wait.stock_reserve.")
    assert subject.isascii()
    assert subject.count(".") == 3
    assert (subject == names.wait_subject("stock.reserve", other)) is (one == other)


def test_the_filters_of_a_position_never_overlap() -> None:
    assert names.filters_of(["order.placed"]) == ["order.placed", "order.placed.*.*"]
    assert names.filters_of(["order.placed", "order.placed.in.eu", "order.placed"]) == [
        "order.placed",
        "order.placed.*.*",
        "order.placed.in.eu.*.*",
    ]


def test_P8_the_shares_of_a_position_take_each_subject_once_and_none_is_left_out() -> None:
    types = ["order.placed", "order.placed.0.eu", "order.paid"]
    taken = [subject for share in range(names.SHARES) for subject in names.filters_of_share(types, share)]
    assert len(taken) == len(set(taken))
    assert set(taken) == {*types, *(f"{type}._{share}.*" for type in types for share in range(8))}
    copies = [subject for share in range(names.SHARES) for subject in names.due_subjects("stock.reserve", share)]
    assert copies == [f"tidings-retry.due.stock_reserve._{share}.*" for share in range(8)]


@pytest.mark.parametrize("key", ["k", "A-1001", None])
def test_P8_an_event_and_its_copies_fall_into_the_same_share(key: str | None) -> None:
    event, copy = names.event_subject("order", "order.placed", key), names.due_subject("stock.reserve", key)
    takes_event = [n for n in range(names.SHARES) if _matches(event, names.filters_of_share(["order.placed"], n))]
    takes_copy = [n for n in range(names.SHARES) if _matches(copy, names.due_subjects("stock.reserve", n))]
    assert takes_event == takes_copy
    assert len(takes_event) == 1


def _matches(subject: str, filters: list[str]) -> bool:
    """Whether the server lets a subject pass: a star stands for one word."""
    patterns = [one.replace(".", r"\.").replace("*", r"[^.]+") for one in filters]
    return any(re.fullmatch(pattern, subject) for pattern in patterns)


@pytest.mark.parametrize(
    ("subject", "type", "slot"),
    [
        (b"order.placed._0.7", b"order.placed", 7),
        (b"order.placed._7.7", b"order.placed", 63),
        (b"order.placed._8.0", b"order.placed._8.0", None),
        (b"order.placed._1.8", b"order.placed._1.8", None),
        (b"order.placed", b"order.placed", None),
        (b"order.placed.1.7", b"order.placed.1.7", None),
    ],
)
def test_the_type_and_the_partition_are_read_off_the_subject(subject: bytes, type: bytes, slot: int | None) -> None:
    assert names.type_and_slot(subject) == (type, slot)
