"""The copies that belong to the core: on the retry route, and in the dead letters.

A copy is stored, and seen to be stored, before the delivery it was made of is acknowledged. It carries the original
bytes and headers, and what Tidings has to say in headers of its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from urllib.parse import quote, unquote

from tidings.delivery import NO_HEADERS, DeadLettered, Delivery, Header, Message, Retried, Route
from tidings.traces import trace_of

MAX_TRACEBACK = 6000
"""Bytes of a traceback that a dead letter keeps: its end, where the cause stands."""

MAX_REASON = 2000
"""Bytes of a reason that a copy keeps: its beginning."""

MAX_FOREIGN = 40 * 1024
"""Bytes of the publisher's headers that a copy keeps, so that ours stand beside them where 64 KiB is the most."""

_HANDLED = frozenset({"failed", "rejected", "copy-too-large"})
"""The codes of those that a handler has seen once more than their copy says."""

_UNSAFE = re.compile(rb"[^ -$&-~]")
_OUTER_SPACES = re.compile(r"\A +| +\Z")
_HALF = re.compile(r"%.?\Z")
_OURS = "tidings-"
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_IN_TOKENS = "!#$&'*+-.^_`|~"
_ATTRIBUTES = ("ce-", "content-type")


def header_text(value: str) -> str:
    """Text as a header can hold it: printable ASCII, the rest percent-encoded, and spaces where a transport trims."""
    if value.isascii() and value.isprintable() and "%" not in value and value[:1] != " " and value[-1:] != " ":
        return value
    text = _UNSAFE.sub(_percent, value.encode(errors="backslashreplace")).decode("ascii")
    return _OUTER_SPACES.sub(lambda found: "%20" * len(found[0]), text)


@lru_cache(64)
def _traceback_text(trace: str) -> str:
    """The end of a traceback, as a header holds it. Poison comes in masses, and mostly with the same one."""
    return _end(header_text(trace), MAX_TRACEBACK)


def _percent(found: re.Match[bytes]) -> bytes:
    return b"%%%02X" % ord(found[0])


def _beginning(text: str, most: int) -> str:
    """The first bytes of a header's text, without half of an encoded one, or spaces where it was cut."""
    return text if len(text) <= most else _HALF.sub("", text[:most]).rstrip(" ")


def _end(text: str, most: int) -> str:
    """The last bytes of a header's text, without half of an encoded one, or spaces where it was cut."""
    if len(text) <= most:
        return text
    start = len(text) - most
    half = text.find("%", start - 2, start)
    return text[start if half < 0 else half + 3 :].lstrip(" ")


def plain_text(value: str) -> str:
    """The other way round."""
    return unquote(value)


def restore(delivery: Delivery) -> None:
    """Read what Tidings wrote on a copy when it went onto the retry route."""
    count = delivery.headers.get(Header.FAILURES, "0")
    delivery.failures = int(count) if count.isascii() and count.isdigit() and len(count) < 10 else 0
    if delivery.failures:
        try:
            delivery.first_failed = datetime.fromisoformat(delivery.headers.get(Header.FIRST_FAILURE, "")).timestamp()
        except ValueError:
            delivery.first_failed = 0.0  # it cannot be read: then the time begins now


def origin_of(delivery: Delivery) -> str:
    """Where the first copy of a message stood, also when this one came by the retry route."""
    return plain_text(_kept(delivery, Header.ORIGIN)) or delivery.origin_text


def place_of(delivery: Delivery) -> int:
    """The place that a redriven copy has among the letters of its key; 0 is none."""
    place = _kept(delivery, Header.PLACE)
    return int(place) if place.isascii() and place.isdigit() and len(place) < 16 else 0


def is_discarded(delivery: Delivery) -> bool:
    """It brings no event: it says that the letter at its place needs nothing any more."""
    return _kept(delivery, Header.MARKER) == "discarded"


def _kept(delivery: Delivery, header: str) -> str:
    """What Tidings wrote on a copy. On an event the same header is a stranger's, and says nothing."""
    return delivery.headers.get(header, "") if delivery.route is Route.RETRY else ""


def _redrive(delivery: Delivery) -> str:
    """Which dead letter a redriven copy was, and which redrive it is: what fails again after that is something new.

    So is what fails in a replay.
    """
    replay = _kept(delivery, Header.REPLAY)
    return f"{_kept(delivery, Header.LETTER)}:{_kept(delivery, Header.REDRIVE)}" + (f":{replay}" if replay else "")


def retry_copy(delivery: Delivery, position: str, retried: Retried) -> Message:
    """The copy that waits on the retry route of a position for its next attempt."""
    failures = delivery.failures + (1 if retried.counted else 0)
    now = time.time()
    return Message(
        id=_digest("retry", delivery, position, str(failures)),
        route=Route.RETRY,
        position=position,
        stream=delivery.stream,
        type=_type_of(delivery),
        key=delivery.key,
        body=delivery.body,
        headers={
            **_common(delivery, position, now),
            Header.FAILURES: str(failures),
            Header.REASON: _beginning(header_text(retried.reason), MAX_REASON),
        },
        due=now + retried.after,
    )


