"""What may be written as an event class: a table of wrong lines, each with the message that shows the right one."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from tidings import DeclarationError, Event
from tidings.event import EventMeta

PRELUDE = """
import enum, dataclasses
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar
from uuid import UUID
import msgspec
from tidings import Event

T = TypeVar("T")

class Colour(enum.Enum):
    RED = "red"

class Money(msgspec.Struct):
    amount: Decimal
    currency: str

class Box(msgspec.Struct, Generic[T]):
    item: T

class Node(msgspec.Struct):
    kids: list["Node"]

class Placed(Event, type="order.placed", version=1, key="order_id"):
    order_id: str

class Anonymous(Event, type="order.noticed", version=1):
    note: str
"""


def declare(source: str, *, future: bool = False) -> dict[str, Any]:
    """Run a module's text as a user would write it, with or without postponed annotations."""
    module = types.ModuleType("shop_of_this_test")
    sys.modules[module.__name__] = module  # where nested classes look for the names in their annotations
    head = "from __future__ import annotations\n" if future else ""
    exec(compile(head + PRELUDE + source, "shop.py", "exec", dont_inherit=True), vars(module))
    return vars(module)


def header(line: str) -> str:
    return f"class Wrong({line}):\n    order_id: str\n"


def field(line: str) -> str:
    return f'class Wrong(Event, type="order.wrong", version=1):\n    {line}\n'


