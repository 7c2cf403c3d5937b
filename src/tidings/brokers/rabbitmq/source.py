"""One channel that takes from queues of a position, opened anew whenever it ends, and the tokens of what it brought.

A channel is all or nothing: when it ends, by whatever cause, everything that came by it and is not acknowledged is back
in its queue at once, in its old place, and nothing more can be said about it here.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection, Sequence
from typing import Final, Protocol

from tidings.brokers.rabbitmq import frames
from tidings.brokers.rabbitmq.channel import Channel, Refused
from tidings.brokers.rabbitmq.connection import Connection
from tidings.brokers.rabbitmq.frames import Content
from tidings.errors import BrokerUnavailable

log = logging.getLogger("tidings.rabbitmq")

ANSWER: Final = 10.0
CLOSE: Final = 3.0
PAUSE: Final = 0.2
LOOK_AGAIN: Final = 5.0
"""Seconds between two looks whether a queue that is gone is there again."""
LOOK: Final = 0.02
FOR_LONG: Final = 60.0


class Token:
    """A message that is with us: acknowledged or given back once, over the channel that it came by."""

    __slots__ = ("channel", "content", "given", "is_open", "size", "source")

    def __init__(self, source: Source, channel: Channel, content: Content) -> None:
        self.source = source
        self.channel = channel
        self.content = content
        self.size = len(content.body)
        self.given = False
        """It was handed to the core."""
        self.is_open = True

    @property
    def lives(self) -> bool:
        return self.is_open and self.channel.open


class Owner(Protocol):
    """What a source needs of the feed that it belongs to."""

    def fit(self, most: int) -> int: ...
    def take(self, token: Token) -> None: ...
    def lost(self, source: Source) -> None: ...
    def let_go(self, tokens: Sequence[Token]) -> None: ...
    def release(self, source: Source, releases: Sequence[tuple[Token, float]]) -> bytes: ...


class Source:
    """Takes from some queues over one channel, from `run` on until that is cancelled.

    Parameters:
        queues: each with how many messages may be with us from it.
    """

    def __init__(self, owner: Owner, connection: Connection, name: str, queues: Sequence[tuple[str, int]]) -> None:
        self.name = name
        self.queues = queues
        self.trouble = ""
        self.channel: Channel | None = None
        self.fresh = True
        """Nothing came yet by this channel."""
        self.owner = owner
        self._connection = connection
        self._tags: list[str] = []
        self._open: dict[int, Token] = {}
        """What came by the channel and is not settled, in its order."""
        self._ended = asyncio.Event()
        self._asked: list[int] = []
        self._narrowing: asyncio.Task[None] | None = None
        self._hushed = False
        """For good."""

    async def run(self) -> None:
        """Keep a channel open, whatever happens."""
        while True:
            pause = random.uniform(0.5, 1.0) * PAUSE
            try:
                await self._attach()
                await self._ended.wait()
            except Refused as error:
                pause = PAUSE if error.passing else LOOK_AGAIN
                self._refused(error)
            except BrokerUnavailable as error:
                log.debug("%s cannot be taken from: %s", self.name, error)
            finally:
                await self.detach()
            await asyncio.sleep(pause if self.trouble else min(pause, PAUSE))

    async def _attach(self) -> None:
        link = await self._connection.ready(FOR_LONG)
        self._ended.clear()
        self.fresh = True
        channel = await link.channel(ANSWER)
        self.channel = channel
        channel.on_closed = self._closed
        await self._consume(channel)
        if self.trouble:
            log.warning("%s can be taken from again", self.name)
        self.trouble = ""

    async def _consume(self, channel: Channel) -> None:
        self._tags = []
        self._asked = [self.owner.fit(most) for _, most in self.queues]
        for (queue, _), wanted in zip(self.queues, self._asked, strict=True):
            self._tags.append(await channel.consume(queue, self._take, self._cancelled, ANSWER, prefetch=wanted))

    def ask_for_fewer(self) -> None:
        """Take nothing more until half of what is with us is settled, and then with another limit."""
        if self._asked == [self.owner.fit(most) for _, most in self.queues]:
            return
        if self._narrowing is None or self._narrowing.done():
            self._narrowing = asyncio.create_task(self._narrow(), name=f"tidings-rabbitmq-narrow-{self.name}")

    async def _narrow(self) -> None:
        channel = self.channel
        await self.hush()
        try:
            enough = len(self._open) // 2
            while channel is not None and channel.open and len(self._open) > enough:  # noqa: ASYNC110  # settled by others
                await asyncio.sleep(LOOK)
            if channel is not None and channel is self.channel and not self._hushed:
                await self._consume(channel)
        except BrokerUnavailable as error:
            log.debug("%s is taken from anew: %s", self.name, error)
            self._ended.set()

    def _refused(self, error: Refused) -> None:
        trouble = f"the server does not let {self.name} be taken from: {error}"
        if error.missing:
            trouble = (
                f"a queue of {self.name} is gone, and with it what stood in it: {error.text}. If that was meant,"
                " restart the service, which makes it anew"
            )
        if trouble != self.trouble:
            log.error("%s", trouble)
        self.trouble = trouble

    def _cancelled(self, tag: str) -> None:
        """The server ended it: the queue was removed, or has no leader just now (trap 109)."""
        self._ended.set()

    def _closed(self, why: BrokerUnavailable) -> None:
        if isinstance(why, Refused) and self._open:  # of a queue that is gone it is said elsewhere, and once
            log.warning("%s: the server closed a channel, and gives back what was with us: %s", self.name, why)
        self.drop()

    def drop(self) -> None:
        """All that came by the channel is not ours any more; another one is to be opened."""
        self._ended.set()
        gone, self._open = self._open, {}
        for token in gone.values():
            token.is_open = False
        self.owner.lost(self)

    def _take(self, content: Content) -> None:
        channel = self.channel
        if channel is not None and not self._ended.is_set():  # else it goes back with its channel
            token = self._open[content.tag] = Token(self, channel, content)
            self.owner.take(token)

    async def hush(self, *, for_good: bool = False) -> None:
        """Take nothing more; what is with us stays ours."""
        self._hushed = self._hushed or for_good
        channel, self._tags, tags = self.channel, [], self._tags
        if channel is None:
            return
        try:
            await asyncio.gather(*(channel.cancel(tag, ANSWER) for tag in tags))
        except BrokerUnavailable as error:
            log.debug("%s was not told to stop: %s", self.name, error)

    async def detach(self) -> None:
        """Let go of the channel, and so of everything that came by it."""
        channel, self.channel = self.channel, None
        if self._narrowing is not None:
            self._narrowing.cancel()
        if channel is None:
            return
        self.drop()
        try:
            await channel.close(CLOSE)
        except BrokerUnavailable as error:
            log.debug("%s was not closed properly: %s", self.name, error)

    # ── settling ────────────────────────────────────────────────────────────────────────────────────────────────────

    def acknowledge(self, tokens: Collection[Token]) -> bytes:
        """What says that these need no further delivery: in one word as far as nothing else came before them."""
        done = {token.content.tag for token in tokens}
        number = next(iter(tokens)).channel.number
        last = 0
        for tag in self._open:
            if tag not in done:
                break
            last = tag
        said = [frames.acknowledge(number, last, multiple=True)] if last else []
        said += [frames.acknowledge(number, tag) for tag in done if tag > last]
        self._close(tokens)
        return b"".join(said)

    def give_back(self, tokens: Collection[Token]) -> bytes:
        """What says that these are to be delivered again; the last one first, so that each finds its place."""
        number = next(iter(tokens)).channel.number
        tags = sorted(token.content.tag for token in tokens)
        self._close(tokens)
        return b"".join(frames.give_back(number, tag) for tag in tags)

    def _close(self, tokens: Collection[Token]) -> None:
        for token in tokens:
            token.is_open = False
            self._open.pop(token.content.tag, None)
