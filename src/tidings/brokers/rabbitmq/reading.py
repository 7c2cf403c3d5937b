"""Reading a log, which is a queue of the type stream, from its beginning, without leaving anything at the server.

How long a stream is the server says only now and then, and what stands in it comes when it comes: an answer on the same
channel may be there before. So nothing is concluded from silence. Whoever makes a log stores a first message in it; its
end is the place of the last one, which is waited for, and so is all that lies before.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final, TypeGuard

from tidings.brokers.rabbitmq.channel import GRANT, REFUSED, Channel, NotAllowed, Refused
from tidings.brokers.rabbitmq.connection import Connection
from tidings.brokers.rabbitmq.frames import Content, acknowledge
from tidings.errors import BrokerUnavailable, ConfigurationError

ANSWER: Final = 10.0
PAUSE: Final = 0.2
AT_ONCE: Final = 200
"""How many messages may be on their way to a reader."""
LAST_CHUNK: Final = 10_000
SILENT: Final = 0.5
"""Seconds without a message after which a log gets its first one; where it had one, another does no harm."""
BEGINS: Final = "tidings-log"
"""The header of a message that says nothing but that its log is there."""

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
            if at < 0 and since is not None:
                return  # nothing is that young
            raise BrokerUnavailable(f"the log {queue!r} does not come to the end that it had")
        except BrokerUnavailable as error:
            _check_there(queue, error, follow)
            if time.monotonic() > until and not follow:
                raise
        finally:
            await found.close()
        await asyncio.sleep(PAUSE)


async def end_of(connection: Connection, queue: str, *, follow: bool = False) -> int:
    """The place of the last message of a log. For the errors see `read_log`."""
    until = time.monotonic() + ANSWER
    while True:
        try:
            found = await _last(connection, queue, max(until - time.monotonic(), 0.1))
            if found is None:
                raise BrokerUnavailable(f"the end of the log {queue!r} cannot be found")
            return found
        except BrokerUnavailable as error:
            _check_there(queue, error, follow)
            if time.monotonic() > until:
                raise
        await asyncio.sleep(PAUSE)


async def has_begun(connection: Connection, queue: str) -> bool:
    """Whether anything stands in a log; where the server is slow it may have been missed.

    Another process may be making the log in this moment: it is there then, and cannot be read before it runs.
    """
    until = time.monotonic() + ANSWER
    while True:
        try:
            return await _last(connection, queue, SILENT) is not None
        except BrokerUnavailable as error:
            if _is_forbidden(error) or time.monotonic() > until:
                raise
        await asyncio.sleep(PAUSE)


async def _last(connection: Connection, queue: str, patience: float) -> int | None:
    """The place of the last message; None where none has come in `patience` seconds."""
    link = await connection.ready(ANSWER)
    channel = await link.channel(ANSWER)
    chunk: list[Content] = []
    came = asyncio.Event()

    def take(content: Content) -> None:
        chunk.append(content)
        came.set()

    try:
        asked = {_OFFSET: "last"}
        await channel.consume(queue, take, _ignore, ANSWER, prefetch=LAST_CHUNK, arguments=asked)
        async with asyncio.timeout(patience):
            await came.wait()
        await channel.round_trip(ANSWER)  # a chunk comes as a whole
    except TimeoutError:
        return None
    finally:
        await _closed(channel)
    return offset_of(chunk[-1])


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
        """What is there, and what comes; without `follow` it ends when nothing has come for long."""
        link = await self._connection.ready(ANSWER)
        channel = self._channel = await link.channel(ANSWER)
        channel.on_closed = lambda why: self._more.set()
        asked = {_OFFSET: self._start}
        await channel.consume(
            self._queue, self._take, lambda tag: self._more.set(), ANSWER, prefetch=AT_ONCE, arguments=asked
        )
        while True:
            if not self._found:
                self._more.clear()
                try:
                    async with asyncio.timeout(None if follow else ANSWER):
                        await self._more.wait()
                except TimeoutError:
                    return
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


def _is_forbidden(error: BrokerUnavailable) -> TypeGuard[Refused]:
    return isinstance(error, Refused) and error.code == REFUSED


def _check_there(queue: str, error: BrokerUnavailable, follow: bool = False) -> None:
    if _is_forbidden(error) and not follow:
        raise NotAllowed(f"the user may not read the log {queue!r}: {error.text}. {GRANT}") from None
    if isinstance(error, Refused) and error.missing:
        raise ConfigurationError(
            f"there is no log {queue!r} on this server: start a service first, which makes it"
        ) from None
