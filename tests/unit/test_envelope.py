"""Between envelope and bytes: the golden files, what strangers send, and what nobody should."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.golden.examples import FOLDER, OrderPlaced, OrderPlacedV1, StockReserved, binary_file, examples, read_binary
from tidings import Event, EventTooLarge, UndecodableEvent, event_id
from tidings.delivery import MAX_EVENT_BYTES, Envelope
from tidings.envelope import STRUCTURED_HEADERS, envelope_of, read_envelope, to_binary, to_structured
from tidings.evolution import Reader

CODES = {
    "empty",
    "too-large",
    "too-deep",
    "not-json",
    "not-an-envelope",
    "bad-attribute",
    "unknown-version",
    "bad-data",
    "upcast-failed",
}
DATA = b'{"order_id":"A-1001","sku":"teapot","quantity":2,"placed_at":"2026-11-23T12:30:00.25Z"}'
MINIMAL = {"specversion": "1.0", "id": "17", "source": "/erp", "type": "order.placed", "version": "v1"}
HEADERS = {f"ce-{name}": value for name, value in MINIMAL.items()}


def body(**changes: Any) -> bytes:
    """A foreign envelope; ... takes an attribute out."""
    attributes = {**MINIMAL, "data": json.loads(DATA), **changes}
    return json.dumps({name: value for name, value in attributes.items() if value is not ...}).encode()


def refused(data: bytes, headers: Mapping[str, str] = {}) -> UndecodableEvent:
    with pytest.raises(UndecodableEvent) as caught:
        read_envelope(data, headers)
    assert caught.value.code in CODES
    return caught.value


# ── golden files ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", examples())
def test_the_structured_mode_is_the_golden_file_byte_for_byte(name: str) -> None:
    golden = (FOLDER / f"structured-{name}.json").read_bytes()
    reads, envelope = examples()[name]
    assert to_structured(envelope) == golden
    decoded = read_envelope(golden, STRUCTURED_HEADERS)
    assert to_structured(decoded) == golden
    assert bytes(decoded.data) == bytes(envelope.data)
    assert msgspec.structs.replace(decoded, data=envelope.data) == envelope
    event = Reader([reads]).read(decoded)
    assert isinstance(event, reads)
    assert event_id(event) == envelope.id


@pytest.mark.parametrize("name", examples())
def test_the_binary_mode_is_the_golden_file_byte_for_byte(name: str) -> None:
    golden = (FOLDER / f"binary-{name}.bin").read_bytes()
    reads, envelope = examples()[name]
    assert binary_file(*to_binary(envelope)) == golden
    headers, data = read_binary(golden)
    decoded = read_envelope(data, headers)
    assert binary_file(*to_binary(decoded)) == golden
    assert msgspec.structs.replace(decoded, data=envelope.data) == envelope
    assert isinstance(Reader([reads]).read(decoded), reads)


def test_there_is_a_test_for_each_golden_file() -> None:
    own = {f"structured-{name}.json" for name in examples()} | {f"binary-{name}.bin" for name in examples()}
    assert {path.name for path in FOLDER.iterdir() if path.suffix in (".json", ".bin")} == own | set(FOREIGN)


def read_foreign(name: str) -> Envelope:
    content = (FOLDER / name).read_bytes()
    headers, data = read_binary(content) if name.endswith(".bin") else ({}, content)
    return read_envelope(data, headers)


FOREIGN = {
    "foreign-minimal.json": {"id": "17", "source": "/erp", "key": None, "time": None},
    "foreign-extended.json": {
        "id": "17",
        "source": "https://erp.example.com/orders",
        "key": "A-1001",
        "time": datetime(2026, 11, 23, 12, 30, 0, 250000, tzinfo=UTC),
        "traceparent": None,
    },
    "foreign-base64.json": {"id": "17", "content_type": "application/json; charset=utf-8"},
    "foreign-headers.bin": {
        "id": '17 "a"',
        "source": "/erp/zürich/1",
        "key": "A-1001",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "content_type": "application/json; charset=UTF-8",
    },
    "foreign-both.bin": {"id": "17", "source": "/erp"},
}


@pytest.mark.parametrize(("name", "expected"), FOREIGN.items(), ids=FOREIGN)
def test_what_others_write_is_read(name: str, expected: dict[str, object]) -> None:
    envelope = read_foreign(name)
    assert {field: getattr(envelope, field) for field in expected} == expected
    event = Reader([OrderPlacedV1]).read(envelope)
    assert event == OrderPlacedV1(
        order_id="A-1001", sku="teapot", quantity=2, placed_at=datetime(2026, 11, 23, 12, 30, 0, 250000, tzinfo=UTC)
    )
    assert read_envelope(to_structured(envelope), {}).id == envelope.id


# ── attributes ──────────────────────────────────────────────────────────────────────────────────────────────────────


BAD_ATTRIBUTES = {
    "no specversion": ({"specversion": ...}, None),
    "another specversion": ({"specversion": "0.3"}, "bad-attribute"),
    "a patched specversion": ({"specversion": "1.0.2"}, "bad-attribute"),
    "no id": ({"id": ...}, "not-an-envelope"),
    "an id that is null": ({"id": None}, "bad-attribute"),
    "an id that is a number": ({"id": 17}, "bad-attribute"),
    "an empty id": ({"id": ""}, "bad-attribute"),
    "a long id": ({"id": "x" * 257}, "bad-attribute"),
    "an id of two lines": ({"id": "17\nforged log line"}, "bad-attribute"),
    "an id with an escape": ({"id": "\x1b[2J"}, "bad-attribute"),
    "no source": ({"source": ...}, "not-an-envelope"),
    "an empty source": ({"source": ""}, "bad-attribute"),
    "a long source": ({"source": "x" * 2049}, "bad-attribute"),
    "no type": ({"type": ...}, "not-an-envelope"),
    "an empty type": ({"type": ""}, "bad-attribute"),
    "a list as the type": ({"type": ["order.placed"]}, "bad-attribute"),
    "no version": ({"version": ...}, "not-an-envelope"),
    "a number as the version": ({"version": 1}, "bad-attribute"),
    "a time without a zone": ({"time": "2026-11-23T12:30:00"}, "bad-attribute"),
    "a day as the time": ({"time": "2026-11-23"}, "bad-attribute"),
    "a number as the time": ({"time": 1795436400}, "bad-attribute"),
    "no time of day": ({"time": "2026-11-23T25:00:00Z"}, "bad-attribute"),
    "an empty key": ({"subject": ""}, "bad-attribute"),
    "a long key": ({"subject": "x" * 257}, "bad-attribute"),
    "a key of two lines": ({"subject": "a\r\nb"}, "bad-attribute"),
    "a number as the key": ({"subject": 5}, "bad-attribute"),
    "a long correlation id": ({"correlationid": "x" * 257}, "bad-attribute"),
    "a long causation id": ({"causationid": "x" * 257}, "bad-attribute"),
    "an object as the trace": ({"traceparent": {}}, "bad-attribute"),
    "no data": ({"data": ...}, "bad-data"),
    "data that is no base64": ({"data": ..., "data_base64": "?"}, "bad-attribute"),
    "empty base64": ({"data": ..., "data_base64": ""}, "bad-data"),
    "U+0000 in the data": ({"data": {"order_id": "a\x00"}}, "bad-data"),
    "U+0000 in the id": ({"id": "a\x00"}, "bad-data"),
}


@pytest.mark.parametrize(("changes", "code"), BAD_ATTRIBUTES.values(), ids=BAD_ATTRIBUTES)
def test_a_bad_attribute_is_named_with_its_code(changes: dict[str, Any], code: str | None) -> None:
    if code is None:  # required of writers; a reader that insists would gain nothing
        assert read_envelope(body(**changes), {}).specversion == "1.0"
    else:
        assert refused(body(**changes)).code == code


@pytest.mark.parametrize("attribute", ["id", "subject"])
@pytest.mark.parametrize("control", [b"\n", b"\x1b", b"\\n", b"\\u001b", b"\x7f", "\x85".encode(), b"\\u0085"])
def test_a_control_is_refused_however_it_is_written(attribute: str, control: bytes) -> None:
    assert refused(body(**{attribute: "HERE"}).replace(b"HERE", control)).code in {"bad-attribute", "not-json"}
    assert read_envelope(body(**{attribute: "HERE"}), {}).specversion == "1.0"


def test_an_envelope_without_version_says_what_is_missing() -> None:
    assert "`version`" in str(refused(body(version=...)))


@pytest.mark.parametrize("attribute", ["time", "subject", "correlationid", "causationid", "traceparent", "tracestate"])
def test_null_is_the_same_as_nothing(attribute: str) -> None:
    assert read_envelope(body(**{attribute: None}), {}).id == "17"


def test_of_members_with_one_name_the_last_counts() -> None:
    twice = body()[:-1] + b',"id":"18"}'
    assert read_envelope(twice, {}).id == "18"


def test_escaped_backslashes_before_u0000_are_text() -> None:
    envelope = read_envelope(body(data={"order_id": "\\u0000"}), {})
    assert json.loads(bytes(envelope.data)) == {"order_id": "\\u0000"}


@pytest.mark.parametrize(
    ("given_", "read"),
    [
        ("plain", "plain"),
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("Euro%20%e2%82%ac", "Euro €"),
        ("%70lain", "plain"),
        ("100%", "100%"),
        ('"quoted \\"text\\" \\\\"', 'quoted "text" \\'),
        ('"%E2%82%AC"', "€"),
        ("a+b", "a+b"),
        ("%2520", "%20"),
    ],
)
def test_a_header_is_unquoted_and_percent_decoded_once(given_: str, read: str) -> None:
    assert read_envelope(DATA, {**HEADERS, "ce-id": given_}).id == read


@pytest.mark.parametrize("value", ["%C0%A0", "%FF", "a%0Ab", "%00", "%1B[2J", "%EF%BF%BE", "%ED%A0%80", "\udc80"])
def test_a_header_that_holds_no_text_is_a_bad_attribute(value: str) -> None:
    assert refused(DATA, {**HEADERS, "ce-id": value}).code == "bad-attribute"


def test_our_own_headers_follow_the_rules_of_the_binding() -> None:
    envelope = msgspec.structs.replace(examples()["placed-v1"][1], key="Euro € 😀", source='a"b%c')
    headers, _ = to_binary(envelope)
    assert headers["ce-subject"] == "Euro%20%E2%82%AC%20%F0%9F%98%80"
    assert headers["ce-source"] == "a%22b%25c"
    assert all(name == name.lower() and name.isascii() for name in headers)
    assert all(0x21 <= ord(one) <= 0x7E for value in headers.values() for one in value if one != " ")


def test_names_of_attributes_are_lower_case_letters_as_the_specification_wants() -> None:
    for name in Envelope.__struct_encode_fields__:
        assert name.isascii()
        assert name.isalpha()
        assert name.islower()
        assert len(name) <= 20


def test_binary_headers_without_their_attributes_are_no_envelope() -> None:
    assert refused(DATA, {"ce-specversion": "1.0", "ce-id": "1"}).code == "not-an-envelope"
    assert refused(DATA, {**HEADERS, "ce-time": "yesterday"}).code == "bad-attribute"


def test_data_as_a_header_is_not_the_data() -> None:
    assert bytes(read_envelope(DATA, {**HEADERS, "ce-data": "{}"}).data) == DATA


def test_a_batch_of_cloudevents_is_no_envelope() -> None:
    batch = {"content-type": "application/cloudevents-batch+json"}
    assert refused(b"[" + body() + b"]", batch).code == "not-an-envelope"


# ── limits ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Blob(Event, type="blob.kept", version=1):
    text: str


def sized(size: int) -> Envelope:
    rest = len(to_structured(envelope_of(Blob(text=""), "shop")))
    return envelope_of(Blob(text="x" * (size - rest)), "shop")


def test_an_event_of_exactly_the_limit_travels_and_one_byte_more_does_not() -> None:
    assert len(to_structured(sized(MAX_EVENT_BYTES))) == MAX_EVENT_BYTES
    assert read_envelope(to_structured(sized(MAX_EVENT_BYTES)), {}).type == "blob.kept"
    with pytest.raises(EventTooLarge, match=r"blob\.kept .* has 1048577 bytes .* at most 1048576"):
        to_structured(sized(MAX_EVENT_BYTES + 1))
    assert refused(b" " * (MAX_EVENT_BYTES + 1)).code == "too-large"


def test_headers_count_in_binary_mode() -> None:
    with pytest.raises(EventTooLarge):
        to_binary(sized(MAX_EVENT_BYTES + 100))


def test_nothing_is_decoded_that_nests_too_deep() -> None:
    def nested(depth: int) -> bytes:
        return body(data=...)[:-1] + b',"data":' + b"[" * depth + b"]" * depth + b"}"

    assert read_envelope(nested(63), {}).id == "17"
    assert refused(nested(64)).code == "too-deep"
    assert refused(nested(100_000)).code == "too-deep"
    assert refused(b"[" * 100_000).code == "not-an-envelope"
    assert refused(b'{"a":' * 100_000).code in ("not-json", "too-deep")


def test_objects_of_the_fewest_bytes_nest_no_deeper_than_others() -> None:
    def nested(depth: int) -> bytes:
        data = b'{"":' * (depth - 1) + b"{}" + b"}" * (depth - 1)
        return body(data=...)[:-1] + b',"data":' + data + b"}"

    assert read_envelope(nested(63), {}).id == "17"
    assert refused(nested(64)).code == "too-deep"


def test_base64_hides_nothing_from_the_limits() -> None:
    deep = base64.b64encode(b"[" * 100 + b"]" * 100).decode()
    assert refused(body(data=..., data_base64=deep)).code == "too-deep"
    nul = base64.b64encode(b'{"order_id":"\\u0000"}').decode()
    assert refused(body(data=..., data_base64=nul)).code == "bad-data"


# ── whatever the bytes are (traps 166 to 170) ───────────────────────────────────────────────────────────────────────


class Anything(Event, type="any.thing", version=1, key="key"):
    key: str
    number: int
    rate: float
    money: Decimal
    id: UUID
    at: datetime
    lasts: timedelta
    raw: bytes
    texts: list[str]
    table: dict[str, int | None]
    maybe: str | None = None


READER = Reader([Anything, OrderPlaced, StockReserved])
TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
KEYS = TEXT.filter(lambda text: text.isprintable() and 0 < len(text) <= 256)
ANYTHING = st.builds(
    Anything,
    key=KEYS,
    number=st.integers(-(10**40), 10**40),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    money=st.decimals(allow_nan=False, allow_infinity=False, places=4),
    id=st.uuids(),
    at=st.datetimes(timezones=st.just(UTC), min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)),
    lasts=st.timedeltas(),
    raw=st.binary(),
    texts=st.lists(TEXT),
    table=st.dictionaries(TEXT, st.none() | st.integers()),
    maybe=st.none() | TEXT,
)


@given(event=ANYTHING, source=KEYS, correlation_id=st.none() | KEYS)
def test_any_event_comes_back_from_both_modes_as_it_was(
    event: Anything, source: str, correlation_id: str | None
) -> None:
    envelope = envelope_of(event, source, correlation_id=correlation_id)
    structured = read_envelope(to_structured(envelope), STRUCTURED_HEADERS)
    headers, data = to_binary(envelope)
    binary = read_envelope(data, headers)
    for read in (structured, binary):
        assert READER.read(read) == event
        assert msgspec.structs.replace(read, data=envelope.data) == envelope
    assert to_structured(structured) == to_structured(envelope)
    assert to_binary(binary) == (headers, data)


def reads_or_refuses(data: bytes, headers: Mapping[str, str]) -> None:
    refusal = None
    try:
        READER.read(read_envelope(data, headers))
    except UndecodableEvent as error:
        refusal = error.code
    assert refusal is None or refusal in CODES


GOLDEN = [to_structured(envelope) for _, envelope in examples().values()]
SPLICED = st.builds(
    lambda base, at, cut, new: base[: at % len(base)] + new + base[at % len(base) + cut :],
    st.sampled_from(GOLDEN),
    st.integers(0, 2000),
    st.integers(0, 20),
    st.binary(max_size=12)
    | st.sampled_from([b"null", b"{}", b"[]", b'"', b"\\", b"1e400", b"-0", b'"\\ud800"', b"NaN"]),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from([*Anything.__struct_fields__, "order_id", "lines"])
NAMES = st.sampled_from([*Envelope.__struct_encode_fields__, "data_base64", "extra"])


@given(data=st.binary() | SPLICED)
@example(data=b"\xef\xbb\xbf{}")
@example(data=b"\x00")
def test_P13_whatever_the_bytes_are_nothing_but_undecodable_event_is_raised(data: bytes) -> None:
    reads_or_refuses(data, {})
    reads_or_refuses(data, {f"ce-{name}": value for name, value in MINIMAL.items()})


@given(
    attributes=st.dictionaries(NAMES, JSON, max_size=5),
    fields=st.dictionaries(FIELDS, JSON, max_size=5),
    type=st.sampled_from(["any.thing", "order.placed", "stock.reserved"]),
    version=st.sampled_from(["v1", "v2"]),
)
def test_P13_whatever_an_envelope_holds_nothing_but_undecodable_event_is_raised(
    attributes: dict[str, Any], fields: dict[str, Any], type: str, version: str
) -> None:
    envelope = {**MINIMAL, "type": type, "version": version, "data": fields, **attributes}
    reads_or_refuses(json.dumps(envelope).encode(), {})


@given(headers=st.dictionaries(NAMES.map(lambda name: f"ce-{name}") | st.text(), st.text()))
def test_P13_whatever_the_headers_are_nothing_but_undecodable_event_is_raised(headers: dict[str, str]) -> None:
    reads_or_refuses(DATA, {**HEADERS, **headers})


BOMBS = {
    "100,000 levels": b"[" * 100_000 + b"]" * 100_000,
    "100,000 levels that never close": b'{"a":' * 100_000,
    "a number of 31 digits": b"1" + b"0" * 30,
    "a number of 5,000 digits": b"1" * 5000,
    "a negative number of 5,000 digits": b"-" + b"1" * 5000,
    "1e400": b"1e400",
    "1e-400": b"1e-400",
    "a million zeros behind the point": b"0." + b"0" * 1_000_000 + b"1",
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "half a surrogate pair": b'"\\ud800"',
    "U+0000": b'"a\\u0000b"',
    "no UTF-8": b'"\xff\xfe"',
    "UTF-8 of a surrogate": b'"\xed\xa0\x80"',
    "an overlong slash": b'"\xc0\xaf"',
    "2**63": b"9223372036854775808",
    "2**64": b"18446744073709551616",
    "a name twice": b'{"number":1,"number":"2"}',
    "a megabyte of quotes": b'"' + b'\\"' * 500_000,
}


@pytest.mark.parametrize("field", [*Anything.__struct_fields__, "unknown"])
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_P13_decode_bombs_are_read_or_refused_wherever_they_stand(bomb: bytes, field: str) -> None:
    good = to_structured(envelope_of(SAMPLE, "shop"))
    for data in (
        good.replace(b'"data":{', b'"data":{"%b":%b,' % (field.encode(), bomb)),
        good[:-2] + b',"%b":%b}}' % (field.encode(), bomb),
        b'{"%b":%b,' % (field.encode(), bomb) + good[1:],
        bomb,
    ):
        reads_or_refuses(data, {})


SAMPLE = Anything(
    key="k",
    number=1,
    rate=1.5,
    money=Decimal("1.50"),
    id=UUID(int=7),
    at=datetime(2026, 11, 23, tzinfo=UTC),
    lasts=timedelta(1),
    raw=b"raw",
    texts=["a"],
    table={"a": None},
)


def test_whole_numbers_are_never_turned_into_floats() -> None:
    good = to_structured(envelope_of(SAMPLE, "shop"))
    event = READER.read(read_envelope(good.replace(b'"number":1', b'"number":1' + b"0" * 30), {}))
    assert isinstance(event, Anything)
    assert event.number == 10**30


# ── the trace context comes from anybody (trap 170) ─────────────────────────────────────────────────────────────────

GOOD_TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("traceparent", "tracestate", "passed"),
    [
        (GOOD_TRACE, None, (GOOD_TRACE, None)),
        (GOOD_TRACE, "congo=t61rcWkgMzE", (GOOD_TRACE, "congo=t61rcWkgMzE")),
        (GOOD_TRACE, "x" * 513, (GOOD_TRACE, None)),
        (GOOD_TRACE, "a=ü", (GOOD_TRACE, None)),
        (GOOD_TRACE, "a=1\nb=2", (GOOD_TRACE, None)),
        (None, "congo=t61rcWkgMzE", (None, None)),
        (GOOD_TRACE.upper(), "a=1", (None, None)),
        (GOOD_TRACE.replace("00-", "ff-", 1), None, (None, None)),
        ("00-" + "0" * 32 + "-00f067aa0ba902b7-01", None, (None, None)),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01", None, (None, None)),
        (GOOD_TRACE + "\r\nX: 1", None, (None, None)),
        ("x" * 100_000, None, (None, None)),
    ],
)
def test_only_a_trace_context_that_is_one_is_passed_on(
    traceparent: str | None, tracestate: str | None, passed: tuple[str | None, str | None]
) -> None:
    envelope = envelope_of(SAMPLE, "shop", traceparent=traceparent, tracestate=tracestate)
    assert (envelope.traceparent, envelope.tracestate) == passed
