"""Topics and groups: what stands where on the cluster.

Kafka takes ``[a-zA-Z0-9._-]``, up to 249 of them, and lets names collide that differ in ``.`` and ``_`` only. Ours are
of lower case letters, digits, dots and hyphens: they collide with none of their own, and fit the stricter tools that
make an object of another kind for each topic.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from tidings.delivery import Message, Route
from tidings.errors import ConfigurationError, InvalidEvent, TidingsError

DEAD_TOPIC: Final = "tidings-dead"
NOTE_TOPIC: Final = "tidings-notes"
POSITION_TOPIC: Final = "tidings-positions"
RETRY_PREFIX: Final = "tidings-retry."
LONGEST: Final = 249

_WORD = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_STREAM = re.compile(_WORD)
_POSITION = re.compile(rf"{_WORD}\.{_WORD}")
_TYPE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")


@lru_cache(maxsize=4096)
def stream_problem(name: str) -> str:
    """Why a stream cannot be a topic of this name; empty where it can."""
    if not _STREAM.fullmatch(name) or len(name) > LONGEST:
        return (
            f"{name!r} cannot be a topic of Tidings: lower case letters, digits and hyphens, {LONGEST} at most (Kafka"
            " takes more, but names that differ in . and _ only collide there, and many tools around it take no upper"
            " case). The stream is the part of an event's type before the first dot"
        )
    if name.startswith("tidings-"):
        return f"{name!r} cannot be a stream: topics that begin with tidings- are those that Tidings keeps for itself"
    return ""


def check_stream(name: str) -> None:
    """Raises ConfigurationError for a name that cannot be a stream of events."""
    if problem := stream_problem(name):
        raise ConfigurationError(problem)


def check_position(position: str) -> None:
    """Raises ConfigurationError for a position whose retry route could have no topic."""
    if not _POSITION.fullmatch(position) or len(RETRY_PREFIX + position) > LONGEST:
        raise ConfigurationError(
            f"{position!r} cannot be a position on Kafka: service.handler, both of lower case letters, digits and"
            f" hyphens, {LONGEST - len(RETRY_PREFIX)} characters at most, because its retry route is the topic"
            f" {RETRY_PREFIX}{position}. Name them so: Service(…), @service.on(…, name=…)"
        )


def retry_topic(position: str) -> str:
    return RETRY_PREFIX + position


@lru_cache(maxsize=4096)
def _type_problem(stream: str, type: str) -> TidingsError | None:
    if problem := stream_problem(stream):
        return InvalidEvent(problem)
    if not _TYPE.fullmatch(type):
        return InvalidEvent(f"{type!r} cannot be a type: words of letters, digits, - and _, joined by dots")
    if type.split(".", 1)[0] != stream:
        return InvalidEvent(f"type {type!r} does not belong to the stream {stream!r}: its first word says the stream")
    return None


def topic_of(message: Message) -> str:
    """The topic that a message is stored in.

    Raises:
        InvalidEvent: its type belongs to another stream, or its stream can be no topic.
    """
    if message.route is Route.EVENT:
        if (problem := _type_problem(message.stream, message.type)) is not None:
            raise problem
        return message.stream
    if message.route is Route.RETRY:
        return retry_topic(message.position)
    return DEAD_TOPIC if message.route is Route.DEAD else NOTE_TOPIC


def topic_to_read(route: Route, stream: str) -> str:
    """The topic of a log that is read; of a retry route `stream` is the position."""
    if route is Route.EVENT:
        return stream
    return {Route.RETRY: retry_topic(stream), Route.DEAD: DEAD_TOPIC, Route.NOTE: NOTE_TOPIC}[route]
