"""The copies that belong to the core: on the retry route, and in the dead letters.

A copy is stored, and seen to be stored, before the delivery it was made of is acknowledged. It carries the original
bytes and headers, and what Tidings has to say in headers of its own.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from urllib.parse import quote, unquote

from tidings.delivery import DeadLettered, Delivery, Header, Message, Retried, Route

MAX_TRACEBACK = 6000
"""Characters of a traceback that a dead letter keeps: its end, where the cause stands."""

_SAFE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_OURS = "tidings-"


def header_text(value: str) -> str:
    """Text as a header can hold it: printable ASCII, the rest percent-encoded."""
    return quote(value.strip(), safe=_SAFE)


def plain_text(value: str) -> str:
    """The other way round."""
    return unquote(value)


def restore(delivery: Delivery) -> None:
    """Read what Tidings wrote on a copy when it went onto the retry route."""
    count = delivery.headers.get(Header.FAILURES, "0")
    delivery.failures = int(count) if count.isascii() and count.isdigit() else 0


def origin_of(delivery: Delivery) -> str:
    """Where the first copy of a message stood, also when this one came by the retry route."""
    return delivery.headers.get(Header.ORIGIN) or delivery.origin_text


def retry_copy(delivery: Delivery, position: str, retried: Retried) -> Message:
    """The copy that waits on the retry route of a position for its next attempt."""
    failures = delivery.failures + (1 if retried.counted else 0)
    now = time.time()
    return Message(
        id=_digest("retry", origin_of(delivery), position, delivery.headers.get(Header.LETTER, ""), str(failures)),
        route=Route.RETRY,
        position=position,
        stream=delivery.stream,
        type=_type_of(delivery),
        key=delivery.key,
        body=delivery.body,
        headers={
            **_common(delivery, position, now),
            Header.FAILURES: str(failures),
            Header.REASON: header_text(retried.reason),
        },
        due=now + retried.after,
    )


def letter_id(delivery: Delivery, position: str) -> str:
    """The same for every copy of one death: a crash between storing a letter and the ack leaves two with one id."""
    return _digest("dead", origin_of(delivery), position, delivery.headers.get(Header.LETTER, ""))


def dead_letter(
    delivery: Delivery, position: str, dead: DeadLettered, service_version: str, room: int
) -> list[Message]:
    """The dead letter, in as many messages as its bytes need at `room` bytes each."""
    now = time.time()
    letter = letter_id(delivery, position)
    headers = {
        **_common(delivery, position, now),
        Header.LETTER: letter,
        Header.FAILURES: str(delivery.failures + (1 if dead.code == "failed" else 0)),
        Header.REASON: header_text(dead.reason[:2000]),
        Header.ERROR: header_text(dead.code),
        Header.SERVICE_VERSION: header_text(service_version),
    }
    if redriven := delivery.headers.get(Header.LETTER):
        headers[Header.REDRIVEN_FROM] = redriven
    if dead.error is not None:
        text = "".join(traceback.format_exception(dead.error))
        headers[Header.TRACEBACK] = header_text(text[-MAX_TRACEBACK:])
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


def _common(delivery: Delivery, position: str, now: float) -> dict[str, str]:
    stamp = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
    headers = {
        **original_headers(delivery.headers),
        Header.ID: header_text(delivery.event_id),
        Header.ORIGIN: header_text(origin_of(delivery)),
        Header.STREAM: delivery.stream,
        Header.HANDLER: position,
        Header.FIRST_FAILURE: delivery.headers.get(Header.FIRST_FAILURE, stamp),
        Header.LAST_FAILURE: stamp,
    }
    if (kind := _type_of(delivery)) != "":
        headers[Header.TYPE] = header_text(kind)
    if (key := delivery.key) is not None:
        headers[Header.KEY] = header_text(key)
    if (redriven := delivery.headers.get(Header.LETTER)) is not None:
        headers[Header.LETTER] = redriven
    return headers


def _type_of(delivery: Delivery) -> str:
    return delivery.envelope.type if delivery.envelope else plain_text(delivery.headers.get(Header.TYPE, ""))


def _digest(*parts: str) -> str:
    return blake2b("\x00".join(parts).encode(), digest_size=12).hexdigest()
