"""Streams, subjects and durable names: what stands where on the server.

Whatever comes from outside is checked or escaped here, so that no name can reach beyond its place (traps 45 and 64).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b

from tidings.delivery import PARTITIONS, Message, Route
from tidings.errors import ConfigurationError, InvalidEvent, TidingsError
from tidings.partition import slot_of

RETRY_STREAM = "tidings-retry"
DEAD_STREAM = "tidings-dead"
NOTE_STREAM = "tidings-notes"
LIVE = "tidings-live"
"""The first word of the subjects on which the processes of ordered positions make themselves known; no stream's."""

SHARES = 8
"""Into how many parts an ordered position is cut. Each is one consumer, and belongs to one process at a time."""
_EACH = PARTITIONS // SHARES
"""The partitions of one share: neighbours, so that the lanes of a process, which go by the partition too, all get some
of each share."""

_OWN = {Route.RETRY: RETRY_STREAM, Route.DEAD: DEAD_STREAM, Route.NOTE: NOTE_STREAM}

_TOKEN = r"[A-Za-z0-9][A-Za-z0-9_-]*"
_TYPE = re.compile(rf"{_TOKEN}(\.{_TOKEN})+")
_STREAM = re.compile(_TOKEN)
_POSITION = re.compile(r"[A-Za-z0-9-]+\.[A-Za-z0-9-]+")


def stream_of(route: Route, stream: str) -> str:
    """The server's name of the stream that a message goes to."""
    return stream if route is Route.EVENT else _OWN[route]


def check_stream(name: str) -> None:
    """Raises ConfigurationError for a name that cannot be a stream of events."""
    if not _STREAM.fullmatch(name) or name in _OWN.values() or name == LIVE:
        raise ConfigurationError(
            f"{name!r} cannot be a stream: letters, digits, - and _ only, and none of {', '.join(_OWN.values())} and"
            f" {LIVE}, which Tidings keeps for itself. The stream is the part of an event's type before the first dot"
        )


@lru_cache(maxsize=4096)
def durable_of(position: str) -> str:
    """``stock.reserve`` becomes ``stock_reserve``; no position has an underscore, so no two share a name."""
    if not _POSITION.fullmatch(position):
        raise ConfigurationError(f"{position!r} cannot be a position: service.name, of letters, digits and -")
    return position.replace(".", "_")


def share_durable(position: str, share: int) -> str:
    """``stock_reserve_3``: the fourth share of an ordered position."""
    return f"{durable_of(position)}_{share}"


def _place_of(key: str) -> str:
    """``_2.1`` for partition 17: the share in a word of its own, so that one filter has all of it.

    The server finds the next event of one filter several times as fast as that of eight. No type has a word that begins
    with an underscore, so nothing else stands there.
    """
    share, within = divmod(slot_of(key), _EACH)
    return f"_{share}.{within}"


@lru_cache(maxsize=4096)
def _type_problem(stream: str, type: str) -> TidingsError | None:
    if not _TYPE.fullmatch(type):
        return InvalidEvent(f"{type!r} cannot be a type: words of letters, digits, - and _, joined by dots")
    if type.split(".", 1)[0] != stream:
        return InvalidEvent(f"type {type!r} does not belong to the stream {stream!r}: its first word says the stream")
    return None


def event_subject(stream: str, type: str, key: str | None) -> str:
    """``order.placed._2.1``: the type, and the partition of the key where there is one.

    Raises:
        InvalidEvent: the type cannot be a subject, or belongs to another stream.
    """
    if (problem := _type_problem(stream, type)) is not None:
        raise problem
    return type if key is None else f"{type}.{_place_of(key)}"


_NO_KEY = "_0.0"
"""Where copies of events without a key stand: the first share takes them, as it takes the events."""


def due_subject(position: str, key: str | None) -> str:
    """Where a copy stands whose time has come: by the partition of its key, so that it reaches whoever has the key."""
    return f"{RETRY_STREAM}.due.{durable_of(position)}.{_NO_KEY if key is None else _place_of(key)}"


def due_subjects(position: str, share: int | None = None) -> list[str]:
    """All copies of a position whose time has come, or those of one share."""
    due = f"{RETRY_STREAM}.due.{durable_of(position)}"
    return [f"{due}.*.*" if share is None else f"{due}._{share}.*"]


def live_subject(position: str) -> str:
    """Where the processes of an ordered position tell each other that they live."""
    return f"{LIVE}.{durable_of(position)}"


def wait_subject(position: str, id: str) -> str:
    """Where one copy waits for its time: the server keeps one schedule per subject, so each has its own."""
    return f"{RETRY_STREAM}.wait.{durable_of(position)}.{blake2b(id.encode(), digest_size=16).hexdigest()}"


def waiting_subjects(position: str) -> str:
    """All copies of a position that wait."""
    return f"{RETRY_STREAM}.wait.{durable_of(position)}.*"


def dead_subject(position: str) -> str:
    return f"{DEAD_STREAM}.{durable_of(position)}"


def note_subject(position: str, name: str) -> str:
    """Where one note stands: only the last on a subject is kept. A name may be anything, so its hash stands for it."""
    return f"{NOTE_STREAM}.{durable_of(position)}.{blake2b(name.encode(), digest_size=16).hexdigest()}"


def note_subjects(position: str) -> str:
    """All notes of a position."""
    return f"{NOTE_STREAM}.{durable_of(position)}.*"


def subject_of(message: Message) -> str:
    """The subject that a message is stored under; a copy that has to wait has another one (`wait_subject`)."""
    if message.route is Route.EVENT:
        return event_subject(message.stream, message.type, message.key)
    if message.route is Route.NOTE:
        return note_subject(message.position, message.key or "")
    if message.route is Route.RETRY:
        return due_subject(message.position, message.key)
    return dead_subject(message.position)


def filters_of(types: Iterable[str]) -> list[str]:
    """The subjects of a position: each type with and without partition. The server refuses those that overlap."""
    wanted = sorted(set(types))
    whole = [f"{one}.*.*" for one in wanted]
    single = [one for one in wanted if not any(_covers(other, one) for other in whole)]
    return sorted(single + whole)


def filters_of_share(types: Iterable[str], share: int) -> list[str]:
    """The subjects of one share: each type with its partitions; the first share also takes what has no partition."""
    wanted = set(types)
    return sorted({f"{one}._{share}.*" for one in wanted} | (wanted if share == 0 else set()))


def _covers(pattern: str, subject: str) -> bool:
    return subject.count(".") == pattern.count(".") and subject.startswith(pattern[: -len("*.*")])


_PARTITION = re.compile(rb"(.+)\._([0-9])\.([0-9])")


def type_and_slot(subject: bytes) -> tuple[bytes, int | None]:
    """The type that an event's subject says, and the partition, where it has one."""
    found = _PARTITION.fullmatch(subject)
    if found is None:
        return subject, None
    share, within = int(found[2]), int(found[3])
    if share >= SHARES or within >= _EACH:
        return subject, None
    return found[1], share * _EACH + within
