"""A connection that heals itself: whenever a link is lost, or does not answer any more, the next one is built.

Nothing here gives up. What cannot be healed from inside (a wrong password after a rotation, a server that stays away)
is told in `trouble`, and tried again until it works or the connection is closed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import nats.errors

from tidings.brokers.nats.link import Link, PlainServer
from tidings.brokers.nats.login import Login, remedy, who
from tidings.brokers.nats.options import Options
from tidings.errors import BrokerUnavailable, ConfigurationError, TidingsError

log = logging.getLogger("tidings.nats")

PING_EVERY = 4.0
"""Seconds without a byte from the server until it is asked whether it is there."""
PING_TICKS = 8
"""How many looks, half a second apart, it has to answer. Looks, not seconds: a blocked loop is not its fault."""
TICK = 0.5
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 3.0
SAY_AGAIN = 60.0
"""Seconds until it is logged once more why there is no connection, while nothing changes."""
STILL_NOT: Final = "still not connected"


class Connection:
    """One supervised connection. `on_up` is called for each new link, `on_down` when one is gone."""

    def __init__(self, options: Options, name: str, login: Login | None = None) -> None:
        self.options = options
        self._login = login
        self.name = name
        self.on_up: list[Callable[[Link], None]] = []
        self.on_down: list[Callable[[Link], None]] = []
        self._link: Link | None = None
        self._up, self._down = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._closing = False
        self._why = "not connected yet"
        self._since = time.monotonic()
        self.reconnects = 0
        """How often it was made anew after it was lost."""
        self._servers = list(options.servers)
        random.shuffle(self._servers)

    @property
    def link(self) -> Link | None:
        """The link that stands now, if one does."""
        return self._link if self._link is not None and self._link.up else None

    @property
    def trouble(self) -> str:
        if self.link is not None:
            return self.link.denied and f"the server refused a subject: {self.link.denied}"
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
                self._task = asyncio.create_task(self._supervise(), name=f"tidings-nats-{self.name}")
        return await self.ready(self.options.connect_timeout)

    async def _first(self) -> None:
        end = time.monotonic() + self.options.connect_timeout
        pause = FIRST_PAUSE
        while True:
            try:
                return await self._connect(min(self.options.connect_timeout, max(end - time.monotonic(), 0.2)))
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
                await self._connect(self.options.connect_timeout)
            except TidingsError as error:
                if str(error) != said or time.monotonic() - at > SAY_AGAIN:
                    said, at = str(error), time.monotonic()
                    refused = isinstance(error, ConfigurationError)  # which a person has to mend
                    log.log(logging.ERROR if refused else logging.WARNING, "%s is %s: %s", self.name, STILL_NOT, said)
                self._why = said
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                self.reconnects += 1
                log.info("%s is connected again to %s", self.name, self.options.where)
                return

    async def _watch(self) -> None:
        """Return when the link is gone; a silent one is dropped (traps 46, 47 and 158)."""
        link = self._link
        if link is None:
            return
        heard, quiet, asked = link.heard, 0.0, 0
        while link.up:
            try:
                async with asyncio.timeout(TICK):
                    await self._down.wait()
            except TimeoutError:
                pass
            if link.heard != heard:
                heard, quiet, asked = link.heard, 0.0, 0
                link.heard_at = time.monotonic()
                continue
            quiet += TICK
            if asked:
                asked += 1
                if asked > PING_TICKS:
                    link.abandon(f"the server was silent for {quiet:.0f} s")
            elif quiet >= PING_EVERY and link.up:
                asked = 1
                link.ping()

    async def _connect(self, timeout: float) -> None:
        host, port = self._servers[0]
        self._servers.append(self._servers.pop(0))
        link = Link(self.options, self.name, self._on_lost, self._login)
        try:
            async with asyncio.timeout(timeout + 1.0):
                await _not_swallowed(link.open(host, port))
        except BaseException as error:
            link.abandon("never stood")
            if not isinstance(error, Exception):
                raise
            where = f"{self.options.scheme}://{host}:{port}"
            raise _explained(error, where, self.options, self._login) from None
        self._servers += [known for known in link.known_servers if known not in self._servers]
        if not link.up:
            # Lost in the moment in which it stood, when it was not ours yet: nobody was told, and nobody must be.
            raise BrokerUnavailable(f"the connection was lost while it was set up: {link.ended}")
        self._link = link
        self._down.clear()
        self._up.set()
        for each in self.on_up:
            _call(each, link)
        if not link.up:
            raise BrokerUnavailable("the connection was lost while it was set up")

    def _on_lost(self, link: Link, why: str) -> None:
        if link is not self._link:
            return
        self._why, self._since = why, time.monotonic()
        if not self._closing:
            log.warning("%s lost the connection to %s: %s", self.name, self.options.where, why)
        self._up.clear()
        self._down.set()
        for each in self.on_down:
            _call(each, link)


MOST_SWALLOWED: Final = 50
"""Cancellations in a row that the library may swallow: it has a handful of steps."""


async def _not_swallowed(call: Coroutine[Any, Any, None]) -> None:
    """Await what stands on `asyncio.wait_for`, which up to Python 3.11 swallows a cancellation (trap 151).

    It does so where the cancellation comes together with what was waited for, and then goes on to the next step: so it
    is cancelled until it has ended.
    """
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        for _ in range(MOST_SWALLOWED):
            task.cancel()
            if (await asyncio.wait({task}, timeout=0.1))[0]:
                break
        if task.done() and not task.cancelled():
            task.exception()  # seen: the cancellation counts
        raise
    task.result()


def _call(told: Callable[[Link], None], link: Link) -> None:
    """Tell somebody of a link. Whoever stumbles over it gets another one: nothing may stay half set up."""
    try:
        told(link)
    except BrokerUnavailable as error:
        link.abandon(str(error))
    except Exception:
        log.exception("the connection could not be set up; the next one is tried")
        link.abandon("it could not be set up")


def _explained(error: Exception, where: str, options: Options, login: Login | None) -> TidingsError:
    """What a failed attempt to connect means, and what to do about it; never with a secret."""
    if isinstance(error, TidingsError):
        return error
    if isinstance(error, PlainServer):
        return ConfigurationError(
            f"{where} speaks no TLS: switch it on there, or connect with nats:// instead of tls://"
        )
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        return ConfigurationError(
            f"{where}: no TLS connection could be made: {reason}. Name the certificates to trust with ?tls_ca=…, the"
            " client's own with tls_cert=… and tls_key=…, and another name on the certificate with tls_name=…"
        )
    if isinstance(error, nats.errors.Error) and any(word in str(error).lower() for word in _REFUSED):
        return ConfigurationError(f"{where} refused {who(options, login)}: {remedy(options, login)}")
    if isinstance(error, TimeoutError):
        return BrokerUnavailable(f"no answer from {where} in time. {_IS_IT_UP}")
    if isinstance(error, ConnectionRefusedError):
        return BrokerUnavailable(f"nothing listens on {where}. {_IS_IT_UP}")
    if isinstance(error, OSError):
        return BrokerUnavailable(f"{where} cannot be reached: {error.strerror or type(error).__name__}. {_IS_IT_UP}")
    if isinstance(error, nats.errors.Error):
        return BrokerUnavailable(f"{where} answered with an error: {str(error).removeprefix('nats: ')}. {_IS_IT_UP}")
    if options.creds or options.nkey:
        return ConfigurationError(
            f"{options.creds or options.nkey} holds no credentials that can be used ({type(error).__name__}): it must"
            " be the file that nsc or the nats tool wrote"
        )
    return BrokerUnavailable(f"{where} answered with what is no NATS server's greeting ({type(error).__name__})")


_REFUSED = ("authorization violation", "authentication", "user authentication")
_IS_IT_UP = "Is the server running, and is the address right?"
