"""Texts of messages as every database keeps them, written and read alike by all stores.

PostgreSQL refuses a NUL in a text, and an event that carries one would never leave: it is kept as ``\\0``, and a
backslash as two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from tidings.delivery import Message
from tidings.errors import InvalidEvent
from tidings.outbox.row import Parked, Row
from tidings.outbox.tables import key_hash


class Columns(Protocol):
    """A row as any library gives it."""

    def __getitem__(self, name: str, /) -> Any: ...


def escaped(text: str) -> str:
    """The text without a NUL."""
    return text.replace("\\", "\\\\").replace("\0", "\\0") if "\0" in text or "\\" in text else text


def plain(text: str) -> str:
    """What was escaped."""
    if "\\" not in text:
        return text
    return "\\".join(part.replace("\\0", "\0") for part in text.split("\\\\"))


def check(messages: Sequence[Message]) -> None:
    """See that a database can keep their texts.

    Raises:
        InvalidEvent: it cannot.
    """
    for message in messages:
        for text in (message.id, message.stream, message.type, message.key or "", message.position):
            if not text.isascii() and _is_broken(text):
                raise InvalidEvent(
                    f"event {message.id!r} ({message.type!r}, key {message.key!r}) holds half of a surrogate pair,"
                    " which no database keeps in a text. Take it out where the event is made"
                )


def rows_of(found: Iterable[Columns]) -> list[Row]:
    """The rows that were read, in order; those behind an unreadable one of their key are left where they are.

    Whatever somebody wrote into one row by hand, or an older version did, is the trouble of that row and its key.
    """
    rows: list[Row] = []
    held: set[int] = set()
    for row in found:
        if row["key_hash"] in held:
            continue
        try:
            rows.append(Row(row["id"], row["attempts"], message_of(row)))
        except InvalidEvent as error:
            rows.append(Row(row["id"], row["attempts"], _legible(row), error))
            if row["key_hash"] is not None:
                held.add(row["key_hash"])
    return rows


def parked_of(row: Columns) -> Parked:
    """A row that waits for a person, whether a message can be made of it or not."""
    try:
        message = message_of(row)
    except InvalidEvent:
        message = _legible(row)
    return Parked(row["id"], message, plain(_shown(row["error"])), row["created_at"])


def message_of(row: Columns) -> Message:
    """The message that a row holds.

    Raises:
        InvalidEvent: what stands there is no message.
    """
    column = ""
    try:
        read = _as_it_stands if "\\" in (row["key"] or "") and _is_raw(row) else plain
        column = "headers"
        headers = msgspec.json.decode(row["headers"], type=dict[str, str])
        column = "body"
        # SQLite keeps any type in any column, and text that was written by hand as text.
        body = row["body"].encode() if isinstance(row["body"], str) else row["body"]
        column = ""
        return msgspec.convert(
            {
                "id": _text(row["message_id"], read),
                "stream": _text(row["stream"], read),
                "type": _text(row["type"], read),
                "body": body,
                "key": _text(row["key"], read),
                "headers": headers,
                "route": row["route"],
                "position": _text(row["position"], read),
                "due": row["due"],
            },
            Message,
        )
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        where = f" in the column {column}" if column else ""
        raise InvalidEvent(
            f"row {row['id']} of tidings_outbox holds no message{where} ({error}). Mend the row and release it, or"
            " discard it"
        ) from error


def _legible(row: Columns) -> Message:
    """What people can know of a row by. It is never published."""
    return Message(
        id=plain(_shown(row["message_id"])),
        stream=plain(_shown(row["stream"])),
        type=plain(_shown(row["type"])),
        key=None if row["key"] is None else plain(_shown(row["key"])),
        body=b"",
    )


def _shown(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else repr(value)


def _text(value: Any, read: Callable[[str], str]) -> Any:
    return read(value) if isinstance(value, str) else value


def _is_raw(row: Columns) -> bool:
    """Whether an older store wrote the key without escaping: its hash, which is of the key itself, tells."""
    stream, key, hashed = row["stream"], row["key"], row["key_hash"]
    return hashed != key_hash(plain(stream), plain(key)) and bool(hashed == key_hash(stream, key))


def _as_it_stands(text: str) -> str:
    return text


def _is_broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
