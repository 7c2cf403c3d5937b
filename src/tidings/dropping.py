"""Types that a position takes, and that the code which started last does not ask for.

Newer code may have been rolled back, or an old process may have started again in the middle of a deployment: the two
look alike. So before a type is taken away the living are asked. A note ``drop/<type>`` stands for a minute, which all
processes of the handler hear of; one that asks for the type takes it back. Where nobody did, it is nobody's business
from then on.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from typing import Final

from tidings.errors import WorldError
from tidings.notes import Notes
from tidings.ports import Broker
from tidings.rolling import Remembers

log = logging.getLogger("tidings.dropping")

DROP: Final = "drop/"
STANDS: Final = 60.0
"""Seconds for which the living are asked."""
LONGEST: Final = 120.0
"""Seconds until they are asked again, at most: each time that somebody answered it is twice as long. What comes of such
a type waits meanwhile, and in order so does what has its key."""
LOOK: Final = 10.0
"""Seconds between two looks at what became of it, and before one whether a type was taken away at the same moment."""


class Dropping:
    """Of one handler in this process, which asks for some types: takes away others, and sees that these stay."""

    def __init__(self, position: str, asked: Iterable[str], broker: Broker) -> None:
        self._position = position
        self._asked = frozenset(asked)
        self._broker = broker if isinstance(broker, Remembers) else None
        self._notes = Notes(broker, position)
        self._surplus: frozenset[str] | None = None
        """What the position took when this process started, and it does not ask for; None until that is known."""
        self._mine = secrets.token_hex(16)
        self._since: float | None = None
        """When the living were asked, while they are."""
        self._not_before = 0.0
        self._pause = STANDS
        self._doubt = asyncio.Event()

    async def start(self) -> None:
        """See what the position takes before anybody else can have changed that.

        Where the broker went away in this moment, handlers may ask it one behind the other: none waits for all.
        """
        if self._broker is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._try(self._learn(self._broker))

    def begin(self) -> None:
        """The notes are heard from now on; what was written before that may have been missed.

        Others may have been cut off as well, and not be back yet: whoever was being asked is asked anew.
        """
        self._since = None
        self._doubt.set()

    async def heard(self, name: str, text: str) -> None:
        """Take back a note that would take away what this process asks for.

        Where it was taken back already, that is all that is heard of it where the last text alone is kept.

        Raises:
            WorldError: that is not stored.
        """
        if name.startswith(DROP) and name.removeprefix(DROP) in self._asked and self._broker is not None:
            if text:
                await self._notes.write({name: ""})
            self._doubt.set()  # whoever wrote it may have acted on it in this moment, or long ago

    async def run(self) -> None:
        """Supervised. There is mostly nothing to do, and then nobody is asked anything."""
        while self._broker is not None:
            if not self._surplus:
                await self._doubt.wait()
            await asyncio.sleep(LOOK)
            await self._try(self._look(self._broker))

    async def _try(self, step: Awaitable[object]) -> None:
        try:
            await step
        except WorldError as error:
            log.debug("%s: which types it takes is looked at again in %g s: %s", self._position, LOOK, error)

    async def _learn(self, broker: Remembers) -> frozenset[str]:
        taken = frozenset(await broker.taken(self._position))
        if self._surplus is None:
            self._surplus = taken - self._asked
        return taken

    async def _look(self, broker: Remembers) -> None:
        if self._doubt.is_set():
            self._doubt.clear()  # one that comes from now on is another
            try:
                await self._keep(broker)
            except BaseException:
                self._doubt.set()
                raise
        if self._surplus:
            self._surplus = await self._ask(broker, self._surplus)

    async def _keep(self, broker: Remembers) -> None:
        """Take again what this process asks for, where it was taken away."""
        taken = await self._learn(broker)
        if missing := self._asked - taken:
            await broker.remember(self._position, taken | self._asked)
            log.warning(
                "%s: %s had been taken from the handler, and is its own again. What of it was published meanwhile"
                " may have come to nobody: replay it",
                self._position,
                _named(missing),
            )

    async def _ask(self, broker: Remembers, surplus: frozenset[str]) -> frozenset[str]:
        """Ask the living, or look what they answered; returns what is left."""
        now = time.monotonic()
        if self._since is None:
            if now >= self._not_before:
                await self._notes.write({DROP + one: self._mine for one in sorted(surplus)})
                self._since = now
            return surplus
        if now < self._since + STANDS:
            return surplus
        notes = await self._notes.read()
        gone = frozenset(one for one in surplus if notes.get(DROP + one) == self._mine)
        if gone:
            taken = frozenset(await broker.taken(self._position))
            if taken & gone:
                await broker.remember(self._position, taken - gone)
            log.warning("%s: %s is nobody's business any more: no process asks for it", self._position, _named(gone))
            await self._notes.write({DROP + one: "" for one in sorted(gone)})
        self._since, self._not_before = None, now + self._pause
        self._pause = min(2 * self._pause, LONGEST)
        return surplus - gone


def _named(types: Iterable[str]) -> str:
    return ", ".join(sorted(types))