WRONG = {
    "no type": (header("Event, version=1"), 'class Wrong(Event, type="order.placed", version=1, key="order_id"):'),
    "a type that is no text": (header("Event, type=5, version=1"), "type=5 is not a stream and a name"),
    "a type without a dot": (header('Event, type="order", version=1'), "'order' is not a stream and a name"),
    "a type in capitals": (header('Event, type="order.Placed", version=1'), "lower case letters"),
    "a type with a number as a part": (header('Event, type="order.17", version=1'), "each part beginning with a"),
    "a type that ends with a line": (header(r'Event, type="order.placed\n", version=1'), "is not a stream and a name"),
    "a type that is too long": (header(f'Event, type="order.{"a" * 200}", version=1'), "at most 200 characters"),
    "a stream of our own": (
        header('Event, type="tidings-dead.x", version=1'),
        "begin with 'tidings-' are Tidings' o",
    ),
    "no version": (
        header('Event, type="order.wrong"'),
        'class Wrong(Event, type="order.wrong", version=1, key="order_id"):',
    ),
    "version 0": (header('Event, type="order.wrong", version=0'), "version=0; a version is a whole number from 1"),
    "a version as text": (header('Event, type="order.wrong", version="1"'), "version='1'; a version is a whole"),
    "a version that is a truth": (header('Event, type="order.wrong", version=True'), "version=True; a version"),
    "an unknown keyword": (
        header('Event, type="order.wrong", version=1, rename="camel"'),
        "takes type=, version=, key=, upcast= and optional=, not rename=",
    ),
    "a key that is no field": (
        header('Event, type="order.wrong", version=1, key="id"'),
        "key='id' is not one of its fields (order_id)",
    ),
    "a key that is no text": (header('Event, type="order.wrong", version=1, key=7'), 'Write: key="order_id"'),
    "a key that may be None": (
        'class Wrong(Event, type="order.wrong", version=1, key="shop"):\n    shop: str | None = None',
        "    shop: str",
    ),
    "a key that is a float": (
        'class Wrong(Event, type="order.wrong", version=1, key="weight"):\n    weight: float',
        "the key weight must be text, a whole number, a UUID or an enum, and never None. Write:\n    weight: str",
    ),
    "a key with None among its values": (
        'class Wrong(Event, type="order.wrong", version=1, key="kind"):\n    kind: Literal["a", None]',
        "never None",
    ),
    "a subclass that says nothing": (
        "class Wrong(Placed):\n    note: str",
        "It has the fields of Placed, and nothing else of its declaration. Write, for example:\n"
        '    class Wrong(Placed, type="order.placed", version=1, key="order_id"):',
    ),
    "a subclass without version": (
        'class Wrong(Placed, type="order.wrong"):\n    note: str',
        'class Wrong(Placed, type="order.wrong", version=1, key="order_id"):',
    ),
    "a subclass that forgets the key": (
        'class Wrong(Placed, type="order.wrong", version=3):\n    note: str',
        "keeps its order by 'order_id'. Write:\n"
        '    class Wrong(Placed, type="order.wrong", version=3, key="order_id"):',
    ),
    "a field without a type": (field("quantity = 3"), "Wrong.quantity has no type, so it would not travel. Write:\n"),
    "a field without a type, its line": (field("quantity = 3"), "    quantity: int = 3\n"),
    "a private field": (field("_secret: str"), "Wrong._secret: the fields of an event are public; take off the"),
    "Any": (field("payload: Any"), "    payload: dict[str, int]"),
    "object": (field("payload: object"), "Wrong.payload: its type says nothing that could be checked"),
    "a bare dict": (field("payload: dict"), "Wrong.payload: its type says nothing that could be checked"),
    "a bare list": (field("payload: list"), "Wrong.payload: its type says nothing that could be checked"),
    "Any inside": (field("payload: dict[str, list[Any]]"), "Wrong.payload: its type says nothing"),
    "Any in a second use of a generic": (field("payload: tuple[Box[int], Box[Any]]"), "Wrong.payload.item: its type"),
    "a class without typed fields": (field("payload: Callable[[], int]"), "a class without typed fields"),
    "raw JSON": (field("payload: msgspec.Raw"), "its type says nothing that could be checked"),
    "a time stamp said to be naive": (
        field("at: Annotated[datetime, msgspec.Meta(tz=False)]"),
        "a time stamp without a zone is no point in time. Write:\n    at: Annotated[datetime, msgspec.Meta(tz=True)]",
    ),
    "a naive time stamp inside a struct": (
        "class Inner(msgspec.Struct):\n    at: datetime\n" + field("inner: Inner"),
        "Wrong.inner.at: a time stamp without a zone",
    ),
    "a naive time stamp inside a dataclass": (
        "@dataclasses.dataclass\nclass Inner:\n    at: datetime\n" + field("inner: list[Inner]"),
        "Wrong.inner.at: a time stamp without a zone",
    ),
    "a naive time stamp inside a TypedDict": (
        "class Inner(TypedDict):\n    at: datetime\n" + field("inner: Inner"),
        "Wrong.inner.at: a time stamp without a zone",
    ),
    "a naive time stamp inside a NamedTuple": (
        "class Inner(NamedTuple):\n    at: datetime\n" + field("inner: Inner | None = None"),
        "Wrong.inner.at: a time stamp without a zone",
    ),
    "two structs in a union": (
        field("what: Money | Node"),
        "all Struct types must be tagged",
    ),
    "a default of another type": (
        field('quantity: int = "three"'),
        "Wrong.quantity: its default 'three' does not fit its type: Expected `int`, got `str`",
    ),
    "None as the default of what is never None": (field("note: str = None"), "its default None does not fit its type"),
    "a naive default": (field("at: datetime = datetime(2026, 1, 1)"), "does not fit its type"),
    "NaN as a default": (
        field('rate: float | None = float("nan")'),
        "its default nan does not fit its type: its readers would get None",
    ),
    "fields of a plain struct": (
        "class Tenant(msgspec.Struct, frozen=True, kw_only=True):\n    tenant: str\n"
        'class Wrong(Tenant, Event, type="a.b", version=1):\n    note: str',
        "put what Tenant holds into a field: tenant: Tenant",
    ),
    "fields of a plain class": (
        'class Tenant:\n    tenant: str\nclass Wrong(Event, Tenant, type="a.b", version=1):\n    note: str',
        "put what Tenant holds into a field: tenant: Tenant",
    ),
    "an upcast that takes nothing": (
        'class Wrong(Event, type="order.wrong", version=2, upcast=lambda: None):\n    order_id: str',
        "must take one annotated parameter, the older event. Write:\n    def from_v1(old: WrongV1) -> Wrong:",
    ),
    "an upcast without an annotation": (
        'def lift(old): ...\nclass Wrong(Event, type="order.wrong", version=2, upcast=lift):\n    order_id: str',
        "its upcast 'lift' must take one annotated parameter",
    ),
    "an upcast from another type": (
        "def lift(old: Placed): ...\n"
        'class Wrong(Event, type="order.wrong", version=2, upcast=lift):\n    order_id: str',
        "an earlier version of 'order.wrong', not Placed, which is 'order.placed' in version 1. Write:\n"
        "    def from_v1(old: WrongV1) -> Wrong:",
    ),
    "an upcast from what is no event": (
        'def lift(old: Money): ...\nclass Wrong(Event, type="order.wrong", version=2, upcast=lift):\n    order_id: str',
        "must take an earlier version of 'order.wrong', not Money",
    ),
    "an upcast to version 1": (
        "def lift(old: Placed): ...\n"
        'class Wrong(Event, type="order.placed", version=1, upcast=lift):\n    order_id: str',
        "Version 1 has no earlier one: take off upcast=, or raise version=",
    ),
    "an upcast from the same version": (
        "def lift(old: Placed): ...\n"
        'class Two(Event, type="order.placed", version=2, upcast=lift):\n    order_id: str\n'
        "def again(old: Two): ...\n"
        'class Wrong(Event, type="order.placed", version=2, upcast=again):\n    order_id: str\n',
        "not Two, which is 'order.placed' in version 2",
    ),
}


