"""What passes over the wire for each message, written out: messages on their way out, deliveries on their way in.

The rest of AMQP 0-9-1, which is rare, is left to pamqp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

import msgspec
from pamqp import decode

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
DELIVER, RETURN, ACK, NACK = 0x003C003C, 0x003C0032, 0x003C0050, 0x003C0078
"""Class and method of what comes often, as one number."""
CLOSE, CLOSE_OK = 0x00140028, 0x00140029
"""The same of the end of a channel."""
HEARTBEAT_FRAME: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"
END: Final = b"\xce"

_frame = struct.Struct(">BHI")
_deliver = struct.Struct(">QB")
_header = struct.Struct(">HHQH")
_long = struct.Struct(">I")
_confirm = struct.Struct(">QB")

MOST_FRAME: Final = 128 * 1024
_CONTENT_TYPE, _HEADERS, _MODE, _ID = 0x8000, 0x2000, 0x1000, 0x0080
PERSISTENT: Final = 2
MOST_SHORT: Final = 255


class Content(msgspec.Struct, gc=False):
    """A message as it came: where from, what is said about it, and its bytes."""

    consumer: str = ""
    tag: int = 0
    exchange: str = ""
    routing_key: str = ""
    headers: dict[str, str] = {}
    marks: dict[str, Any] = {}
    """What the server wrote among the headers: counts and offsets."""
    id: str = ""
    body: bytes = b""


def short(text: str) -> bytes:
    """A short string; the caller knows that it is short."""
    data = text.encode()
    return bytes((len(data),)) + data


def fit_id(id: str) -> str:
    """An id as a property can hold it."""
    return id if len(id.encode()) <= MOST_SHORT else blake2b(id.encode(), digest_size=24).hexdigest()


@lru_cache(maxsize=4096)
def _name(text: str) -> bytes:
    data = text.encode()
    if len(data) > MOST_SHORT:
        raise ValueError(f"the name of a header has {len(data)} bytes; {MOST_SHORT} are the most")
    return bytes((len(data),)) + data + b"S"


def table(headers: Mapping[str, str]) -> bytes:
    """A table of texts. Raises ValueError for a name that is too long."""
    parts: list[bytes] = []
    for name, value in headers.items():
        data = value.encode(errors="surrogateescape")
        parts += (_name(name), _long.pack(len(data)), data)
    found = b"".join(parts)
    return _long.pack(len(found)) + found


def properties(headers: Mapping[str, str], id: str, size: int) -> bytes:
    """The header frame's payload of a message that is to outlive a restart."""
    known = table(headers)
    return b"".join((_header.pack(60, 0, size, _HEADERS | _MODE | _ID), known, bytes((PERSISTENT,)), short(fit_id(id))))


def message(
    channel: int, exchange: str, routing_key: str, header: bytes, body: bytes, most: int, *, mandatory: bool = True
) -> bytes:
    """All frames of one message; `most` is the largest that a frame may be."""
    method = b"\x00\x3c\x00\x28\x00\x00" + short(exchange) + short(routing_key) + (b"\x01" if mandatory else b"\x00")
    parts = [_frame.pack(METHOD, channel, len(method)), method, END, _frame.pack(HEADER, channel, len(header)), header]
    room = most - 8
    if len(body) <= room:
        if body:
            parts += (END, _frame.pack(BODY, channel, len(body)), body)
    else:
        for at in range(0, len(body), room):
            piece = body[at : at + room]
            parts += (END, _frame.pack(BODY, channel, len(piece)), piece)
    parts.append(END)
    return b"".join(parts)


