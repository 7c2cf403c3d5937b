"""Reading a log, which is a queue of the type stream, from its beginning, without leaving anything at the server.

How long a stream is the server says only now and then. But a channel reads it by itself, as far as it may deliver: so
once an answer has come on it, all that was stored before has come too.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

from tidings.brokers.rabbitmq.channel import GRANT, REFUSED, Channel, NotAllowed, Refused
from tidings.brokers.rabbitmq.connection import Connection
from tidings.brokers.rabbitmq.frames import Content, acknowledge
from tidings.errors import BrokerUnavailable, ConfigurationError

ANSWER: Final = 10.0
PAUSE: Final = 0.2
AT_ONCE: Final = 200
"""How many messages may be on their way to a reader."""
LAST_CHUNK: Final = 10_000

_OFFSET: Final = "x-stream-offset"


def offset_of(content: Content) -> int:
    """The place of a message in its log."""
    return int(content.marks.get(_OFFSET, -1))


async def read_log(
    connection: Connection, queue: str, *, since: datetime | None = None, follow: bool = False
) -> AsyncIterator[Content]:
    """The messages of a log in their order; without `follow` it ends where the log ended when this was called.

    Raises:
        BrokerUnavailable: the server does not answer for too long.
        ConfigurationError: there is no such log.
    """
    start: Any = "first" if since is None else since.astimezone(UTC)
    end = -1 if follow else await end_of(connection, queue)
    at = -1
    until = time.monotonic() + ANSWER
    while follow or at < end:
        found = _Reading(connection, queue, start if at < 0 else at + 1)
        try:
            async for content in found.run(follow):
                at = offset_of(content)
                until = time.monotonic() + ANSWER
                yield content
                if at >= end and not follow:
                    return
            return  # nothing is that young
        except BrokerUnavailable as error:
            _check_there(queue, error, follow)
            if time.monotonic() > until and not follow:
                raise
        finally:
            await found.close()
        await asyncio.sleep(PAUSE)


async def end_of(connection: Connection, queue: str, *, follow: bool = False) -> int:
    """The place of the last message of a log, or -1. For the errors see `read_log`."""
    until = time.monotonic() + ANSWER
    while True:
        try:
            link = await connection.ready(max(until - time.monotonic(), 0.1))
            channel = await link.channel(ANSWER)
            last: list[Content] = []
            try:
                asked = {_OFFSET: "last"}
                await channel.consume(queue, last.append, _ignore, ANSWER, prefetch=LAST_CHUNK, arguments=asked)
                await channel.round_trip(ANSWER)
            finally:
                await _closed(channel)
            return offset_of(last[-1]) if last else -1
        except BrokerUnavailable as error:
            _check_there(queue, error, follow)
            if time.monotonic() > until:
                raise
        await asyncio.sleep(PAUSE)


class _Reading:
    """One consumer of a log, until its link is gone."""

    def __init__(self, connection: Connection, queue: str, start: Any) -> None:
        self._connection = connection
        self._queue = queue
        self._start = start
        self._channel: Channel | None = None
        self._found: deque[Content] = deque()
        self._more = asyncio.Event()

    async def run(self, follow: bool) -> AsyncIterator[Content]:
        """What is there, and with `follow` what comes; without, it ends where there is nothing more."""
        link = await self._connection.ready(ANSWER)
        channel = self._channel = await link.channel(ANSWER)
        channel.on_closed = lambda why: self._more.set()
        asked = {_OFFSET: self._start}
        await channel.consume(
            self._queue, self._take, lambda tag: self._more.set(), ANSWER, prefetch=AT_ONCE, arguments=asked
        )
        while True:
            if not self._found:
                await channel.round_trip(ANSWER)
            if not self._found:
                if not follow:
                    return
                self._more.clear()
                await self._more.wait()
                if not channel.open:
                    raise channel.why
                continue
            tag = 0
            while self._found:
                content = self._found.popleft()
                tag = content.tag
                yield content
            link.send(acknowledge(channel.number, tag, multiple=True))

    def _take(self, content: Content) -> None:
        self._found.append(content)
        self._more.set()

    async def close(self) -> None:
        if self._channel is not None:
            await _closed(self._channel)


async def _closed(channel: Channel) -> None:
    try:
        await channel.close(2.0)
    except BrokerUnavailable:
        pass  # it went with its link


def _ignore(tag: str) -> None:
    """A reader that is cut off asks again."""


def _check_there(queue: str, error: BrokerUnavailable, follow: bool = False) -> None:
    if isinstance(error, Refused) and error.code == REFUSED and not follow:
        raise NotAllowed(f"the user may not read the log {queue!r}: {error.text}. {GRANT}") from None
    if isinstance(error, Refused) and error.missing:
        raise ConfigurationError(
            f"there is no log {queue!r} on this server: start a service first, which makes it"
        ) from None
