"""Texts of messages as every database keeps them, written and read alike by all stores.

PostgreSQL refuses a NUL in a text, and an event that carries one would never leave: it is kept as ``\\0``, and a
backslash as two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from tidings.delivery import Message, Route
from tidings.errors import InvalidEvent
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


def message_of(row: Columns) -> Message:
    """The message that a row holds."""
    read = _as_it_stands if "\\" in (row["key"] or "") and _is_raw(row) else plain
    key = row["key"]
    return Message(
        id=read(row["message_id"]),
        stream=read(row["stream"]),
        type=read(row["type"]),
        body=row["body"],
        key=None if key is None else read(key),
        headers=msgspec.json.decode(row["headers"], type=dict[str, str]),
        route=Route(row["route"]),
        position=read(row["position"]),
        due=row["due"],
    )


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
