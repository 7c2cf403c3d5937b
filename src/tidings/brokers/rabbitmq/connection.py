"""The connection to a server, supervised: how its link is made, and what its answers prove.

It asks the server a question every second. Each answer proves that the server had heard us when it was asked, and from
then on it waits for a whole heartbeat before it gives what we hold to others: `sure_until` says how long that is.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from typing import Final

from tidings.brokers._address import address
from tidings.brokers._healing import Healing
from tidings.brokers.rabbitmq.channel import REFUSED, Channel, Refused
from tidings.brokers.rabbitmq.link import IS_IT_RABBIT, Link
from tidings.brokers.rabbitmq.options import EXAMPLE, PORTS, Options
from tidings.errors import BrokerUnavailable, ConfigurationError, TidingsError

log = logging.getLogger("tidings.rabbitmq")

TICK: Final = 0.5
ASK_EVERY: Final = 2
"""Looks from one question to the next."""
SILENT_TICKS: Final = 16
"""How many looks the server may be silent. Looks, not seconds: a blocked loop is not its fault."""
SURE: Final = 0.8
"""The part of a heartbeat for which an answer proves that the server does not give up on us."""
ANSWER: Final = 60.0


class Connection(Healing[Link]):
    """One supervised connection."""

    def __init__(self, options: Options, name: str) -> None:
        super().__init__(name, options.where, options.servers, options.connect_timeout, log)
        self.options = options
        self.sure_until = 0.0
        """Until when the server has, for certain, not given to others what we hold; monotonic seconds."""
        self._asking: asyncio.Task[None] | None = None

    def _hindered(self, link: Link) -> str:
        return f"{self._where} takes no messages: {link.blocked}. Give it memory or disk" if link.blocked else ""

    async def _make(self, host: str, port: int, timeout: float) -> Link:
        link = Link(self.options, self.name, self._lost)
        asked = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                await link.open(host, port)
                self._control: Channel = await link.channel(timeout)
        except BaseException as error:
            link.abandon("never stood")
            if not isinstance(error, Exception):
                raise
            await link.gone()
            if isinstance(error, TimeoutError) and link.stood:
                error = BrokerUnavailable(f"it took the connection and says nothing. Does it hang? {IS_IT_RABBIT}")
            raise explained(error, f"{self.options.scheme}://{address(host, port)}", self.options) from None
        self.sure_until = asked + SURE * link.heartbeat
        return link

    async def close(self) -> None:
        """End, and never come back. Safe to call twice."""
        await super().close()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _watch(self, link: Link) -> None:
        """Return when the link is gone; a silent one is dropped (trap 158)."""
        heard, quiet, ticks = link.heard, 0, 0
        while link.up:
            try:
                async with asyncio.timeout(TICK):
                    await self._down.wait()
            except TimeoutError:
                ticks += 1
            quiet = 0 if link.heard != heard else quiet + 1
            heard = link.heard
            if quiet > SILENT_TICKS:
                link.abandon(f"the server was silent for {quiet * TICK:.0f} s")
            elif ticks % ASK_EVERY == 0:
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

    def _lost(self, link: Link, why: str) -> None:
        if link is self._link:
            self.sure_until = 0.0
        super()._lost(link, why)


def explained(error: Exception, where: str, options: Options) -> TidingsError:
    """What a failed attempt to connect means, and what to do about it; never with a secret."""
    if isinstance(error, Refused):
        if error.code == REFUSED and options.external:
            return ConfigurationError(
                f"{where} has no user of the name on the client's certificate ({options.tls_cert}). Which name it takes"
                " says ssl_cert_login_from of rabbitmq.conf; rabbitmqctl add_user makes the user"
            )
        if error.code == REFUSED:
            return ConfigurationError(
                f"{where} refused the user {options.user!r}{_what_to_write(options)}. (guest may come from the server's"
                " own host only)"
            )
        if error.code == 530:
            user = "the user of the client's certificate" if options.external else repr(options.user)
            return ConfigurationError(
                f"{where} does not let {user} into the virtual host {options.vhost!r}. Is it there, and may"
                " the user in? rabbitmqctl list_vhosts and rabbitmqctl list_permissions say"
            )
        return BrokerUnavailable(f"{where} closed the connection: {error}")
    if isinstance(error, ConfigurationError):
        return ConfigurationError(f"{where}: {error}")
    if isinstance(error, TidingsError):
        return BrokerUnavailable(f"{where}: {error}{_perhaps_a_certificate(options)}")
    if isinstance(error, ssl.SSLError) and error.reason in _NO_TLS:
        return ConfigurationError(
            f"{where} speaks no TLS at this port: write amqp:// in the place of amqps://, or the port of its TLS"
            f" listener, which is {PORTS['amqps']} unless it was told otherwise"
        )
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


def _what_to_write(options: Options) -> str:
    """What of a login stands in no URL was taken to be that of the user whom servers come with."""
    if not options.named:
        return f", as the URL names none: write {EXAMPLE}"
    if options.password is None and options.password_file is None:
        return f", and the URL names no password: write {EXAMPLE}, or password_file="
    return ": check user and password"


def _perhaps_a_certificate(options: Options) -> str:
    """What a server that demands one says of it may be lost, because it closes the connection in the same moment."""
    if not options.tls or options.tls_cert:
        return ""
    return ". If it demands a certificate of its clients: tls_cert=… and tls_key=… name it"


_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"})
_IS_IT_UP: Final = "Is the server running, and is the address right?"
