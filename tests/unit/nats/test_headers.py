"""Headers between text and bytes."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.brokers.nats.headers import RawHeaders, own, parse, plain, render, status_of
from tidings.errors import InvalidEvent

TOKEN = "!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters
names = st.text(TOKEN, min_size=1, max_size=20).filter(lambda name: not name.lower().startswith("nats-"))
values = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=40).map(lambda text: text.strip(" "))


@given(st.dictionaries(names, values, max_size=6))
def test_trap_63_what_is_written_is_what_is_read(headers: dict[str, str]) -> None:
    raw = b"NATS/1.0\r\nNats-Msg-Id: x\r\n" + render(headers) + b"\r\n"
    assert parse(raw) == headers
    lazy = RawHeaders(raw)
    assert {name: lazy.get(name) for name in headers} == headers
    assert dict(lazy) == headers
    assert len(lazy) == len(headers)


@given(st.text(min_size=1, max_size=30))
def test_trap_64_no_name_and_no_value_can_break_out_of_its_line(text: str) -> None:
    for headers in ({text: "v"}, {"x": text}):
        try:
            block = render(headers)
        except InvalidEvent:
            continue
        assert block.count(b"\r\n") == 1


@pytest.mark.parametrize(
    "name", ["Nats-Rollup", "nats-trace-only", "NATS-TTL", "Nats-Schedule", "nats-batch-id", "nats-"]
)
def test_trap_37_an_order_to_the_server_is_refused(name: str) -> None:
    with pytest.raises(InvalidEvent, match="order to the server"):
        render({name: "all"})


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"": "x"}, "no name for a header"),
        ({"a b": "x"}, "no name for a header"),
        ({"a": "\x7f"}, "percent-encode"),
        ({"a": "\ud800"}, "percent-encode"),
        ({"a": " x"}, "percent-encode"),
        ({"a": "x\r\ny: z"}, "percent-encode"),
        ({"a": 1}, "are str"),
        ({1: "a"}, "are str"),
    ],
)
def test_what_cannot_travel_is_refused_and_not_changed(headers: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidEvent, match=said):
        render(headers)


def test_the_servers_own_headers_are_not_shown_to_anybody() -> None:
    raw = b"NATS/1.0\r\nNats-Msg-Id: 1\r\na: b\r\nNats-Pin-Id: pin\r\n\r\n"
    headers = RawHeaders(raw)
    assert "Nats-Msg-Id" not in headers
    assert headers.get("Nats-Msg-Id", "none") == "none"
    assert list(headers) == ["a"]
    assert own(raw, b"Nats-Pin-Id") == "pin"
    assert own(raw, b"Nats-Pin") is None
    assert own(None, b"Nats-Pin-Id") is None


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 1\r\n\r\n", (408, "Request Timeout")),
        (b"NATS/1.0 503\r\n\r\n", (503, "")),
        (b"NATS/1.0 100 Idle Heartbeat\r\n\r\n", (100, "Idle Heartbeat")),
        (b"NATS/1.0\r\na: b\r\n\r\n", (0, "")),
    ],
)
def test_a_status_is_read(raw: bytes, status: tuple[int, str]) -> None:
    assert status_of(raw) == status


@given(st.text(min_size=1, max_size=40))
def test_an_id_fits_into_a_header_and_two_ids_never_become_one(id: str) -> None:
    text = plain(id)
    assert text.isascii()
    assert not set(text) & set(" \r\n")
    assert plain(id + "%") != text


def test_broken_headers_of_others_are_read_as_far_as_possible() -> None:
    assert parse(b"NATS/1.0\r\nno colon\r\na:b\r\nc: \xff\r\n: d\r\n\r\n") == {"a": "b", "c": "�", "": "d"}
