"""The connection to a server, supervised: how its link is made, and how it is seen that it does not answer."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl
import time
from collections.abc import Coroutine
from typing import Any, Final

import nats.errors

from tidings.brokers._healing import Healing
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


class Connection(Healing[Link]):
    """One supervised connection."""

    def __init__(self, options: Options, name: str, login: Login | None = None) -> None:
        super().__init__(name, options.where, options.servers, options.connect_timeout, log)
        self.options = options
        self._login = login
        self._names: dict[str, str] = {}
        """What is to stand on the certificates of hosts of which a server told the number alone: its own name."""

    def _hindered(self, link: Link) -> str:
        return f"the server refused a subject: {link.denied}" if link.denied else ""

    async def _make(self, host: str, port: int, timeout: float) -> Link:
        link = Link(self.options, self.name, self._lost, self._login)
        try:
            async with asyncio.timeout(timeout + 1.0):
                await _not_swallowed(link.open(host, port, timeout, self._names.get(host)))
        except BaseException as error:
            if isinstance(error, OSError) and (said := link.last_words()):
                error = nats.errors.Error(said)
            silent = link.silent
            link.abandon("never stood")
            if not isinstance(error, Exception):
                raise
            where = f"{self.options.scheme}://{host}:{port}"
            raise _explained(error, where, self.options, self._login, silent=silent) from None
        return link

    def _told_by(self, link: Link) -> None:
        """Try in future what the URL names, and what the cluster told last: servers go, and others come."""
        if not link.told:
            return
        ours = self.options.servers
        self._servers = [one for one in self._servers if one in ours or one in link.told]
        self._servers += [one for one in link.told if one not in self._servers]
        told = {host for host, _ in link.told if is_number(host)} - {host for host, _ in ours}
        self._names = {} if is_number(link.tls_name) else dict.fromkeys(told, link.tls_name)

    async def _watch(self, link: Link) -> None:
        """Return when the link is gone; a silent one is dropped (traps 46, 47 and 158)."""
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
        self._told_by(link)


def is_number(host: str) -> bool:
    """Whether it is an IP address, and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


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


def _explained(
    error: Exception, where: str, options: Options, login: Login | None, *, silent: bool = False
) -> TidingsError:
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
    if isinstance(error, TimeoutError) and silent:
        return BrokerUnavailable(
            f"whoever listens on {where} says nothing: a server that hangs, or no port for clients (4222), but another"
            " such as that of the monitoring (8222), or one where TLS begins before the server speaks (?tls_first=1)"
        )
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
