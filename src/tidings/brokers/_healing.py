"""A connection that heals itself: whenever its link is lost, or does not answer any more, the next one is made.

Nothing here gives up. What cannot be healed from inside (a wrong password after a rotation, a server that stays away)
is told in `trouble`, and tried again until it works or the connection is closed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

from tidings.errors import BrokerUnavailable, ConfigurationError, TidingsError

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 3.0
SAY_AGAIN = 60.0
"""Seconds until it is logged once more why there is no connection, while nothing changes."""
STUMBLED: Final = 1.0


class Link(Protocol):
    """What passes bytes until it is lost, and never comes back then."""

    up: bool
    ended: str
    """Why it is not up any more."""

    def abandon(self, why: str) -> None: ...

    async def close_gently(self) -> None: ...


L = TypeVar("L", bound=Link)


class Healing(ABC, Generic[L]):
    """One supervised connection. `on_up` is called for each new link, `on_down` when one is gone.

    A broker says how a link is made (`_make`) and how it is seen that one does not answer any more (`_watch`). A link
    tells of its end by `_lost`.

    Parameters:
        where: the servers, as they are called in messages.
        connect_timeout: seconds that an attempt to connect may take.
        log: whose log it is.
    """

    def __init__(
        self, name: str, where: str, servers: Sequence[tuple[str, int]], connect_timeout: float, log: logging.Logger
    ) -> None:
        self.name = name
        self.on_up: list[Callable[[L], None]] = []
        self.on_down: list[Callable[[L], None]] = []
        self.reconnects = 0
        """How often it was made anew after it was lost."""
        self._where = where
        self._servers = list(servers)
        random.shuffle(self._servers)
        self._connect_timeout = connect_timeout
        self._log = log
        self._link: L | None = None
        self._up, self._down = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._closing = False
        self._why = "not connected yet"
        self._since = time.monotonic()

    @abstractmethod
    async def _make(self, host: str, port: int, timeout: float) -> L:
        """A link that stands. Raises what is wrong, for a person; nothing of the attempt is left then."""

    @abstractmethod
    async def _watch(self, link: L) -> None:
        """Return when the link is gone; abandon one that is silent."""

    def _hindered(self, link: L) -> str:
        """Why a link that stands does not do what it should, or nothing."""
        return ""

    @property
    def link(self) -> L | None:
        """The link that stands now, if one does."""
        return self._link if self._link is not None and self._link.up else None

    @property
    def trouble(self) -> str:
        """Why it cannot be used now, or nothing."""
        if (link := self.link) is not None:
            return self._hindered(link)
        if self._closing or self._task is None:
            return "not connected"
        if self._task.done():
            return "the supervision of the connection ended: restart the process"
        return f"no connection to {self._where} for {time.monotonic() - self._since:.0f} s: {self._why}"

    async def start(self) -> L:
        """Make the first connection.

        Raises:
            BrokerUnavailable: no server can be reached in time.
            ConfigurationError: a server was reached and will not have us as we are.
        """
        async with self._starting:  # feeds may start side by side, and share one link
            if self._task is None:
                await self._first()
                self._task = asyncio.create_task(self._supervise(), name=f"{self._log.name} {self.name}")
        return await self.ready(self._connect_timeout)

    async def _first(self) -> None:
        end = time.monotonic() + self._connect_timeout
        pause, tried = FIRST_PAUSE, 0
        while True:
            # Each server gets its part of the time: one that hangs must not take that of those behind it.
            untried = max(1, len(self._servers) - tried)
            tried += 1
            try:
                return await self._connect(max((end - time.monotonic()) / untried, 0.2))
            except BrokerUnavailable:
                if time.monotonic() + pause > end:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.5)

    async def ready(self, timeout: float) -> L:
        """The link, waited for if need be; raises BrokerUnavailable when there is none in time."""
        try:
            async with asyncio.timeout(timeout):
                while (link := self.link) is None:
                    if self._closing:
                        raise BrokerUnavailable("the connection was closed")
                    self._up.clear()  # to wait for an event that is set gives nobody else a turn
                    await self._up.wait()
                return link
        except TimeoutError:
            raise BrokerUnavailable(self.trouble) from None

    async def close(self) -> None:
        """End, and never come back. Safe to call twice."""
        self._closing = True
        self._up.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        link, self._link = self._link, None
        if link is not None:
            await link.close_gently()

    # ── supervision ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _supervise(self) -> None:
        try:
            await self._keep_up()
        finally:
            if not self._closing and self._link is not None:  # the loop ends, and nobody has said goodbye
                self._link.abandon("nobody looks after it any more")

    async def _keep_up(self) -> None:
        while not self._closing:
            try:
                if self.link is None:
                    await self._reconnect()
                if (link := self._link) is not None:
                    await self._watch(link)
            except Exception:
                # Nothing in here should raise; if it does, the next round starts from the beginning.
                self._log.exception("the supervision of the connection stumbled and goes on")
                await asyncio.sleep(STUMBLED)

    async def _reconnect(self) -> None:
        pause, said, at = FIRST_PAUSE, "", 0.0
        while not self._closing:
            # Full jitter: what was cut off together must not come back together (traps 53 and 156).
            await asyncio.sleep(random.uniform(0.0, pause))
            try:
                await self._connect(self._connect_timeout)
            except TidingsError as error:
                if str(error) != said or time.monotonic() - at > SAY_AGAIN:
                    said, at = str(error), time.monotonic()
                    refused = isinstance(error, ConfigurationError)  # which a person has to mend
                    level = logging.ERROR if refused else logging.WARNING
                    self._log.log(level, "%s is still not connected: %s", self.name, said)
                self._why = said
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                self.reconnects += 1
                self._log.info("%s is connected again to %s", self.name, self._where)
                return

    async def _connect(self, timeout: float) -> None:
        host, port = self._servers[0]
        self._servers.append(self._servers.pop(0))
        link = await self._make(host, port, timeout)
        if not link.up:
            # Lost in the moment in which it stood, when it was not ours yet: nobody was told, and nobody must be.
            raise BrokerUnavailable(f"the connection was lost while it was set up: {link.ended}")
        self._link = link
        self._down.clear()
        self._up.set()
        for each in self.on_up:
            self._tell(each, link)
        if not link.up:
            raise BrokerUnavailable("the connection was lost while it was set up")

    def _lost(self, link: L, why: str) -> None:
        """A link has ended; one that never stood is nobody's."""
        if link is not self._link:
            return
        self._why, self._since = why, time.monotonic()
        if not self._closing:
            self._log.warning("%s lost the connection to %s: %s", self.name, self._where, why)
        self._up.clear()
        self._down.set()
        for each in self.on_down:
            self._tell(each, link)

    def _tell(self, told: Callable[[L], None], link: L) -> None:
        """Tell somebody of a link. Whoever stumbles over it gets another one: nothing may stay half set up."""
        try:
            told(link)
        except BrokerUnavailable as error:
            link.abandon(str(error))
        except Exception:
            self._log.exception("the connection could not be set up; the next one is tried")
            link.abandon("it could not be set up")
