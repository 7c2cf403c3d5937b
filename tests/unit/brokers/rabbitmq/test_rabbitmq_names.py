"""Where things stand on a RabbitMQ."""

from __future__ import annotations

import re

import pytest

from tidings.brokers.rabbitmq import names, waiting
from tidings.delivery import PARTITIONS
from tidings.errors import ConfigurationError, InvalidEvent
from tidings.partition import slot_of


def matches(pattern: str, key: str) -> bool:
    """As a topic exchange sees it."""
    words = {"*": r"[^.]+", "#": r".*"}
    return re.fullmatch(r"\.".join(words.get(word, re.escape(word)) for word in pattern.split(".")), key) is not None


def test_P8_each_key_falls_into_one_share_and_the_first_has_what_has_no_key() -> None:
    shares = names.bindings_of(["order.placed", "order.closed.late"], ordered=True)
    for type in ("order.placed", "order.closed.late"):
        for key in [None, *(f"k{number}" for number in range(300))]:
            routing_key = names.event_key("order", type, key)
            taken = [share for share, keys in enumerate(shares) if any(matches(one, routing_key) for one in keys)]
            wanted = 0 if key is None else slot_of(key) // (PARTITIONS // names.SHARES)
            assert taken == [wanted], f"{routing_key} is taken by {taken}"
            assert names.slot_in(routing_key) == (None if key is None else slot_of(key))


def test_P13_a_position_takes_its_types_and_no_others() -> None:
    (keys,) = names.bindings_of(["order.placed"], ordered=False)
    for type in ("order.placed.again", "order.place", "order.closed", "order.placed.a.b"):
        for key in (None, "k", "a.b > *"):
            assert not any(matches(one, names.event_key("order", type, key)) for one in keys)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_copy_whose_time_has_come_reaches_its_position(ordered: bool) -> None:
    for key in (None, "k1", "k2", "é"):
        copy = names.copy_key(names.copy_place("stock.reserve", key), 0, 1e9)
        assert len(takers("stock.reserve", ordered, names.RETRY, copy)) == 1
        assert not takers("other.reserve", ordered, names.RETRY, copy)
        assert names.slot_in(copy) == (0 if key is None else slot_of(key))


def test_a_copy_that_waits_reaches_the_queue_of_its_step_and_its_key_says_for_how_long() -> None:
    for key in (None, "k1", "é"):
        for step in waiting.STEPS:
            place = names.copy_place("stock.reserve", key)
            copy = names.copy_key(place, step, 1_790_000_000.25)
            assert takers("stock.reserve", False, names.WAIT, copy) == [names.wait_queue("stock.reserve", step)]
            assert not takers("other.reserve", False, names.WAIT, copy)
            assert names.place_and_time(copy) == (place, 1_790_000_000.25)
            assert names.place_and_time(names.copy_key(place, 0, 1.0)) == (place, 0.0)


def takers(position: str, ordered: bool, exchange: str, routing_key: str) -> list[str]:
    found = names.copy_bindings(position, ordered)
    return [queue for queue, where, key in found if where == exchange and matches(key, routing_key)]


def test_a_time_that_a_stranger_wrote_holds_nothing_up() -> None:
    assert names.place_and_time("100.stock.reserve._2.1.soon") == ("stock.reserve._2.1", 0.0)


@pytest.mark.parametrize("name", ["", "a.b", "a b", "tidings-dead", "tidings-retry", "_x", "é", "x" * 201])
def test_what_cannot_be_a_stream_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be a stream"):
        names.check_stream(name)


@pytest.mark.parametrize("position", ["stock", "a.b.c", "stock.re serve", "stock.#", "stock.*", "a_b.c"])
def test_what_cannot_be_a_position_is_refused(position: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be a position"):
        names.check_position(position)


@pytest.mark.parametrize(
    ("type", "said"), [("order.#", "cannot be a type"), ("order._1.2", "cannot be a type"), ("else.placed", "belong")]
)
def test_what_cannot_be_a_type_is_refused(type: str, said: str) -> None:
    with pytest.raises(InvalidEvent, match=said):
        names.event_key("order", type, "k")
