"""Takes copies out of a queue in which they wait, each when its time there is over, and has them stored in the next.

The server could hand them on by itself, by a time to live and an exchange for dead letters. But a server that has just
started hands on before it knows again what is bound to what; what it finds no queue for then, it keeps, and tries again
three minutes later. Here a copy leaves a queue only once the next one has stored it, and is back at once when whoever
took it is gone.

What has to stay for longer is put back: how long a queue is says how many copies wait, and an acknowledgement that is
missing for half an hour ends a channel.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from tidings.brokers.rabbitmq import frames, names
from tidings.brokers.rabbitmq.channel import Channel, Refused
from tidings.brokers.rabbitmq.connection import Connection
from tidings.brokers.rabbitmq.frames import Content
from tidings.errors import BrokerUnavailable

log = logging.getLogger("tidings.rabbitmq")

ANSWER: Final = 10.0
CLOSE: Final = 3.0
PAUSE: Final = 0.2
FAILED: Final = 1.0
LOOK_AGAIN: Final = 5.0
"""Seconds between two looks whether a queue that is gone is there again."""
AT_ONCE: Final = 32
"""How many copies may be with us: they may be large."""
HOLD: Final = 1.0
"""Seconds that a copy may still have to stay for us to wait for it. For longer ones we come back."""
LONGEST: Final = 60.0
"""Seconds after which we look in any case: the first in the queue may have been with another process, which died."""
LATE: Final = 0.1
"""The part of its time after which we look in any case."""


class Mover:
    """Moves on what stands in one queue, from `run` on until `stop`.

    Parameters:
        step: seconds that a copy stays in it.
        move: stores copies where they are to stand next; says of each why it is not stored, or None.
    """

    def __init__(
        self,
        connection: Connection,
        queue: str,
        step: float,
        move: Callable[[Sequence[Content]], Awaitable[Sequence[Exception | None]]],
    ) -> None:
        self.queue = queue
        self.held: list[Content] = []
        """What is with us."""
        self.trouble = ""
        self._connection = connection
        self._look_after = min(max(step * LATE, HOLD), LONGEST)
        self._move = move
        self._more = asyncio.Event()
        self._moving = asyncio.Lock()
        self._cut_off = self._stopping = False
        self._said = ""

    async def run(self) -> None:
        """Come back to the queue, whatever happens."""
        while not self._stopping:
            pause = random.uniform(0.5, 1.0) * PAUSE
            try:
                pause = await self._attend()
                self._said = ""
            except Refused as error:
                pause = PAUSE if error.passing else LOOK_AGAIN
                self._refused(error)
            except BrokerUnavailable as error:
                log.debug("%s cannot be taken from: %s", self.queue, error)
            except Exception:
                log.exception("whoever moves the copies of %s stumbled, and goes on", self.queue)
                pause = FAILED
            self._more.clear()
            await self._wait(pause)

    async def stop(self) -> None:
        """Take nothing more. What is being stored somewhere else is let go of here before this returns."""
        self._stopping = True
        self._more.set()
        try:
            async with asyncio.timeout(CLOSE), self._moving:
                pass
        except TimeoutError:
            log.debug("%s: what is being moved may be there twice", self.queue)

    async def _attend(self) -> float:
        """Move copies for as long as there are some that need not stay for long; returns when to come back."""
        link = await self._connection.ready(LONGEST)
        channel = await link.channel(ANSWER)
        channel.on_closed = lambda why: self._more.set()
        self._cut_off = False
        try:
            tag: str | None = await channel.consume(self.queue, self._take, self._cancelled, ANSWER, prefetch=1)
            self.trouble = ""
            while (left := await self._first(channel)) is not None:
                if left > HOLD:
                    return min(left, self._look_after)
                if tag is not None:
                    await channel.cancel(tag, ANSWER)
                    tag = None
                    await channel.consume(self.queue, self._take, self._cancelled, ANSWER, prefetch=AT_ONCE)
                await self._move_on(channel)
            return 0.0
        finally:
            try:
                await channel.close(CLOSE)
            except BrokerUnavailable:
                pass  # it went with its link
            self.held = []

    def _take(self, content: Content) -> None:
        self.held.append(content)
        self._more.set()

    def _cancelled(self, tag: str) -> None:
        """The server ended it: the queue was removed, or has no leader just now."""
        self._cut_off = True
        self._more.set()

    async def _first(self, channel: Channel) -> float | None:
        """How much longer the first one has to stay, once there is one; None when this is to stop."""
        while not self._stopping:
            if not channel.open:
                raise channel.why
            if self._cut_off:
                raise BrokerUnavailable("the server ended it")
            self._more.clear()
            if self.held:
                return min(_stays(content) for content in self.held)
            await self._wait(LONGEST)
        return None

    async def _wait(self, seconds: float) -> None:
        """Until there is something new, but not for longer than that."""
        if self._stopping:
            return
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                await self._more.wait()
        except TimeoutError:
            pass

    async def _move_on(self, channel: Channel) -> None:
        """Have those stored elsewhere whose time is over; or wait a little, if there are none."""
        over = [content for content in self.held if _stays(content) <= 0]
        if not over:
            await self._wait(min(_stays(content) for content in self.held))
            return
        async with self._moving:
            errors = await self._move(over)
            done = [content for content, error in zip(over, errors, strict=True) if error is None]
            channel.link.send(b"".join(frames.acknowledge(channel.number, content.tag) for content in done))
            tags = {content.tag for content in done}
            self.held = [content for content in self.held if content.tag not in tags]
        if error := next((error for error in errors if error is not None), None):
            self._complain(f"copies of {self.queue} cannot go on, and stay there: {error}")
            self._more.clear()
            await self._wait(FAILED)

    def _refused(self, error: Refused) -> None:
        what = f"copies that wait in {self.queue} cannot be taken: {error}"
        if error.missing:
            what = (
                f"the queue {self.queue} is gone, and with it the copies that waited in it. If that was meant, restart"
                " the service, which makes it anew"
            )
        if not error.passing:
            self.trouble = what
        self._complain(what)

    def _complain(self, what: str) -> None:
        if what != self._said:
            self._said = what
            log.warning("%s", what)


def _stays(content: Content) -> float:
    """How many seconds a copy still has to stay."""
    return names.place_and_time(content.routing_key)[1] - time.time()
