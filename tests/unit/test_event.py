"""Events once they are made: their values, their ids, and what becomes of both on the way."""

from __future__ import annotations

import copy
import dataclasses
import enum
import json
import math
import os
import pickle
import re
import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest

from tidings import DeclarationError, Event, InvalidEvent, event_id
from tidings.event import encode_data, key_of, set_stamp, spec_of, stamp_of
from tidings.values import MAX_DEPTH, nests_deeper


class Colour(enum.Enum):
    RED = "red"


class Loud(enum.StrEnum):
    YES = "yes"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Address:
    street: str
    lines: tuple[int, ...] = ()


class Plain(msgspec.Struct, eq=False):
    number: int


class Node(msgspec.Struct):
    kids: list[Node]


class OrderPlaced(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    quantity: int = 1
    rate: float | None = None


class Everything(Event, type="order.everything", version=3, key="id"):
    id: UUID
    total: Decimal
    at: datetime
    day: date
    opens: time
    lasts: timedelta
    photo: bytes
    colour: Colour
    loud: Loud
    level: Level
    side: Literal["a", 1]
    address: Address
    plain: Plain
    names: set[str]
    pairs: dict[str, list[tuple[int, str]]]
    by_number: dict[int, str]
    maybe: msgspec.UnsetType | int = msgspec.UNSET
    weight: float = 1.0


def everything(**changes: Any) -> Everything:
    fields: dict[str, Any] = {
        "id": UUID("01234567-89ab-cdef-0123-456789abcdef"),
        "total": Decimal("19.90"),
        "at": datetime(2026, 11, 23, 12, 30, 0, 250000, tzinfo=UTC),
        "day": date(2026, 11, 23),
        "opens": time(8, 30),
        "lasts": timedelta(days=-1, microseconds=7),
        "photo": b"\x00\xff",
        "colour": Colour.RED,
        "loud": Loud.YES,
        "level": Level.HIGH,
        "side": 1,
        "address": Address("Zürich", (1, 2)),
        "plain": Plain(7),
        "names": {"a"},
        "pairs": {"x": [(1, "one")]},
        "by_number": {-1: "minus"},
    }
    return Everything(**{**fields, **changes})


# ── values ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_kind_of_value_travels_and_is_the_same_afterwards() -> None:
    event = everything()
    again = spec_of(Everything).decode(encode_data(event))
    assert isinstance(again, Everything)
    assert again.total == Decimal("19.90")
    assert str(again.total) == "19.90"
    assert again.address == event.address
    assert again.plain.number == 7
    assert (again.lasts, again.photo, again.names, again.pairs) == (event.lasts, event.photo, event.names, event.pairs)
    assert again.maybe is msgspec.UNSET


WRONG_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "another type": ({"total": "much"}, "total"),
    "a naive time stamp": ({"at": datetime(2026, 1, 1)}, "Give it a zone, for example datetime.now(UTC)"),
    "a UUID as text": ({"id": "01234567-89AB-CDEF-0123-456789ABCDEF"}, "its readers would get UUID("),
    "a moment as text": ({"at": "2026-11-23T12:30:00Z"}, "its readers would get datetime.datetime("),
    "an enum by its value": ({"colour": "red"}, "Everything.colour = 'red': its readers would get <Colour.RED"),
    "a number where none is": ({"weight": float("nan")}, "Expected `float`, got `null`"),
    "infinity": ({"weight": math.inf}, "Expected `float`, got `null`"),
    "a number that a float cannot hold": ({"weight": 2**53 + 1}, "its readers would get 9007199254740992.0"),
    "a float as money": ({"total": 0.1}, "its readers would get Decimal('0.1')"),
    "a list as a set": ({"names": ["a"]}, "Everything.names"),
    "half a character": ({"address": Address("\ud800")}, "half of a surrogate pair"),
    "half a character as a name": ({"pairs": {"\udfff": []}}, "half of a surrogate pair"),
    "the character U+0000": ({"address": Address("a\x00b")}, "U+0000, which PostgreSQL cannot store"),
    "a number of 5000 digits": ({"by_number": {1: "x"}, "level": 10**5000}, ""),
    "a zone to the second": (
        {"at": datetime(1890, 1, 1, tzinfo=timezone(timedelta(minutes=53, seconds=28)))},
        "Everything.at",
    ),
}


@pytest.mark.parametrize(("changes", "says"), WRONG_VALUES.values(), ids=WRONG_VALUES.keys())
def test_a_value_that_would_arrive_as_another_is_refused_where_the_event_is_made(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidEvent) as caught:
        everything(**changes)
    assert says in str(caught.value)
    assert str(caught.value).startswith("Everything")