@pytest.mark.parametrize("future", [False, True], ids=["evaluated", "postponed"])
@pytest.mark.parametrize(("source", "shows"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_declaration_raises_where_it_is_written_and_shows_the_right_line(
    source: str, shows: str, future: bool
) -> None:
    with pytest.raises(DeclarationError) as caught:
        declare(source, future=future)
    assert shows in str(caught.value)
    assert "Wrong" in str(caught.value)


UNKNOWN = {
    "a name that nobody imported": ("what: Invoice", "'Invoice' is not known here", "define it above Wrong"),
    "a name inside a list": ("what: list['Invoice']", "'Invoice' is not defined", "define it above Wrong"),
    "an event that holds itself": ("kids: list[Wrong]", "an event cannot hold itself", "into a msgspec.Struct"),
    "no type at all": ("what: 5 +", "is no type", "5 +"),
}


@pytest.mark.parametrize("future", [False, True], ids=["evaluated", "postponed"])
@pytest.mark.parametrize(("line", "first", "second"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_a_type_that_cannot_be_resolved_is_named(line: str, first: str, second: str, future: bool) -> None:
    name, hint = line.split(": ")
    with pytest.raises(DeclarationError) as caught:
        declare(field(f"{name}: {hint if 'list[' in hint and 'Invoice' in hint else repr(hint)}"), future=future)
    assert first in str(caught.value)
    assert second in str(caught.value)


RIGHT = {
    "no fields": 'class Right(Event, type="order.emptied", version=1):\n    """Nothing to say."""',
    "a hyphen and several dots": 'class Right(Event, type="order-desk.line.was-added2", version=12):\n    sku: str',
    "an enum as the key": 'class Right(Event, type="a.b", version=1, key="colour"):\n    colour: Colour',
    "a literal as the key": 'class Right(Event, type="a.b", version=1, key="side"):\n    side: Literal["a", "b", 3]',
    "a number as the key": 'class Right(Event, type="a.b", version=1, key="number"):\n    number: int',
    "a UUID as the key": 'class Right(Event, type="a.b", version=1, key="id"):\n    id: UUID',
    "a constrained text as the key": (
        'class Right(Event, type="a.b", version=1, key="id"):\n    id: Annotated[str, msgspec.Meta(max_length=8)]'
    ),
    "time stamps wherever they stand": (
        'class Right(Event, type="a.b", version=1):\n'
        "    one: datetime\n    two: Optional[datetime]\n    three: datetime | None\n    four: list[datetime]\n"
        "    five: dict[str, tuple[datetime, ...]]\n    six: Box[datetime]\n    seven: Sequence[datetime]\n"
        "    eight: Final[datetime]"
    ),
    "days and times of day": 'class Right(Event, type="a.b", version=1):\n    day: date\n    opens: time',
    "what holds itself, in a struct": 'class Right(Event, type="a.b", version=1):\n    tree: Node',
    "methods of another class": (
        "class Talks:\n    __slots__ = ()\n    LOUD: ClassVar[bool] = True\n    def say(self): return 1\n"
        'class Right(Talks, Event, type="a.b", version=1):\n    note: str'
    ),
    "constants, methods and properties": (
        'class Right(Event, type="a.b", version=1):\n'
        "    price: int\n    LIMIT: ClassVar[int] = 3\n    _cache: ClassVar[dict[str, datetime]] = {}\n"
        "    @property\n    def double(self): return 2 * self.price\n"
        "    @classmethod\n    def make(cls): return cls(price=1)\n"
        "    def check(self): return self.price > 0\n"
    ),
    "defaults of every kind": (
        'class Right(Event, type="a.b", version=1):\n'
        "    a: int = 1\n    b: list[str] = []\n    c: Decimal = Decimal('1.5')\n    d: timedelta = timedelta(days=1)\n"
        "    e: Colour = Colour.RED\n    f: int | msgspec.UnsetType = msgspec.UNSET\n    g: float = 1\n"
        "    h: list[int] = msgspec.field(default_factory=lambda: [1])\n    i: bytes = b'x'\n    j: None | str = None\n"
    ),
    "another name on the wire": (
        'class Right(Event, type="a.b", version=1, key="order_id"):\n    order_id: str = msgspec.field(name="orderId")'
    ),
    "a subclass that says all of it": (
        'class Right(Placed, type="order.placed-again", version=1, key="order_id"):\n    times: int = 2'
    ),
    "a subclass with a key of its own": (
        'class Right(Anonymous, type="order.noticed-by", version=1, key="who"):\n    who: str'
    ),
}


@pytest.mark.parametrize("future", [False, True], ids=["evaluated", "postponed"])
@pytest.mark.parametrize("source", RIGHT.values(), ids=RIGHT.keys())
def test_what_is_right_is_taken(source: str, future: bool) -> None:
    declared = declare(source, future=future)["Right"]
    assert issubclass(declared, Event)


def test_a_forward_reference_between_local_classes_is_found() -> None:
    class Line(Event, type="order.line", version=1):
        sku: str

    class Order(Event, type="order.whole", version=1):
        lines: list[Line]

    assert Order(lines=[Line(sku="a")]).lines[0].sku == "a"


def test_annotations_that_a_function_makes_are_read_as_in_python_3_14() -> None:
    def annotate(format: int) -> dict[str, Any]:
        if format != 1:
            raise NotImplementedError
        return {"order_id": str}

    namespace = {"__module__": __name__, "__qualname__": "Lazy", "__annotate_func__": annotate}
    lazy: Any = EventMeta("Lazy", (Event,), namespace, type="order.lazy", version=1, key="order_id")
    assert lazy(order_id="7").order_id == "7"
    assert lazy.__struct_fields__ == ("order_id",)


def test_a_name_unknown_to_lazy_annotations_is_a_declaration_error() -> None:
    def annotate(format: int) -> dict[str, Any]:
        raise NameError("name 'Invoice' is not defined")

    namespace = {"__module__": __name__, "__qualname__": "Lazy", "__annotate_func__": annotate}
    with pytest.raises(DeclarationError, match=r"'Invoice' is not defined.*define it above Lazy"):
        EventMeta("Lazy", (Event,), namespace, type="order.lazy", version=1)