def acknowledge(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    return b"\x01%b\x00\x00\x00\x0d\x00\x3c\x00\x50%b\xce" % (channel.to_bytes(2, "big"), _confirm.pack(tag, multiple))


def give_back(channel: int, tag: int) -> bytes:
    """Back to its queue, alone."""
    return b"\x01%b\x00\x00\x00\x0d\x00\x3c\x00\x78%b\xce" % (channel.to_bytes(2, "big"), _confirm.pack(tag, 2))


def confirmed(payload: bytes) -> tuple[int, bool]:
    """Of a confirmation: up to which number, or that number alone."""
    tag, bits = _confirm.unpack_from(payload, 4)
    return tag, bool(bits & 1)


def delivered(payload: bytes) -> Content:
    """The method that begins a delivery."""
    at = 5 + payload[4]
    consumer = payload[5:at].decode()
    tag, _ = _deliver.unpack_from(payload, at)
    at += 9
    end = at + 1 + payload[at]
    exchange = payload[at + 1 : end].decode()
    return Content(consumer, tag, exchange, payload[end + 1 : end + 1 + payload[end]].decode(errors="replace"))


def returned(payload: bytes) -> Content:
    """The method that begins a message which no queue took; why stands in `marks`."""
    (code,) = struct.unpack_from(">H", payload, 4)
    texts = []
    at = 6
    for _ in range(3):
        end = at + 1 + payload[at]
        texts.append(payload[at + 1 : end].decode(errors="replace"))
        at = end
    return Content(exchange=texts[1], routing_key=texts[2], marks={"code": code, "text": texts[0]})


def read_header(payload: bytes, content: Content) -> int:
    """Enter the properties of a message, and say how long its body is."""
    _, _, size, flags = _header.unpack_from(payload)
    at = 14
    if flags & 1:
        raise ValueError("a message with more properties than there are")
    texts: dict[str, str] = {}
    if flags & _CONTENT_TYPE:
        texts["content-type"], at = _short(payload, at)
    if flags & 0x4000:
        _, at = _short(payload, at)
    headers: dict[str, str] = {}
    marks: dict[str, Any] = {}
    if flags & _HEADERS:
        at = _read_table(payload, at, headers, marks)
    at += bool(flags & _MODE) + bool(flags & 0x0800)
    for flag in (0x0400, 0x0200, 0x0100):
        if flags & flag:
            _, at = _short(payload, at)
    if flags & _ID:
        content.id, at = _short(payload, at)
    for name, value in texts.items():
        headers.setdefault(name, value)
    content.headers, content.marks = headers, content.marks or marks
    return int(size)


def _short(payload: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + payload[at]
    return payload[at + 1 : end].decode(errors="replace"), end


_OWN: Final = frozenset({"x-delivery-count", "x-acquired-count", "x-stream-offset", "x-death", "x-cc-delivery-count"})
_BINDING: Final = "cloudEvents"
"""What stands before an attribute in the CloudEvents binding for AMQP, with a colon or an underscore behind."""
_OWN_DEATHS: Final = ("x-first-death-", "x-last-death-")


def _read_table(payload: bytes, at: int, headers: dict[str, str], marks: dict[str, Any]) -> int:
    end = at + 4 + int(_long.unpack_from(payload, at)[0])
    at += 4
    while at < end:
        after = at + 1 + payload[at]
        name = payload[at + 1 : after].decode(errors="replace")
        if payload[after] == 0x53:  # a text, as nearly all are
            begin = after + 5
            at = begin + int(_long.unpack_from(payload, after + 1)[0])
            if not name.startswith(_OWN_DEATHS):
                headers[_attribute(name)] = payload[begin:at].decode(errors="surrogateescape")
            continue
        consumed, value = decode.embedded_value(payload[after:end])
        at = after + consumed
        if name in _OWN:
            marks[name] = value
        else:
            headers[_attribute(name)] = _text(value)
    return end


def _attribute(name: str) -> str:
    """An attribute of an event by the name that it has here, as others write it over AMQP."""
    return (
        "ce-" + name[len(_BINDING) + 1 :] if name.startswith(_BINDING) and name[len(_BINDING) :][:1] in "_:" else name
    )


def _text(value: object) -> str:
    """What a foreign publisher wrote that is no text, as one."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode(errors="replace")
    return "" if value is None else str(value)
