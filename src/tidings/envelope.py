"""Between envelope and bytes: CloudEvents 1.0, structured (one JSON object) or binary (attributes as headers).

Sources: the CloudEvents 1.0.2 core specification and JSON format; for attributes as headers the rules that its HTTP
binding and the 1.0.3 drafts share. ``docs/reference/wire.md`` shows what stands where, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec

from tidings.delivery import MAX_EVENT_BYTES, NO_HEADERS, Envelope
from tidings.errors import EventTooLarge, UndecodableEvent
from tidings.event import Event, encode_data, key_of, spec_of, stamp_of
from tidings.values import MAX_DEPTH, UNFIT, holds_nul, nests_deeper

CONTENT_TYPE: Final = "content-type"
STRUCTURED: Final = "application/cloudevents+json"
STRUCTURED_HEADERS: Final[Mapping[str, str]] = {CONTENT_TYPE: STRUCTURED}
"""What stands beside the body in structured mode, by which other readers tell the modes apart."""

_ANY_FORMAT = "application/cloudevents"
_PREFIX = "ce-"
_MARK = _PREFIX + "specversion"

_ATTRIBUTES = {
    field: _PREFIX + name
    for field, name in zip(Envelope.__struct_fields__, Envelope.__struct_encode_fields__, strict=True)
}
_SAFE_IN_HEADERS = "".join(map(chr, range(0x21, 0x7F))).replace("%", "").replace('"', "")

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")
_QUOTED_PAIR = re.compile(r"\\(.)")


class _Base64(msgspec.Struct):
    data_base64: bytes = b""


_BACKSLASH: Final = ord("\\")
_DELETE: Final = 0x7F
_BRACKET: Final = ord("[")
_TOO_DEEP_FROM: Final = MAX_DEPTH * len(b'{"":}')
"""Objects that nest deeper than may be have so many bytes at least; to count what opens them takes long."""
_SHORT: Final = 4096
"""Bodies of so many bytes are put together to be looked through: of longer ones to copy them costs too much."""
_encode = msgspec.json.Encoder().encode
decode_plain: Final = msgspec.json.Decoder(Envelope).decode
"""For bodies that `are_plain`; whose data is empty has none."""
_decode_base64 = msgspec.json.Decoder(_Base64).decode


def envelope_of(
    event: Event,
    source: str,
    *,
    id: str | None = None,
    correlation_id: str | None = None,
    causation_id: str | None = None,
    traceparent: str | None = None,
    tracestate: str | None = None,
) -> Envelope:
    """Wrap an event: `source` is the service that says it, `id` only differs from its own for caused events.

    A trace context that is none (W3C Trace Context) is left out: it may come from anybody (trap 170).
    """
    spec, stamp = spec_of(event), stamp_of(event)
    traced = traceparent is not None and _TRACEPARENT.fullmatch(traceparent) is not None
    return Envelope(
        id=id or stamp.id,
        source=source,
        type=spec.type,
        version=spec.wire_version,
        time=stamp.time,
        key=key_of(event),
        correlation_id=correlation_id or id or stamp.id,
        causation_id=causation_id,
        traceparent=traceparent if traced else None,
        tracestate=tracestate if traced and tracestate and _TRACESTATE.fullmatch(tracestate) else None,
        content_type="application/json",
        data=msgspec.Raw(encode_data(event)),
    )


def to_structured(envelope: Envelope) -> bytes:
    """One JSON object with the attributes at its top level and the event under ``data``.

    Raises:
        EventTooLarge: more than 1 MiB.
    """
    wire = {
        name: value
        for field, name in zip(Envelope.__struct_fields__, Envelope.__struct_encode_fields__, strict=True)
        if (value := getattr(envelope, field)) is not None
    }
    body = _encode(wire)
    _check_size(len(body), envelope)
    return body


def to_binary(envelope: Envelope) -> tuple[dict[str, str], bytes]:
    """The attributes as ``ce-`` headers, percent-encoded outside printable ASCII, and the event's JSON as the body.

    Raises:
        EventTooLarge: more than 1 MiB.
    """
    headers = {CONTENT_TYPE: envelope.content_type or "application/json"}
    for field, header in _ATTRIBUTES.items():
        value = getattr(envelope, field)
        if value is not None and field != "data":
            text: str = value if isinstance(value, str) else msgspec.to_builtins(value)
            headers[header] = quote(text, safe=_SAFE_IN_HEADERS)
    body = bytes(envelope.data)
    _check_size(len(body) + sum(len(name) + len(value) for name, value in headers.items()), envelope)
    return headers, body


def read_envelope(body: bytes, headers: Mapping[str, str]) -> Envelope:
    """Read either mode. Size and depth are checked before anything is decoded.

    Raises:
        UndecodableEvent: with the code that says why; nothing else, whatever the bytes and headers are.
    """
    may_hold_controls = _look_at(body)
    if _MARK in headers and not _says_structured(headers):
        return _from_headers(body, headers)
    try:
        envelope = decode_plain(body)
        if not envelope.data:
            envelope = msgspec.structs.replace(envelope, data=msgspec.Raw(_data_in_base64(body)))
        if may_hold_controls:
            _check_texts(envelope)
    except (ValueError, RecursionError, UndecodableEvent) as error:
        # Names of headers know no case, but to look for other spellings first would cost every message.
        if _MARK not in headers and any(name.lower() == _MARK for name in headers) and not _says_structured(headers):
            return _from_headers(body, headers)
        raise _undecodable(error) from None
    return envelope


def are_plain(bodies: Sequence[bytes], headers: Sequence[Mapping[str, str]]) -> bool:
    """Whether `decode_plain` does for each what `read_envelope` does, unless it raises, or there is no data.

    There is nothing in them that has to be looked at closer, which is found out for all together.
    """
    known: Mapping[str, str] = NO_HEADERS
    for some in headers:  # neighbours mostly share theirs
        if some is not known and _MARK in some:
            return False
        known = some
    if not bodies or not _is_plain(bodies[0]):  # neighbours mostly are alike
        return False
    for body in bodies:
        size = len(body)
        if size > _TOO_DEEP_FROM and (size > _SHORT or body.count(b"{") > MAX_DEPTH):
            return False
    return _is_plain(b"".join(bodies))


def _is_plain(text: bytes) -> bool:
    return _BACKSLASH not in text and _BRACKET not in text and _DELETE not in text and text.isascii()


def _look_at(body: bytes) -> bool:
    """Check what is to be decoded; return whether its texts may hold controls.

    Most bodies need no more than these looks, and a byte is looked for fastest as a number.
    """
    escaped = _BACKSLASH in body
    if (
        escaped
        or not body
        or _BRACKET in body
        or (len(body) > _TOO_DEEP_FROM and (len(body) > MAX_EVENT_BYTES or body.count(b"{") > MAX_DEPTH))
    ):
        _check_bytes(body)
    return escaped or _DELETE in body or not body.isascii()


def _data_in_base64(body: bytes) -> bytes:
    data = _decode_base64(body).data_base64
    if not data:
        raise UndecodableEvent("bad-data", "the envelope has neither data nor data_base64")
    _check_bytes(data)
    return data


def _undecodable(error: Exception) -> UndecodableEvent:
    if isinstance(error, UndecodableEvent):
        return error
    if isinstance(error, msgspec.ValidationError):
        return _not_an_envelope(str(error))
    if isinstance(error, RecursionError):
        return UndecodableEvent("too-deep", f"arrays and objects nest deeper than {MAX_DEPTH}")
    return UndecodableEvent("not-json", f"the bytes are no JSON: {error}")  # msgspec.DecodeError, UnicodeDecodeError


def _from_headers(body: bytes, headers: Mapping[str, str]) -> Envelope:
    given = {name.lower(): value for name, value in headers.items()}
    found: dict[str, Any] = {}
    for name in Envelope.__struct_encode_fields__:
        value = given.get(_PREFIX + name)
        if value is not None and name != "data":
            found[name] = _plain(name, value)
    if content_type := given.get(CONTENT_TYPE):
        found["datacontenttype"] = content_type
    try:
        envelope = msgspec.convert(found, Envelope, strict=True)
    except msgspec.ValidationError as error:
        raise _not_an_envelope(str(error)) from None
    return msgspec.structs.replace(envelope, data=msgspec.Raw(body))


def _plain(name: str, value: str) -> str:
    """The text of an attribute: first without quotes, which old writers set, then percent-decoded, once."""
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = _QUOTED_PAIR.sub(r"\1", value[1:-1])
    if "%" in value:
        try:
            value = unquote(value, errors="strict")
        except UnicodeDecodeError:
            problem = f"the header {_PREFIX}{name} is percent-encoded, but no UTF-8"
            raise UndecodableEvent("bad-attribute", problem) from None
    _check_text(name, value)
    return value


def _says_structured(headers: Mapping[str, str]) -> bool:
    """Attributes may be copied into headers in structured mode too; the content type decides."""
    return any(
        name.lower() == CONTENT_TYPE and value.strip().lower().startswith(_ANY_FORMAT)
        for name, value in headers.items()
    )


def _check_bytes(body: bytes) -> None:
    if not body:
        raise UndecodableEvent("empty", "the message has no bytes")
    if len(body) > MAX_EVENT_BYTES:
        raise UndecodableEvent("too-large", f"{len(body)} bytes; an event has at most {MAX_EVENT_BYTES}")
    if nests_deeper(body):
        raise UndecodableEvent("too-deep", f"arrays and objects nest deeper than {MAX_DEPTH}")
    if holds_nul(body):
        raise UndecodableEvent("bad-data", "a text holds the character U+0000, which PostgreSQL cannot store")


def _check_texts(envelope: Envelope) -> None:
    _check_text("id", envelope.id)
    _check_text("subject", envelope.key or "")


def _check_text(name: str, value: str) -> None:
    if not value.isprintable() and (found := UNFIT.search(value)):
        raise UndecodableEvent("bad-attribute", f"{name} holds the character U+{ord(found[0]):04X}, which no text may")


def _not_an_envelope(why: str) -> UndecodableEvent:
    code = (
        "not-an-envelope" if "missing required field" in why or why.startswith("Expected `object`") else "bad-attribute"
    )
    return UndecodableEvent(code, f"the message is no CloudEvents 1.0 envelope with a version: {why}")


def _check_size(size: int, envelope: Envelope) -> None:
    if size > MAX_EVENT_BYTES:
        raise EventTooLarge(
            f"{envelope.type} {envelope.id} has {size} bytes with its envelope; at most {MAX_EVENT_BYTES} may travel."
            " Put the large part where both sides can reach it, and send its address"
        )