def test_a_number_that_is_none_is_refused_where_none_is_allowed() -> None:
    with pytest.raises(InvalidEvent, match=r"OrderPlaced\.rate = nan: its readers would get None"):
        OrderPlaced(order_id="1", rate=math.nan)
    with pytest.raises(InvalidEvent, match=r"OrderPlaced\.rate = inf"):
        OrderPlaced(order_id="1", rate=math.inf)


def test_the_part_of_a_nested_value_that_would_change_is_named() -> None:
    class Measured(Event, type="lab.measured", version=1):
        values: dict[str, list[float | None]]

    with pytest.raises(InvalidEvent, match=r"Measured\.values\.ph\.1 = nan"):
        Measured(values={"ph": [7.0, math.nan]})


def test_what_is_equal_by_its_parts_is_taken() -> None:
    assert everything(plain=Plain(9)).plain.number == 9
    assert everything(pairs={"x": ((1, "one"),)}).pairs
    assert everything(weight=3).weight == 3


def test_the_hour_that_a_clock_change_repeats_is_a_moment_like_any_other() -> None:
    zurich = ZoneInfo("Europe/Zurich")
    for fold in (0, 1):
        at = datetime(2026, 10, 25, 2, 30, tzinfo=zurich, fold=fold)
        event = everything(at=at)
        again = spec_of(Everything).decode(encode_data(event))
        assert isinstance(again, Everything)
        assert again.at.astimezone(UTC) == at.astimezone(UTC)


def test_whole_numbers_keep_every_digit() -> None:
    event = OrderPlaced(order_id="1", quantity=10**30)
    assert encode_data(event) == b'{"order_id":"1","quantity":1' + b"0" * 30 + b',"rate":null}'
    assert spec_of(OrderPlaced).decode(encode_data(event)) == event