def replay_copy(delivery: Delivery, position: str, replay: str, *, again: bool) -> Message:
    """The copy of an event that is given to a handler again, under the event's own id.

    `again` puts it into the scope of this replay, so that it is applied although it was before.
    """
    headers = _storable(delivery.headers) | {
        Header.ID: header_text(delivery.event_id),
        Header.ORIGIN: header_text(delivery.origin_text),
        Header.STREAM: delivery.stream,
        Header.TYPE: header_text(_type_of(delivery)),
        Header.HANDLER: position,
        Header.FAILURES: "0",
        Header.REPLAY: replay,
    }
    if (key := delivery.key) is not None:
        headers[Header.KEY] = header_text(key)
    if again:
        headers[Header.SCOPE] = replay
    return Message(
        id=f"{replay}:{delivery.origin_text}",
        route=Route.RETRY,
        position=position,
        stream=delivery.stream,
        type=_type_of(delivery),
        key=key,
        body=delivery.body,
        headers=headers,
    )


def letter_id(delivery: Delivery, position: str) -> str:
    """The same for every copy of one death: a crash between storing a letter and the ack leaves two with one id."""
    return _digest("dead", delivery, position)


def dead_letter(
    delivery: Delivery,
    position: str,
    dead: DeadLettered,
    service_version: str,
    room: int,
    place: Mapping[str, str] = NO_HEADERS,
) -> list[Message]:
    """The dead letter, in as many messages as its bytes need at `room` bytes each; `place` is that in its key."""
    now = time.time()
    letter = letter_id(delivery, position)
    headers = {
        **_common(delivery, position, now),
        Header.LETTER: letter,
        Header.FAILURES: str(delivery.failures + (1 if dead.code in _HANDLED else 0)),
        Header.REASON: _beginning(header_text(dead.reason), MAX_REASON),
        Header.ERROR: header_text(dead.code),
        Header.SERVICE_VERSION: header_text(service_version),
        **place,
    }
    if redriven := _kept(delivery, Header.LETTER):
        headers[Header.REDRIVEN_FROM] = redriven
    if dead.error is not None:
        headers[Header.TRACEBACK] = _traceback_text(trace_of(dead.error))
    pieces = [delivery.body[at : at + room] for at in range(0, len(delivery.body), room)] or [b""]
    return [
        Message(
            id=f"{letter}/{number}",
            route=Route.DEAD,
            position=position,
            stream=delivery.stream,
            type=_type_of(delivery),
            key=delivery.key,
            body=piece,
            headers={**headers, Header.PART: f"{number}/{len(pieces)}"},
        )
        for number, piece in enumerate(pieces, 1)
    ]


def original_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that the publisher wrote, without those of Tidings."""
    return {name: value for name, value in headers.items() if not name.lower().startswith(_OURS)}


def _storable(headers: Mapping[str, str]) -> dict[str, str]:
    """The publisher's headers as every broker can hold them.

    A name or value that cannot stand as it is, is percent-encoded. Of more than can be kept the largest are left out
    by name, attributes of the event last: a copy that could not be stored would keep its message coming for ever.
    """
    found = {_name(name): _value(value) for name, value in original_headers(headers).items()}
    sizes = {name: len(name) + len(value.encode()) + 4 for name, value in found.items()}
    left_out = []
    for name in sorted(found, key=lambda name: (name.lower().startswith(_ATTRIBUTES), -sizes[name])):
        if sum(sizes.values()) <= MAX_FOREIGN:
            break
        left_out.append(name)
        del found[name], sizes[name]
    if left_out:
        found[Header.LEFT_OUT] = _beginning(header_text(", ".join(left_out)), MAX_REASON)
    return found


def _name(name: str) -> str:
    return name if _TOKEN.fullmatch(name) else quote(name, safe=_IN_TOKENS, errors="backslashreplace") or "%"


def _value(value: str) -> str:
    return value if value.isprintable() and value == value.strip() else header_text(value)


def _common(delivery: Delivery, position: str, now: float) -> dict[str, str]:
    stamp = _stamp(now)
    first = _stamp(delivery.first_failed) if delivery.first_failed else stamp
    headers = {
        **_storable(delivery.headers),
        Header.ID: header_text(delivery.event_id),
        Header.ORIGIN: header_text(origin_of(delivery)),
        Header.STREAM: delivery.stream,
        Header.HANDLER: position,
        Header.FIRST_FAILURE: _kept(delivery, Header.FIRST_FAILURE) or first,
        Header.LAST_FAILURE: stamp,
    }
    if (kind := _type_of(delivery)) != "":
        headers[Header.TYPE] = header_text(kind)
    if (key := delivery.key) is not None:
        headers[Header.KEY] = header_text(key)
    for header in (Header.LETTER, Header.REDRIVE, Header.LEFT_OUT, Header.REPLAY, Header.SCOPE):
        if kept := _kept(delivery, header):
            headers[header] = kept
    return headers


def _stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")


def _type_of(delivery: Delivery) -> str:
    return delivery.envelope.type if delivery.envelope else plain_text(delivery.headers.get(Header.TYPE, ""))


def _digest(kind: str, delivery: Delivery, *parts: str) -> str:
    """An id for a copy. The bytes are part of it: a stream that was made anew gives out its places once more."""
    made_of = "\x00".join((kind, origin_of(delivery), _redrive(delivery), *parts)).encode()
    return blake2b(delivery.body, key=blake2b(made_of).digest(), digest_size=12).hexdigest()
