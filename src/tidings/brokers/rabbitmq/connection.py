"""A connection that heals itself: whenever a link is lost, or does not answer any more, the next one is built.

It asks the server a question every second. Each answer proves that the server had heard us when it was asked, and from
then on it waits for a whole heartbeat before it gives what we hold to others: `sure_until` says how long that is.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Callable
from typing import Final

from tidings.brokers.rabbitmq.channel import REFUSED, Channel, Refused
from tidings.brokers.rabbitmq.link import Link
from tidings.brokers.rabbitmq.options import Options
from tidings.errors import BrokerUnavailable, ConfigurationError, TidingsError

log = logging.getLogger("tidings.rabbitmq")

TICK: Final = 0.5
ASK_EVERY: Final = 1.0
SILENT_TICKS: Final = 16
"""How many looks the server may be silent. Looks, not seconds: a blocked loop is not its fault."""
SURE: Final = 0.8
"""The part of a heartbeat for which an answer proves that the server does not give up on us."""
ANSWER: Final = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 3.0
SAY_AGAIN: Final = 60.0
"""Seconds until it is logged once more why there is no connection, while nothing changes."""


class Connection:
    """One supervised connection. `on_up` is called for each new link, `on_down` when one is gone."""

    def __init__(self, options: Options, name: str) -> None:
        self.options = options
        self.name = name
        self.on_up: list[Callable[[Link], None]] = []
        self.on_down: list[Callable[[Link], None]] = []
        self.sure_until = 0.0
        """Until when the server has, for certain, not given to others what we hold; monotonic seconds."""
        self.reconnects = 0
        """How often it was made anew after it was lost."""
        self._link: Link | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._closing = False
        self._why = "not connected yet"
        self._since = time.monotonic()
        self._servers = list(options.servers)
        random.shuffle(self._servers)

    @property
    def link(self) -> Link | None:
        """The link that stands now, if one does."""
        return self._link if self._link is not None and self._link.up else None

    @property
    def trouble(self) -> str:
        if (link := self.link) is not None:
            where = self.options.where
            return f"{where} takes no messages: {link.blocked}. Give it memory or disk" if link.blocked else ""
        if self._closing or self._task is None:
            return "not connected"
        if self._task.done():
            return "the supervision of the connection ended: restart the process"
        return f"no connection to {self.options.where} for {time.monotonic() - self._since:.0f} s: {self._why}"

    async def start(self) -> Link:
        """Make the first connection.

        Raises:
            BrokerUnavailable: no server can be reached in time.
            ConfigurationError: a server was reached and will not have us as we are.
        """
        async with self._starting:  # feeds may start side by side, and share one link
            if self._task is None:
                await self._first()
                self._task = asyncio.create_task(self._supervise(), name=f"tidings-rabbitmq-{self.name}")
        return await self.ready(self.options.connect_timeout)

    async def _first(self) -> None:
        end = time.monotonic() + self.options.connect_timeout
        pause = FIRST_PAUSE
        while True:
            try:
                return await self._connect(max(end - time.monotonic(), 0.2))
            except BrokerUnavailable:
                if time.monotonic() + pause > end:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.5)

    async def ready(self, timeout: float) -> Link:
        """The link, waited for if need be; raises BrokerUnavailable when there is none in time."""
        try:
            async with asyncio.timeout(timeout):
                while (link := self.link) is None:
                    if self._closing:
                        raise BrokerUnavailable("the connection was closed")
                    self._changed.clear()
                    await self._changed.wait()
                return link
        except TimeoutError:
            raise BrokerUnavailable(self.trouble) from None

    async def close(self) -> None:
        """End, and never come back. Safe to call twice."""
        self._closing = True
        self._changed.set()
        tasks = [task for task in (self._task, self._asking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
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
                await self._watch()
            except Exception:
                # Nothing in here should raise; if it does, the next round starts from the beginning.
                log.exception("the supervision of the connection stumbled and goes on")
                await asyncio.sleep(1.0)

    async def _reconnect(self) -> None:
        pause, said, at = FIRST_PAUSE, "", 0.0
        while not self._closing:
            # Full jitter: what was cut off together must not come back together (traps 53 and 156).
            await asyncio.sleep(random.uniform(0.0, pause))
            try:
                return await self._connect(self.options.connect_timeout)
            except TidingsError as error:
                self._why = str(error)
                if self._why != said or time.monotonic() - at > SAY_AGAIN:
                    said, at = self._why, time.monotonic()
                    refused = isinstance(error, ConfigurationError)  # which a person has to mend
                    level = logging.ERROR if refused else logging.WARNING
                    log.log(level, "%s is still not connected: %s", self.name, said)
                pause = min(pause * 2, LONGEST_PAUSE)

    async def _watch(self) -> None:
        """Return when the link is gone; a silent one is dropped (trap 158)."""
        link = self._link
        if link is None:
            return
        heard, quiet, ticks = link.heard, 0, 0
        while link.up:
            self._changed.clear()
            try:
                async with asyncio.timeout(TICK):
                    await self._changed.wait()
            except TimeoutError:
                ticks += 1
            quiet = 0 if link.heard != heard else quiet + 1
            heard = link.heard
            if quiet > SILENT_TICKS:
                link.abandon(f"the server was silent for {quiet * TICK:.0f} s")
            elif ticks % 2 == 0:
                link.beat()
                self._ask(link)

    def _ask(self, link: Link) -> None:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._question(link), name=f"tidings-rabbitmq-ask-{self.name}")

    async def _question(self, link: Link) -> None:
        asked = time.monotonic()
        try:
            await self._control.round_trip(ANSWER)
        except BrokerUnavailable:
            return
        if link is self._link:
            self.sure_until = max(self.sure_until, asked + SURE * link.heartbeat)

    async def _connect(self, timeout: float) -> None:
        host, port = self._servers[0]
        self._servers.append(self._servers.pop(0))
        link = Link(self.options, self.name, self._lost)
        asked = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                await link.open(host, port)
                control: Channel = await link.channel(timeout)
        except BaseException as error:
            link.abandon("never stood")
            if not isinstance(error, Exception):
                raise
            await link.gone()
            raise explained(error, f"{self.options.scheme}://{host}:{port}", self.options) from None
        again = self._link is not None
        self._link, self._control = link, control
        self.sure_until = asked + SURE * link.heartbeat
        self._changed.set()
        if again:
            self.reconnects += 1
            log.info("%s is connected again to %s", self.name, self.options.where)
        for each in self.on_up:
            try:
                each(link)
            except BrokerUnavailable:
                break  # it is gone already: the next one is tried
        if not link.up:
            raise BrokerUnavailable("the connection was lost while it was set up")

    def _lost(self, link: Link, why: str) -> None:
        if link is not self._link:
            return
        self._why, self._since = why, time.monotonic()
        self.sure_until = 0.0
        if not self._closing:
            log.warning("%s lost the connection to %s: %s", self.name, self.options.where, why)
        self._changed.set()
        for each in self.on_down:
            each(link)


def explained(error: Exception, where: str, options: Options) -> TidingsError:
    """What a failed attempt to connect means, and what to do about it; never with a secret."""
    if isinstance(error, Refused):
        if error.code == REFUSED:
            return ConfigurationError(
                f"{where} refused the user {options.user!r}: check user and password. (guest may come from the server's"
                " own host only)"
            )
        if error.code == 530:
            return ConfigurationError(
                f"{where} does not let {options.user!r} into the virtual host {options.vhost!r}. Is it there, and may"
                " the user in? rabbitmqctl list_vhosts and rabbitmqctl list_permissions say"
            )
        return BrokerUnavailable(f"{where} closed the connection: {error}")
    if isinstance(error, TidingsError):
        return error
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        return ConfigurationError(
            f"{where}: no TLS connection could be made: {reason}. Name the certificates to trust with ?tls_ca=…, the"
            " client's own with tls_cert=… and tls_key=…, and another name on the certificate with tls_name=…"
        )
    if isinstance(error, TimeoutError):
        return BrokerUnavailable(f"no answer from {where} in time. {_IS_IT_UP}")
    if isinstance(error, ConnectionRefusedError):
        return BrokerUnavailable(f"nothing listens on {where}. {_IS_IT_UP}")
    if isinstance(error, OSError):
        return BrokerUnavailable(f"{where} cannot be reached: {error.strerror or type(error).__name__}. {_IS_IT_UP}")
    return BrokerUnavailable(f"{where} answered with what is no RabbitMQ's greeting ({type(error).__name__})")


_IS_IT_UP: Final = "Is the server running, and is the address right?"