def test_what_nests_too_deep_is_refused_where_it_is_made() -> None:
    class Tree(Event, type="tree.grown", version=1):
        root: Node

    def chain(length: int) -> Node:
        node = Node([])
        for _ in range(length - 1):
            node = Node([node])
        return node

    assert Tree(root=chain((MAX_DEPTH - 2) // 2))
    with pytest.raises(InvalidEvent, match="nest deeper than 63"):
        Tree(root=chain((MAX_DEPTH - 2) // 2 + 1))
    with pytest.raises(InvalidEvent, match="nest deeper than 63"):
        Tree(root=chain(20_000))


@pytest.mark.parametrize(
    ("data", "deeper"),
    [
        (b"[" * 64 + b"]" * 64, False),
        (b"[" * 65 + b"]" * 65, True),
        (b'{"a":[' * 32 + b"]}" * 32, False),
        (b'{"a":[' * 32 + b"{}" + b"]}" * 32, True),
        (b'["' + b"[" * 200 + b'"]', False),
        (b'["' + b'\\"[' * 200 + b'"]', False),
        (b'["\\\\","' + b"[" * 200 + b'"]', False),
        (b'["\\\\",' + b"[" * 70 + b"]" * 70 + b"]", True),
        (b"[" + b"[]," * 500 + b"[]]", False),
        (b"[" * 100_000, False),  # no JSON: the decoder says so
    ],
)
def test_nesting_is_counted_outside_of_texts(data: bytes, deeper: bool) -> None:
    assert nests_deeper(data) is deeper


def test_a_megabyte_of_brackets_is_counted_without_a_step_for_each() -> None:
    hostile = [b"[" * 524_288 + b"]" * 524_288, (b"[" * 64 + b"]" * 64) * 8192, b'"' + b'\\"' * 524_288]
    assert [nests_deeper(one) for one in hostile] == [True, False, False]


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class ByColour(Event, type="paint.mixed", version=1, key="colour"):
    colour: Colour


class ByLevel(Event, type="alarm.raised", version=1, key="level"):
    level: Level


class BySide(Event, type="side.taken", version=1, key="side"):
    side: Literal["a", 1]


class ByUuid(Event, type="thing.made", version=1, key="id"):
    id: UUID


@pytest.mark.parametrize(
    ("event", "key"),
    [
        (ByColour(colour=Colour.RED), "red"),
        (ByLevel(level=Level.HIGH), "3"),
        (BySide(side=1), "1"),
        (ByUuid(id=UUID("01234567-89AB-CDEF-0123-456789ABCDEF")), "01234567-89ab-cdef-0123-456789abcdef"),
        (OrderPlaced(order_id="Zürich 7/ü"), "Zürich 7/ü"),
        (OrderPlaced(order_id="nobreak\u00a0space"), "nobreak\u00a0space"),
        (OrderPlaced(order_id="🫩" * 256), "🫩" * 256),  # newer than the tables of some Pythons
    ],
)
def test_a_key_is_the_value_as_it_travels(event: Event, key: str) -> None:
    assert key_of(event) == key


@pytest.mark.parametrize("key", ["", "x" * 257, "a\nb", "a\x7fb", "a\x9bb", "\x1b[31m", "a\ufffeb", "\ufdd0"])
def test_a_key_that_cannot_travel_is_refused(key: str) -> None:
    with pytest.raises(InvalidEvent, match=r"OrderPlaced\.order_id = .*a key has 1 to 256 characters"):
        OrderPlaced(order_id=key)


# ── being an event ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_fields_are_keyword_only_and_known() -> None:
    with pytest.raises(TypeError, match="positional"):
        OrderPlaced("1")  # type: ignore[call-arg]  # what is refused
    with pytest.raises(TypeError, match="order_id"):
        OrderPlaced()  # type: ignore[call-arg]  # what is refused
    with pytest.raises(TypeError, match="colour"):
        OrderPlaced(order_id="1", colour="red")  # type: ignore[call-arg]  # what is refused


def test_an_event_cannot_be_changed() -> None:
    event = OrderPlaced(order_id="1")
    with pytest.raises(AttributeError):
        event.order_id = "2"  # type: ignore[misc]  # what is refused


def test_the_base_class_makes_no_events() -> None:
    with pytest.raises(DeclarationError, match="Event is no event class"):
        Event()


def test_events_are_equal_when_their_fields_are_and_have_ids_of_their_own() -> None:
    one, other = OrderPlaced(order_id="1"), OrderPlaced(order_id="1")
    assert one == other
    assert hash(one) == hash(other)
    assert event_id(one) != event_id(other)
    assert event_id(one) == event_id(one)


def test_an_id_is_a_uuid_of_version_7_that_grows_with_time() -> None:
    ids = [event_id(OrderPlaced(order_id="1")) for _ in range(200)]
    assert {UUID(one).version for one in ids} == {7}
    assert ids == sorted(ids)


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda event: pickle.loads(pickle.dumps(event))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_is_the_same_fact_with_the_same_id_and_time(again: Any) -> None:
    event = OrderPlaced(order_id="1", quantity=3)
    copied = again(event)
    assert copied is not event
    assert copied == event
    assert stamp_of(copied) == stamp_of(event)


def test_a_deep_copy_shares_nothing_that_could_change() -> None:
    event = everything()
    assert copy.deepcopy(event).pairs["x"] is not event.pairs["x"]


def test_a_received_event_is_copied_with_the_id_it_travelled_with() -> None:
    received = spec_of(OrderPlaced).decode(b'{"order_id":""}')
    set_stamp(received, type("Envelope", (), {"id": "abc", "time": None}))
    assert event_id(pickle.loads(pickle.dumps(received))) == "abc"


def test_a_replaced_field_makes_another_event_that_is_checked_before_it_leaves() -> None:
    event = OrderPlaced(order_id="1")
    other = msgspec.structs.replace(event, order_id="2")
    assert event_id(other) != event_id(event)
    with pytest.raises(InvalidEvent, match=r"OrderPlaced\.order_id = ''"):
        event_id(msgspec.structs.replace(event, order_id=""))


def test_the_stamp_is_no_part_of_the_event() -> None:
    event = OrderPlaced(order_id="1")
    assert repr(event) == "OrderPlaced(order_id='1', quantity=1, rate=None)"
    assert json.loads(encode_data(event)) == {"order_id": "1", "quantity": 1, "rate": None}


SHOP = """
from datetime import datetime
from tidings import Event

class Placed(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    at: datetime
    quantity: int = 1

good = Placed(order_id="1", at=datetime.now())
reveal_type(good.quantity)
Placed("1", datetime.now())
Placed(order_id="1")
Placed(order_id=1, at=datetime.now())
Placed(order_id="1", at=datetime.now(), colour="red")
good.order_id = "2"
"""


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache", "shop.py"],
            {
                11: 'Revealed type is "int"',
                12: "Too many positional arguments",
                13: 'Missing named argument "at"',
                14: "incompatible type",
                15: 'Unexpected keyword argument "colour"',
                16: "read-only",
            },
        ),
        (
            [str(Path(sys.executable).parent / "basedpyright"), "--level", "error", "shop.py"],
            {
                12: "Expected 0 positional arguments",
                13: 'Argument missing for parameter "at"',
                14: 'cannot be assigned to parameter "order_id"',
                15: 'No parameter named "colour"',
                16: 'Cannot assign to attribute "order_id"',
            },
        ),
    ],
    ids=["mypy", "pyright"],
)
def test_type_checkers_see_the_fields_as_keyword_only_arguments(
    command: list[str], says: dict[int, str], tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    found = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    by_line: dict[int, str] = {}
    for line in found.stdout.splitlines():
        if match := re.search(r"shop\.py:(\d+):.*(?:error|note|information)", line):
            by_line[int(match[1])] = line
    assert by_line.keys() == says.keys(), found.stdout + found.stderr
    for number, text in says.items():
        assert text in by_line[number].replace("builtins.", "")
