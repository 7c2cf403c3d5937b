"""Exchanges, queues and routing keys: what stands where on the server.

Whatever comes from outside is checked here, so that no name can reach beyond its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from math import ceil
from typing import Final

from tidings.brokers.rabbitmq.waiting import STEPS
from tidings.delivery import PARTITIONS
from tidings.errors import ConfigurationError, InvalidEvent, TidingsError
from tidings.partition import slot_of

RETRY: Final = "tidings-retry"
"""The exchange to which copies go whose time has come."""
WAIT: Final = "tidings-wait"
"""The exchange to which copies go that have to wait."""
LIVE: Final = "tidings-live"
"""The exchange by which the processes of ordered positions make themselves known."""
DEAD: Final = "tidings-dead"
NOTES: Final = "tidings-notes"
POSITIONS: Final = "tidings-positions"
UNROUTED: Final = "tidings-unrouted"
"""Logs, which are queues of the type stream: the dead letters, the notes, the positions, and events that no position
of their stream takes."""
OWN: Final = frozenset({RETRY, WAIT, LIVE, DEAD, NOTES, POSITIONS, UNROUTED})

SHARES: Final = 8
"""Into how many parts an ordered position is cut. Each is one queue, and belongs to one process at a time."""
_EACH: Final = PARTITIONS // SHARES
"""The partitions of one share: neighbours, so that the lanes of a process, which go by the partition too, all get some
of each share."""

_WORD: Final = r"[A-Za-z0-9][A-Za-z0-9_-]*"
_TYPE: Final = re.compile(rf"{_WORD}(\.{_WORD})+")
_STREAM: Final = re.compile(_WORD)
_POSITION: Final = re.compile(r"[A-Za-z0-9-]+\.[A-Za-z0-9-]+")
_PLACE: Final = re.compile(r"(.+)\._([0-7])\.([0-7])")
MOST: Final = 200
"""Bytes that the name of a type or a position may have: 255 are the server's limit for a routing key."""


@lru_cache(maxsize=4096)
def check_stream(name: str) -> None:
    """Raises ConfigurationError for a name that cannot be a stream of events."""
    if not _STREAM.fullmatch(name) or name in OWN or name.startswith("amq-") or len(name) > MOST:
        raise ConfigurationError(
            f"{name!r} cannot be a stream: letters, digits, - and _ only, at most {MOST}, and none of"
            f" {', '.join(sorted(OWN))}, which Tidings keeps for itself. The stream is the part of an event's type"
            " before the first dot"
        )


@lru_cache(maxsize=4096)
def check_position(position: str) -> str:
    """The name of its queue, which is its own. Raises ConfigurationError for one that cannot be."""
    if not _POSITION.fullmatch(position) or len(position) > MOST:
        raise ConfigurationError(
            f"{position!r} cannot be a position: service.name, of letters, digits and -, {MOST} at most"
        )
    return position


def share_queue(position: str, share: int) -> str:
    """``stock.reserve._3``: the fourth share of an ordered position."""
    return f"{check_position(position)}._{share}"


def event_queues(position: str, ordered: bool) -> list[str]:
    """The queues that events of a position stand in."""
    return [share_queue(position, share) for share in range(SHARES)] if ordered else [check_position(position)]


def retry_queue(position: str) -> str:
    """Where copies stand whose time has come. An ordered position has them in the queues of its shares."""
    return f"{check_position(position)}._retry"


def wait_queue(position: str, step: int) -> str:
    """Where copies wait for so many milliseconds. For an ordered position a failure waits with its process."""
    return f"{check_position(position)}._wait.{step}"


def all_queues(position: str, ordered: bool) -> list[str]:
    """Those of a position."""
    if ordered:
        return event_queues(position, ordered)
    return [check_position(position), retry_queue(position), *(wait_queue(position, step) for step in STEPS)]


def place_of(key: str | None) -> str:
    """``_2.1`` for partition 17: the share in a word of its own, so that one binding has all of it.

    No type has a word that begins with an underscore, so nothing else stands there. What has no key goes with the
    first share.
    """
    share, within = divmod(slot_of(key) if key is not None else 0, _EACH)
    return f"_{share}.{within}"


@lru_cache(maxsize=4096)
def _type_problem(stream: str, type: str) -> TidingsError | None:
    if not _TYPE.fullmatch(type) or len(type) > MOST:
        return InvalidEvent(
            f"{type!r} cannot be a type: words of letters, digits, - and _, joined by dots, {MOST} characters at most"
        )
    if type.split(".", 1)[0] != stream:
        return InvalidEvent(f"type {type!r} does not belong to the stream {stream!r}: its first word says the stream")
    return None


def event_key(stream: str, type: str, key: str | None) -> str:
    """``order.placed._2.1``: the type, and the partition of the key where there is one.

    Raises:
        InvalidEvent: the type cannot be one, or belongs to another stream.
    """
    if (problem := _type_problem(stream, type)) is not None:
        raise problem
    return type if key is None else f"{type}.{place_of(key)}"


def copy_place(position: str, key: str | None) -> str:
    """``stock.reserve._2.1``: for whom a copy is, and its partition. Before it stands how long it waits."""
    return f"{check_position(position)}.{place_of(key)}"


def bindings_of(types: Iterable[str], ordered: bool) -> list[set[str]]:
    """The routing keys that each queue of a position takes; the first share also takes what has no partition."""
    wanted = set(types)
    shares = [{f"{one}._{share}.*" for one in wanted} for share in range(SHARES)]
    if ordered:
        shares[0] |= wanted
        return shares
    return [wanted.union(*shares)]


def copy_bindings(position: str, ordered: bool) -> list[tuple[str, str, str]]:
    """The queue, exchange and routing key by which each queue takes copies: those that wait, and those whose time has
    come, whatever step they waited in."""
    if ordered:
        return [(share_queue(position, share), RETRY, f"*.{position}._{share}.*") for share in range(SHARES)]
    waits = [(wait_queue(position, step), WAIT, f"{step}.{position}.#") for step in STEPS]
    return [(retry_queue(position), RETRY, f"*.{position}.*.*"), *waits]


def copy_key(place: str, step: int, until: float) -> str:
    """The routing key of a copy: the step it waits in, for whom it is, and the millisecond until which it stays there.

    What need not wait any more has the step 0, and no time.
    """
    return f"{step}.{place}.{ceil(until * 1000)}" if step else f"0.{place}"


def place_and_time(routing_key: str) -> tuple[str, float]:
    """Of the routing key of a copy: for whom it is, and until when it stays where it is, in seconds; 0 if it says no
    time."""
    step, _, place = routing_key.partition(".")
    if step == "0":
        return place, 0.0
    place, _, until = place.rpartition(".")
    return place, int(until) / 1000 if until.isascii() and until.isdigit() else 0.0


def slot_in(routing_key: str) -> int | None:
    """The partition that the routing key of an event says, where it has one."""
    found = _PLACE.fullmatch(routing_key)
    return int(found[2]) * _EACH + int(found[3]) if found is not None else None
