"""Between envelope and bytes: CloudEvents 1.0, structured (one JSON object) or binary (attributes as headers).

Sources: the CloudEvents 1.0.2 core specification, its JSON format, and its NATS binding for the names of the headers.
``docs/reference/wire.md`` shows what stands where, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from tidings.delivery import MAX_EVENT_BYTES, Envelope
from tidings.errors import EventTooLarge, UndecodableEvent
from tidings.event import Event, encode_data, key_of, spec_of, stamp_of

MAX_DEPTH = 64
"""How deep arrays and objects may nest in an event."""

CONTENT_TYPE = "content-type"
STRUCTURED = "application/cloudevents+json"
_PREFIX = "ce-"

_ATTRIBUTES = {
    field: _PREFIX + name
    for field, name in zip(Envelope.__struct_fields__, Envelope.__struct_encode_fields__, strict=True)
}
_SAFE_IN_HEADERS = "".join(map(chr, range(0x21, 0x7F))).replace("%", "").replace('"', "")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Envelope).decode


def envelope_of(
    event: Event,
    source: str,
    *,
    id: str | None = None,
    correlation_id: str | None = None,
    causation_id: str | None = None,
    traceparent: str | None = None,
) -> Envelope:
    """Wrap an event: `source` is the service that says it, `id` only differs from its own for caused events."""
    spec, stamp = spec_of(event), stamp_of(event)
    return Envelope(
        id=id or stamp.id,
        source=source,
        type=spec.type,
        version=spec.wire_version,
        time=stamp.time,
        key=key_of(event),
        correlation_id=correlation_id or id or stamp.id,
        causation_id=causation_id,
        traceparent=traceparent,
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
    headers = {CONTENT_TYPE: "application/json"}
    for field, header in _ATTRIBUTES.items():
        value = getattr(envelope, field)
        if value is None or field in ("data", "content_type"):
            continue
        text = value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
        headers[header] = quote(text, safe=_SAFE_IN_HEADERS)
    body = bytes(envelope.data)
    _check_size(len(body) + sum(len(name) + len(value) for name, value in headers.items()), envelope)
    return headers, body


def read_envelope(body: bytes, headers: Mapping[str, str]) -> Envelope:
    """Read either mode. Size and depth are checked before anything is decoded.

    Raises:
        UndecodableEvent: with the code that says why.
    """
    if not body:
        raise UndecodableEvent("empty", "the message has no bytes")
    if len(body) > MAX_EVENT_BYTES:
        raise UndecodableEvent("too-large", f"{len(body)} bytes; an event has at most {MAX_EVENT_BYTES}")
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _too_deep(body):
        raise UndecodableEvent("too-deep", f"arrays and objects nest deeper than {MAX_DEPTH}")
    if _PREFIX + "specversion" in headers:
        return _from_headers(body, headers)
    try:
        envelope = _decode(body)
    except msgspec.ValidationError as error:
        raise _not_an_envelope(str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise UndecodableEvent("not-json", f"the bytes are no JSON: {error}") from None
    if not bytes(envelope.data):
        raise UndecodableEvent("bad-data", "the envelope has no data (data_base64 is not read)")
    return envelope


def _from_headers(body: bytes, headers: Mapping[str, str]) -> Envelope:
    found: dict[str, Any] = {}
    for name in Envelope.__struct_encode_fields__:
        value = headers.get(_PREFIX + name)
        if value is not None:
            found[name] = unquote(value)
    if content_type := headers.get(CONTENT_TYPE):
        found["datacontenttype"] = content_type
    found.pop("data", None)
    try:
        envelope = msgspec.convert(found, Envelope, strict=True)
    except msgspec.ValidationError as error:
        raise _not_an_envelope(str(error)) from None
    return msgspec.structs.replace(envelope, data=msgspec.Raw(body))


def _not_an_envelope(why: str) -> UndecodableEvent:
    code = (
        "not-an-envelope" if "missing required field" in why or why.startswith("Expected `object`") else "bad-attribute"
    )
    return UndecodableEvent(code, f"the message is no CloudEvents 1.0 envelope with a version: {why}")


def _too_deep(body: bytes) -> bool:
    """Count the nesting outside strings; only called for what has many brackets."""
    depth = 0
    inside = escaped = False
    for byte in body:
        if inside:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                inside = False
        elif byte == 0x22:
            inside = True
        elif byte in b"{[":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif byte in b"}]":
            depth -= 1
    return False


def _check_size(size: int, envelope: Envelope) -> None:
    if size > MAX_EVENT_BYTES:
        raise EventTooLarge(
            f"{envelope.type} {envelope.id} has {size} bytes with its envelope; at most {MAX_EVENT_BYTES} may travel."
            " Put the large part where both sides can reach it, and send its address"
        )
