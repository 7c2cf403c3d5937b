"""Message headers between text and bytes: written with care, read only when somebody asks.

A header's name is an RFC 7230 token, its value printable text in UTF-8. What Tidings writes itself is ASCII, with the
rest percent-encoded. What the server obeys (``Nats-…``) can neither be sent by a user nor be seen by one (trap 37).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TypeVar, overload
from urllib.parse import quote

from tidings.errors import InvalidEvent

_T = TypeVar("_T")

VERSION_LINE = b"NATS/1.0\r\n"
MAX_HEADER_BYTES = 64 * 1024 - 1
"""The server stores the size of a header block in 16 bits."""

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_UNFIT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_RESERVED = "nats-"
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")


class RawHeaders(Mapping[str, str]):
    """Headers as they came over the wire. Most deliveries never need them parsed."""

    __slots__ = ("_parsed", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._parsed: dict[str, str] | None = None

    def _read(self) -> dict[str, str]:
        if self._parsed is None:
            self._parsed = parse(self._raw)
        return self._parsed

    def __getitem__(self, name: str) -> str:
        return self._read()[name]

    @overload
    def get(self, name: str, /) -> str | None: ...
    @overload
    def get(self, name: str, /, default: str | _T) -> str | _T: ...
    def get(self, name: str, /, default: str | _T | None = None) -> str | _T | None:
        if self._parsed is None and name.encode() not in self._raw:
            return default
        return self._read().get(name, default)

    def __contains__(self, name: object) -> bool:
        if self._parsed is None and isinstance(name, str) and name.encode() not in self._raw:
            return False
        return name in self._read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return repr(self._read())


def parse(raw: bytes) -> dict[str, str]:
    """The headers of a block that begins with its version line, without those of the server."""
    found: dict[str, str] = {}
    for line in raw.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            text = name.strip().decode("ascii", "replace")
            if not text[:5].lower().startswith(_RESERVED):
                found[text] = value.strip().decode("utf-8", "replace")
    return found


def own(raw: bytes | None, name: bytes) -> str | None:
    """The value of one of the server's own headers, such as ``Nats-Pin-Id``."""
    if raw is None:
        return None
    start = raw.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    return raw[start : raw.index(b"\r\n", start)].strip().decode("ascii", "replace")


def status_of(raw: bytes) -> tuple[int, str]:
    """Code and text of a status message, such as ``(408, "Request Timeout")``; 0 for what is none."""
    line = raw[len(VERSION_LINE) - 2 : raw.find(b"\r\n")].strip()
    code, _, text = line.partition(b" ")
    return (int(code) if code.isdigit() else 0), text.strip().decode("ascii", "replace")


def unserved_of(raw: bytes, asked: int) -> int:
    """How many messages of a request that has ended will not come, as the server says; else all that did not yet."""
    said = own(raw, b"Nats-Pending-Messages") or ""
    return min(int(said), asked) if said.isdigit() else asked


def render(headers: Mapping[str, str]) -> bytes:
    """The lines of users' and Tidings' headers, each ended by CR LF.

    Raises:
        InvalidEvent: a name or a value cannot travel as it is.
    """
    lines = []
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidEvent(f"header {name!r} has the value {value!r}: names and values are str")
        _check_name(name)
        if (not (value.isascii() and value.isprintable()) and _UNFIT.search(value)) or value != value.strip(" "):
            raise InvalidEvent(
                f"header {name!r} holds control characters, or spaces at an end: percent-encode it"
                " (urllib.parse.quote) and decode it where it is read"
            )
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines).encode()


@lru_cache(512)
def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidEvent(f"{name!r} is no name for a header: letters, digits and -._~ only")
    if name[:5].lower() == _RESERVED:
        raise InvalidEvent(f"header {name!r} is an order to the server and may not be set; choose another name")


def plain(value: str) -> str:
    """An id as it stands in a header of the server's: itself where it is plain, else percent-encoded."""
    return value if value.isalnum() and value.isascii() else quote(value, safe=_PRINTABLE)
