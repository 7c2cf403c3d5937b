"""What the values of an event must be like: whatever leaves can be read again, and is then the same."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from tidings.delivery import MAX_KEY_LENGTH
from tidings.errors import InvalidEvent

MAX_DEPTH = 64
"""How deep arrays and objects may nest in a message, the envelope itself included."""

encode = msgspec.json.Encoder(decimal_format="string", uuid_format="canonical").encode
"""The JSON of an event. Decimals travel as text, so that no digit is lost."""

# What CloudEvents 1.0.2 keeps out of attributes: controls, surrogates, noncharacters.
UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def key_text(value: object) -> str:
    """The value of a field as the text of a key: as it travels, so that renaming an enum's member changes nothing."""
    return str(value.value if isinstance(value, enum.Enum) else value)


def check_key(key: str, where: str) -> None:
    """Refuse keys that cannot travel.

    Raises:
        InvalidEvent: empty, longer than 256 characters, or with control characters.
    """
    if not key or len(key) > MAX_KEY_LENGTH or (not key.isprintable() and UNFIT.search(key)):
        shown = repr(key[:40]) + ("…" if len(key) > 40 else "")
        raise InvalidEvent(f"{where} = {shown}: a key has 1 to {MAX_KEY_LENGTH} characters and no control characters")


def holds_nul(data: bytes) -> bool:
    r"""Whether a text in this JSON holds U+0000, which PostgreSQL cannot store. ``\\u0000`` is none."""
    return b"\\u0000" in data and b"\\u0000" in data.replace(b"\\\\", b"")


def nests_deeper(data: bytes, most: int = MAX_DEPTH) -> bool:
    """Whether this JSON nests deeper than that. Of bytes that are no JSON it may say either: the decoder judges them.

    Every step is one pass of C code, so that a megabyte of brackets takes milliseconds.
    """
    if data.count(b"{") + data.count(b"[") <= most:
        return False
    unescaped = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    left = b"".join(unescaped.split(b'"')[::2]).translate(_ONE_KIND, _NO_BRACKETS)
    for _ in range(most):
        if b"[]" not in left:
            return False
        left = left.replace(b"[]", b"")  # the innermost level
    return b"[]" in left


_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))


def first_difference(given: Any, read: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Where what is read again is not what was given: the path, and both values. None where it is the same."""
    if given == read:
        return None
    if isinstance(given, datetime) and isinstance(read, datetime) and given.tzinfo and read.tzinfo:
        # Two zones are never equal in the hour that a clock change repeats (PEP 495); the moments are.
        return None if given.astimezone(UTC) == read.astimezone(UTC) else (path, given, read)
    pairs = _pairs(given, read)
    if pairs is None:
        return (path, given, read)
    for name, one, other in pairs:
        found = first_difference(one, other, f"{path}.{name}" if path else name)
        if found is not None:
            return found
    return None


def _pairs(given: Any, read: Any) -> Iterable[tuple[str, Any, Any]] | None:
    """The parts of two values that are made alike, or None. A tuple may stand for a list."""
    if isinstance(given, (list, tuple)) and isinstance(read, (list, tuple)) and len(given) == len(read):
        return [(str(place), one, other) for place, (one, other) in enumerate(zip(given, read, strict=True))]
    if isinstance(given, dict) and isinstance(read, dict) and given.keys() == read.keys():
        return [(str(name), one, read[name]) for name, one in given.items()]
    if type(given) is not type(read):
        return None
    if isinstance(given, msgspec.Struct):
        return [(name, getattr(given, name), getattr(read, name)) for name in given.__struct_fields__]
    if dataclasses.is_dataclass(given):
        return [(one.name, getattr(given, one.name), getattr(read, one.name)) for one in dataclasses.fields(given)]
    return None
