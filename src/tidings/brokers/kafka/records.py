"""Messages as Kafka's records, and records as deliveries.

What Tidings has to say to itself stands in headers that begin with ``tidings.``: they are written here, taken away
here, and nobody else's to set. All other headers travel as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec
from confluent_kafka import Message as Record

from tidings.brokers.kafka.names import topic_of
from tidings.delivery import NO_HEADERS, Delivery, Header, Message, Route
from tidings.errors import EventTooLarge, InvalidEvent
from tidings.partition import slot_of

OWN: Final = "tidings."
TYPE: Final = "tidings.type"
STREAM: Final = "tidings.stream"
DUE: Final = "tidings.due"
POSITION: Final = "tidings.position"

_FOREIGN_TYPES: Final = ("ce_type", "ce-type")
"""Where publishers that are not Tidings say the type, in CloudEvents' binary mode."""

Pairs: TypeAlias = Sequence[tuple[str, bytes | None]]

headers_in: Final[Callable[[Record], Pairs | None]] = Record.headers  # type: ignore[assignment]  # bytes, where received
"""The headers of a record that came. Its hints are for those that are made as well, whose values may be text."""


class Outgoing(msgspec.Struct, frozen=True):
    """A message as it is produced."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, str | bytes | None]]


def record_of(message: Message, most: int) -> Outgoing:
    """The record of a message.

    Raises:
        InvalidEvent: its type, or a header, cannot travel.
        EventTooLarge: more than `most` bytes.
    """
    topic = topic_of(message)
    body = message.body
    if message.route is Route.EVENT and len(body) > most:
        raise EventTooLarge(
            f"{message.type} {message.id} has {len(body):,} bytes; {most:,} may travel. Store the large part elsewhere"
            " and publish where it stands"
        )
    try:
        headers: list[tuple[str, str | bytes | None]] = [(TYPE, message.type.encode())]
        for name, value in message.headers.items():
            if name.startswith(OWN):
                raise InvalidEvent(f"header {name!r}: names that begin with {OWN} are Tidings' own; choose another")
            headers.append((name, value.encode()))
    except (UnicodeEncodeError, AttributeError):
        raise InvalidEvent(
            f"a header of {message.type} {message.id} is no text that can travel: names and values are str, without"
            " halves of surrogate pairs"
        ) from None
    key = None if message.key is None else message.key.encode(errors="surrogatepass")
    if message.route is Route.EVENT:
        return Outgoing(topic, key, body, headers)
    headers += [(STREAM, message.stream.encode()), (POSITION, message.position.encode())]
    if message.due is not None:
        headers.append((DUE, b"%.6f" % message.due))
    if message.route is Route.NOTE:
        # Of each name the last is kept; one without a body is forgotten after a while.
        key = f"{message.position}/{message.key}".encode(errors="surrogatepass")
        return Outgoing(topic, key, body or None, headers)
    return Outgoing(topic, key, body, headers)


class RecordHeaders(Mapping[str, str]):
    """The headers of a record as text, without Tidings' own. Most deliveries never need them."""

    __slots__ = ("_found", "_pairs")

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs
        self._found: dict[str, str] | None = None

    def _read(self) -> dict[str, str]:
        if self._found is None:
            self._found = {
                name: (value or b"").decode("utf-8", "replace")
                for name, value in self._pairs
                if not name.startswith(OWN)
            }
        return self._found

    def __getitem__(self, name: str) -> str:
        return self._read()[name]

    def __contains__(self, name: object) -> bool:
        if self._found is None:
            for one, _ in self._pairs:  # they are few, and to read them costs more than to look at them
                if one == name:
                    return name in self._read()
            return False
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return repr(self._read())


def pairs_of(record: Record) -> Pairs:
    """The headers of a record as they came; there may be none."""
    return headers_in(record) or ()


def own(pairs: Pairs, name: str) -> str:
    """One of Tidings' own headers, or nothing."""
    return next(((value or b"").decode("utf-8", "replace") for one, value in pairs if one == name), "")


def type_of(pairs: Pairs) -> bytes | None:
    """The type that a record says, without a look at its body; None where it does not."""
    if pairs and pairs[0][0] == TYPE:  # as Tidings writes it
        return pairs[0][1]
    found = {name.lower(): value for name, value in pairs}
    return next((found[name] for name in (TYPE, *_FOREIGN_TYPES) if name in found), None)


def due_of(pairs: Pairs) -> float:
    """The moment before which a copy must not be delivered, Unix seconds; 0 is at once."""
    try:
        return float(own(pairs, DUE) or 0)
    except ValueError:
        return 0.0  # what cannot be read cannot hold anything up


def headers_of(pairs: Pairs) -> Mapping[str, str]:
    """The headers of a record as they are handed over."""
    return NO_HEADERS if not pairs or (len(pairs) == 1 and pairs[0][0] == TYPE) else RecordHeaders(pairs)


def stream_of(pairs: Pairs, topic: str) -> str:
    """Of which stream a copy is, or the topic where it does not say so."""
    return own(pairs, STREAM) or next(
        ((value or b"").decode("utf-8", "replace") for name, value in pairs if name == Header.STREAM), topic
    )


def delivery_of(record: Record, pairs: Pairs, route: Route, *, token: object = None, slots: bool = False) -> Delivery:
    """A record as it is handed over, or read from a log."""
    topic = record.topic() or ""
    key = record.key() if slots else None
    return Delivery(
        body=record.value() or b"",
        stream=topic if route is Route.EVENT else stream_of(pairs, topic),
        origin=(topic, record.partition() or 0, record.offset() or 0),
        token=token,
        headers=headers_of(pairs),
        slot=None if key is None else slot_of(key.decode("utf-8", "replace")),
        route=route,
    )
