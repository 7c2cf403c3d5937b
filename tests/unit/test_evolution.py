"""Several versions of one type: who reads what, and what becomes of the rest (P13)."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest

from tests.golden.examples import FOLDER, Line, OrderPlaced, OrderPlacedV1, ShopOpened, StockReserved
from tidings import DeclarationError, Event, Service, UndecodableEvent, dead_letters, event_id
from tidings.delivery import Envelope
from tidings.envelope import envelope_of, read_envelope
from tidings.event import stamp_of
from tidings.evolution import Reader
from tidings.testing import MemoryBroker


def stored(name: str) -> Envelope:
    return read_envelope((FOLDER / f"structured-{name}.json").read_bytes(), {})


def test_P13_a_reader_of_version_2_gets_stored_events_of_version_1() -> None:
    envelope = stored("placed-v1")
    event = Reader([OrderPlaced]).read(envelope)
    assert isinstance(event, OrderPlaced)
    assert event.lines == [Line(sku="teapot", quantity=2)]
    assert event_id(event) == envelope.id
    assert stamp_of(event).time == envelope.time


def test_P13_a_reader_of_version_2_gets_version_2_as_it_is() -> None:
    event = Reader([OrderPlaced]).read(stored("placed-v2"))
    assert isinstance(event, OrderPlaced)
    assert event.lines == [Line(sku="teapot", quantity=2)]


def test_P13_a_reader_that_knows_only_version_1_refuses_version_2_and_says_what_to_do() -> None:
    with pytest.raises(UndecodableEvent) as caught:
        Reader([OrderPlacedV1]).read(stored("placed-v2"))
    assert caught.value.code == "unknown-version"
    assert str(caught.value) == (
        "order.placed has version 'v2'; OrderPlacedV1 reads v1. Deploy the newer class, then redrive"
    )


@pytest.mark.parametrize("version", ["v99", "v0", "1", "V1", "v1 ", "v01", "", "x" * 100_000])
def test_P13_an_unknown_version_is_refused_in_few_words(version: str) -> None:
    envelope = msgspec.structs.replace(stored("placed-v1"), version=version)
    with pytest.raises(UndecodableEvent) as caught:
        Reader([OrderPlaced]).read(envelope)
    assert caught.value.code == "unknown-version"
    assert len(str(caught.value)) < 200


def test_P13_a_type_that_was_not_asked_for_is_none_of_its_business() -> None:
    reader = Reader([StockReserved, ShopOpened])
    assert reader.types == ("stock.reserved", "shop.opened")
    assert reader.read(stored("placed-v1")) is None
    assert reader.read(msgspec.structs.replace(stored("placed-v1"), version="v99", data=msgspec.Raw(b"?"))) is None


def test_P13_data_that_does_not_fit_is_refused_with_the_field() -> None:
    envelope = msgspec.structs.replace(stored("placed-v1"), data=msgspec.Raw(b'{"order_id":7}'))
    with pytest.raises(UndecodableEvent, match=r"order\.placed v1 does not fit its class: .*`\$\.order_id`") as caught:
        Reader([OrderPlaced]).read(envelope)
    assert caught.value.code == "bad-data"


def test_fields_that_a_reader_does_not_know_are_passed_over() -> None:
    envelope = msgspec.structs.replace(stored("caused"), data=msgspec.Raw(b'{"order_id":"A","shelf":7}'))
    assert Reader([StockReserved]).read(envelope) == StockReserved(order_id="A")


# ── chains ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class NameV1(Event, type="person.named", version=1, key="id"):
    id: str
    name: str


def split(old: NameV1) -> NameV2:
    first, _, last = old.name.partition(" ")
    return NameV2(id=old.id, first=first, last=last)


class NameV2(Event, type="person.named", version=2, key="id", upcast=split):
    id: str
    first: str
    last: str


def join(old: NameV2) -> NameV4:
    return NameV4(id=old.id, names=[old.first, old.last])


class NameV4(Event, type="person.named", version=4, key="id", upcast=join):
    id: str
    names: list[str]


def nest(old: NameV4) -> Name:
    return Name(id=old.id, names=tuple(old.names))


class Name(Event, type="person.named", version=5, key="id", upcast=nest):
    id: str
    names: tuple[str, ...]


@pytest.mark.parametrize(
    "stored",
    [
        NameV1(id="7", name="Ada Lovelace"),
        NameV2(id="7", first="Ada", last="Lovelace"),
        NameV4(id="7", names=["Ada", "Lovelace"]),
        Name(id="7", names=("Ada", "Lovelace")),
    ],
    ids=["v1", "v2", "v4", "v5"],
)
def test_P13_a_chain_of_upcasts_is_walked_from_any_of_its_versions(stored: Event) -> None:
    envelope = envelope_of(stored, "people")
    event = Reader([Name]).read(envelope)
    assert event == Name(id="7", names=("Ada", "Lovelace"))
    assert isinstance(event, Name)
    assert event_id(event) == event_id(stored)


def test_P13_a_version_that_was_left_out_of_the_chain_is_unknown() -> None:
    envelope = msgspec.structs.replace(envelope_of(NameV1(id="7", name="Ada"), "people"), version="v3")
    with pytest.raises(UndecodableEvent, match=r"Name reads v1, v2, v4, v5") as caught:
        Reader([Name]).read(envelope)
    assert caught.value.code == "unknown-version"


def test_two_classes_of_one_type_are_refused_with_the_way_out() -> None:
    with pytest.raises(
        DeclarationError, match=r"NameV2 and NameV1 are both 'person\.named': handle the newest version"
    ):
        Reader([NameV2, NameV1])


# ── what goes wrong in the program's own code ───────────────────────────────────────────────────────────────────────


def upcast_with(function: Any) -> type[Event]:
    def lift(old: NameV1) -> Any:
        return function(old)

    class Lifted(Event, type="person.named", version=2, key="id", upcast=lift):
        id: str

    return Lifted


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda old: 1 / 0, "ZeroDivisionError"),
        (lambda old: sys.exit(3), "SystemExit: 3"),
        (lambda old: None, "the upcast returned NoneType, not Lifted"),
        (lambda old: old, "the upcast returned NameV1, not Lifted"),
        (lambda old: {"id": old.id}, "the upcast returned dict, not Lifted"),
        (lambda old: NameV4(id="", names=[]), "InvalidEvent"),
    ],
    ids=["raises", "exits", "nothing", "itself", "a dict", "an invalid event"],
)
def test_P13_an_upcast_that_fails_makes_the_event_undecodable_and_is_no_crash(function: Any, says: str) -> None:
    with pytest.raises(UndecodableEvent, match=says) as caught:
        Reader([upcast_with(function)]).read(envelope_of(NameV1(id="7", name="Ada"), "people"))
    assert caught.value.code == "upcast-failed"


class Picky(Event, type="picky.told", version=1):
    number: int

    def __post_init__(self) -> None:
        if self.number == 13:
            raise LookupError("never 13")
        if self.number == 14:
            sys.exit("never 14")


@pytest.mark.parametrize(("number", "cause"), [(13, LookupError), (14, SystemExit)])
def test_P13_whatever_a_check_of_the_program_raises_makes_the_event_undecodable(
    number: int, cause: type[BaseException]
) -> None:
    envelope = envelope_of(Picky(number=12), "shop")
    with pytest.raises(UndecodableEvent, match=f"never {number}") as caught:
        Reader([Picky]).read(msgspec.structs.replace(envelope, data=msgspec.Raw(b'{"number":%d}' % number)))
    assert caught.value.code == "bad-data"
    assert isinstance(caught.value.__cause__, cause)


# ── in a service ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_P13_P7_a_service_that_knows_only_version_1_keeps_version_2_for_its_successor() -> None:
    broker = MemoryBroker()
    writer = Service("people", publishes=[NameV1, NameV2])
    old, new = Service("mail"), Service("mail")
    seen_by_old: list[NameV1] = []
    seen_by_new: list[Name] = []

    @old.on(NameV1, name="greet", idempotent=True)
    async def greet_v1(event: NameV1) -> None:
        seen_by_old.append(event)

    @new.on(Name, name="greet", idempotent=True)
    async def greet(event: Name) -> None:
        seen_by_new.append(event)

    v1, v2 = NameV1(id="7", name="Ada Lovelace"), NameV2(id="7", first="Ada", last="King")
    async with writer.running(broker=broker), old.running(broker=broker):
        await writer.publish(v2)
        await writer.publish(v1)
        await broker.idle()
    assert seen_by_old == [v1]
    (letter,) = await dead_letters.list_letters(broker)
    assert (letter.code, letter.event_id) == ("unknown-version", event_id(v2))

    async with new.running(broker=broker):
        (whole,) = await dead_letters.find(broker, [letter.id])
        await dead_letters.redrive(broker, whole)
        await broker.idle()
    assert seen_by_new == [Name(id="7", names=("Ada", "King"))]
    assert await dead_letters.list_letters(broker) == []


def test_a_version_older_than_all_that_are_read_asks_for_an_upcast() -> None:
    class Alone(Event, type="order.alone", version=2, key="order_id"):
        order_id: str

    for version, remedy in (
        ("v1", "What is older needs an upcast: deploy a class that has one, then redrive"),
        ("v3", "Deploy the newer class, then redrive"),
        ("2025-01", "Deploy the newer class, then redrive"),
    ):
        envelope = msgspec.structs.replace(stored("placed-v1"), type="order.alone", version=version)
        with pytest.raises(UndecodableEvent) as raised:
            Reader([Alone]).read(envelope)
        assert str(raised.value).endswith(f"Alone reads v2. {remedy}")
