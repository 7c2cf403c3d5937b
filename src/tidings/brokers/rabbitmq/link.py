"""One connection to one server: bytes in, bytes out, and its channels. It heals nothing; `connection.py` does.

Why not aiormq: it starts a task for each delivery, and closes a channel, with everything that is in flight on it, when
a call on it is cancelled. Here a delivery is a plain call, and whoever stops waiting for an answer changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import struct
from collections.abc import Callable
from typing import Any, Final, cast

import pamqp.frame
from pamqp import commands
from pamqp.base import Frame

from tidings.brokers.rabbitmq.channel import Channel, Refused
from tidings.brokers.rabbitmq.frames import HEARTBEAT, HEARTBEAT_FRAME, MOST_FRAME
from tidings.brokers.rabbitmq.options import Options
from tidings.errors import BrokerUnavailable, ConfigurationError

log = logging.getLogger("tidings.rabbitmq")

_head = struct.Struct(">BHI")
MOST_CHANNELS: Final = 2047
TLS_ALERT: Final = b"\x15\x03"
"""How a server answers that expected TLS."""
IS_IT_RABBIT: Final = (
    "Does RabbitMQ listen at this port? It is 5672, and 5671 with TLS, unless it was told otherwise; 15672 is its web"
    " page's"
)
CLOSING: Final = 1.0
"""Seconds that the server has to say goodbye."""


class Link(asyncio.Protocol):
    """A connection; `on_lost` is told once when it has ended, if it ever stood."""

    def __init__(self, options: Options, name: str, on_lost: Callable[[Link, str], None]) -> None:
        self._options = options
        self._name = name
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._error: Exception | None = None
        self._channels: dict[int, Channel] = {}
        self._next = 1
        self._most_channels = MOST_CHANNELS
        self._answers: asyncio.Queue[Frame] = asyncio.Queue()
        self._full = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()
        self._gone = asyncio.Event()
        self.up = False
        self.ended = ""
        """Why it is no more."""
        self.blocked = ""
        """Why the server takes no messages just now."""
        self.heard = 0
        self.properties: dict[str, Any] = {}
        self.heartbeat = options.heartbeat
        self.most_frame = MOST_FRAME

    @property
    def stood(self) -> bool:
        """Whether somebody took the connection, and spoke TLS where that is asked for; be it who it may."""
        return self._transport is not None

    @property
    def version(self) -> str:
        return str(self.properties.get("version", ""))

    # ── it begins ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self, host: str, port: int) -> None:
        """Connect and log in. Raises whatever went wrong; the caller says what it means, and limits the time."""
        context = self._options.ssl_context()
        secret = "" if self._options.external else self._options.secret()
        name = (self._options.tls_name or host) if context else None
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, host, port, ssl=context, server_hostname=name)
        self._write(b"AMQP\x00\x00\x09\x01")
        start = cast(commands.Connection.Start, await self._answer(commands.Connection.Start))
        self.properties = dict(start.server_properties or {})
        mechanism, response = self._login(secret)
        if mechanism not in str(start.mechanisms).split():
            plugin = (
                " auth=external needs the server's plugin rabbitmq_auth_mechanism_ssl (rabbitmq-plugins enable), and"
                " EXTERNAL among its auth_mechanisms"
                if self._options.external
                else ""
            )
            raise ConfigurationError(
                f"the server lets nobody in by {mechanism}; it knows {start.mechanisms}. See auth= in the URL.{plugin}"
            )
        properties = {
            "product": "tidings",
            "connection_name": self._name,
            "capabilities": {
                "authentication_failure_close": True,
                "consumer_cancel_notify": True,
                "connection.blocked": True,
                "basic.nack": True,
                "publisher_confirms": True,
            },
        }
        self._say(commands.Connection.StartOk(cast(Any, properties), mechanism, response))
        tune = cast(commands.Connection.Tune, await self._answer(commands.Connection.Tune))
        self.most_frame = min(tune.frame_max or MOST_FRAME, MOST_FRAME)
        self._most_channels = min(tune.channel_max or MOST_CHANNELS, MOST_CHANNELS)
        self._say(commands.Connection.TuneOk(self._most_channels, self.most_frame, self.heartbeat))
        self._say(commands.Connection.Open(self._options.vhost))
        await self._answer(commands.Connection.OpenOk)
        self.up = True

    def _login(self, secret: str) -> tuple[str, str]:
        return ("EXTERNAL", "") if self._options.external else ("PLAIN", f"\0{self._options.user}\0{secret}")

    async def _answer(self, kind: type[Frame]) -> Frame:
        getting = asyncio.ensure_future(self._answers.get())
        lost = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait({getting, lost}, return_when=asyncio.FIRST_COMPLETED)
            found = getting.result() if getting.done() else None
        finally:
            getting.cancel()
            lost.cancel()
        if isinstance(found, commands.Connection.Close):
            raise Refused(found.reply_code or 0, found.reply_text or "")
        if not isinstance(found, kind):
            if self._rest.startswith(TLS_ALERT):
                raise ConfigurationError("the server speaks TLS at this port: write amqps:// in the place of amqp://")
            if isinstance(self._error, ssl.SSLError):
                raise self._error
            raise BrokerUnavailable(f"{self.ended or 'the server did not speak AMQP 0-9-1'}. {IS_IT_RABBIT}")
        return found

    # ── it ends ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def abandon(self, why: str) -> None:
        """End it at once, without a word to the server."""
        self._end(why)
        if self._transport is not None:
            self._transport.abort()

    async def close_gently(self) -> None:
        """Say goodbye, so that the server gives back at once what was in flight."""
        if self.up and self._transport is not None:
            self._say(commands.Connection.Close(200, "closed", 0, 0))
            try:
                async with asyncio.timeout(CLOSING):
                    await self._lost.wait()
            except TimeoutError:
                pass
        self.abandon("it was closed")
        await self.gone()

    async def gone(self) -> None:
        """Wait until nothing of it is left, which is soon once it has ended."""
        if self._transport is not None:
            try:
                async with asyncio.timeout(CLOSING):
                    await self._gone.wait()
            except TimeoutError:
                pass

    def _end(self, why: str) -> None:
        if self._lost.is_set():
            return
        was_up, self.up = self.up, False
        self.ended = self.ended or why
        self._lost.set()
        self._writable.set()
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.lost(self.ended)
        if was_up:
            self._on_lost(self, self.ended)

    # ── out ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, data: bytes) -> None:
        """Write; raises BrokerUnavailable when it has ended."""
        if not self.up:
            raise BrokerUnavailable(f"the connection was lost: {self.ended}")
        self._write(data)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _say(self, frame: Frame) -> None:
        self._write(pamqp.frame.marshal(frame, 0))

    def beat(self) -> None:
        """Let the server hear that we are here."""
        if self.up:
            self._write(HEARTBEAT_FRAME)

    async def drained(self) -> None:
        """Wait until the way out has room and the server takes messages; raises BrokerUnavailable when it has ended."""
        await self._writable.wait()
        if not self.up:
            raise BrokerUnavailable(f"the connection was lost: {self.ended}")

    async def channel(self, timeout: float) -> Channel:
        """A new channel. Raises BrokerUnavailable."""
        if not self.up:
            raise BrokerUnavailable(f"the connection was lost: {self.ended}")
        if len(self._channels) >= self._most_channels:
            raise BrokerUnavailable(f"the server allows {self._most_channels} channels at a time (channel_max)")
        while self._next in self._channels:
            self._next = self._next % self._most_channels + 1
        channel = self._channels[self._next] = Channel(self, self._next)
        try:
            await channel.call(commands.Channel.Open(), timeout)
        except BaseException:
            channel.leave()
            raise
        return channel

    def forget(self, channel: Channel) -> None:
        """The number of a channel that has ended may be used again."""
        if self._channels.get(channel.number) is channel:
            del self._channels[channel.number]

    # ── asyncio.Protocol ────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=1024 * 1024)

    def pause_writing(self) -> None:
        self._full = True
        self._look()

    def resume_writing(self) -> None:
        self._full = False
        self._look()

    def _look(self) -> None:
        if self.up and (self._full or self.blocked):
            self._writable.clear()
        else:
            self._writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._gone.set()
        self._error = error
        self._end(f"{type(error).__name__}: {error}" if error else "the server closed the connection")

    def data_received(self, data: bytes) -> None:
        self.heard += 1
        data = self._rest + data if self._rest else data
        at, size = 0, len(data)
        try:
            while size - at >= 8:
                kind, number, length = _head.unpack_from(data, at)
                end = at + 7 + length
                if kind > HEARTBEAT or length > 16 * MOST_FRAME:
                    raise ValueError("what came is no AMQP 0-9-1")
                if end >= size:
                    break
                if number:
                    channel = self._channels.get(number)
                    if channel is not None:
                        channel.take(kind, data[at + 7 : end])
                elif kind != HEARTBEAT:
                    self._take(data[at : end + 1])
                at = end + 1
        except Exception as error:
            log.debug("a frame could not be read", exc_info=True)
            self.abandon(f"what came could not be read ({type(error).__name__}: {error})")
            return
        self._rest = data[at:]

    def _take(self, raw: bytes) -> None:
        """What concerns the connection itself."""
        _, _, frame = pamqp.frame.unmarshal(raw)
        if isinstance(frame, commands.Connection.Blocked):
            self.blocked = frame.reason or "no reason given"
            self._look()
            log.warning("%s: the server takes no messages just now: %s", self._name, self.blocked)
        elif isinstance(frame, commands.Connection.Unblocked):
            self.blocked = ""
            self._look()
            log.warning("%s: the server takes messages again", self._name)
        elif isinstance(frame, commands.Connection.Close):
            self._say(commands.Connection.CloseOk())
            if self.up:
                self._end(f"the server closed it: {frame.reply_text} ({frame.reply_code})")
            self._answers.put_nowait(frame)
            if self._transport is not None:
                self._transport.close()
        elif isinstance(frame, commands.Connection.CloseOk):
            self._end("it was closed")
        elif isinstance(frame, Frame):
            self._answers.put_nowait(frame)
