"""One TCP session with a server: built, used until the first doubt, then thrown away.

The client library reconnects by itself, but its reconnect has holes: it may wait for ever on a socket that takes no
bytes, stop reading in silence, close for good on an error of the server, and send what was buffered before (traps 46,
47, 49, 50 and 54). So here it never reconnects. `Connection` builds the next link.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client, Srv

from tidings.brokers._address import address
from tidings.brokers.nats.headers import status_of
from tidings.brokers.nats.login import Login, credentials
from tidings.brokers.nats.options import Options
from tidings.errors import BrokerUnavailable

log = logging.getLogger("tidings.nats")

_ERROR = re.compile(rb"-ERR '([^'\r\n]+)'")

RawSink = Callable[[bytes, bytes, bytes | None, bytes], None]
"""Takes subject, reply, headers and data of a message as they came."""

Answer = Callable[[int, bytes | None, bytes | None], None]
"""Takes the tag it was asked with, then headers and data; data is None when the link was lost."""

USER_TIMEOUT_MS = 10_000
"""How long sent bytes may stay unacknowledged by the peer's TCP before the socket is dead."""


class NoResponders(BrokerUnavailable):
    """Nobody listens on a subject just now."""


class Refused(BrokerUnavailable):
    """This user may not ask that, and need not."""


class PlainServer(nats.errors.Error):
    """TLS was asked for, and the server has none: the library would go on, and send the password, without."""


class Link(Client):
    """A session of the client library, without its reconnect and without its subscriptions."""

    def __init__(
        self, options: Options, name: str, lost: Callable[[Link, str], None], login: Login | None = None
    ) -> None:
        super().__init__()
        self._link_options, self._login = options, login
        self._link_name = name
        self._lost = lost
        self._sinks: dict[int, RawSink] = {}
        self._awaited: dict[bytes, tuple[Answer, int]] = {}
        self._counter = 0
        self._inbox = b""
        self._writer: asyncio.StreamWriter | None = None
        self._unsent: list[bytes] = []
        self.up = False
        self.heard = 0
        """Counts what was read, so that a watchdog can see whether anything was."""
        self._pinged: deque[asyncio.Future[None] | None] = deque()
        self.heard_at = time.monotonic()
        """When the watchdog last saw that something was read."""
        self.ended = ""
        """Why it is not up any more."""
        self.tls_name = ""
        """What its certificate says."""
        self.told: list[tuple[str, int]] = []
        """The addresses of the cluster, as the server told them last."""
        self.denied = ""
        """What the server said when it last refused a subject."""
        self.when_denied: set[Callable[[], None]] = set()
        self._not_needed: dict[str, Callable[[], None]] = {}
        """By subject, whom to tell that the server refused it: what is only nice to have is no trouble."""

    async def open(self, host: str, port: int, timeout: float, tls_name: str | None = None) -> None:
        """Connect to one server, with so many seconds for each step; `tls_name` is on its certificate, or its host.

        It raises what the library raises; see `connection.py` for what that means.
        """
        options = self._link_options
        self.tls_name = options.tls_name or tls_name or host
        await self.connect(
            [f"{options.scheme}://{address(host, port)}"],
            error_cb=_ignore,
            name=self._link_name,
            allow_reconnect=False,
            connect_timeout=timeout,  # type: ignore[arg-type]  # hinted as int, and handed to asyncio as it is
            max_reconnect_attempts=0,
            tls=options.ssl_context(),
            tls_hostname=self.tls_name,
            tls_handshake_first=options.tls_first,
            inbox_prefix=options.inbox,
            **await credentials(options, self._login),
        )
        self._writer = self._stream()
        self.up = True
        reading = self._reading_task
        assert reading is not None
        reading.add_done_callback(lambda _: self.abandon("the server closed the connection"))
        self._inbox = f"{options.inbox}.{self._nuid.next().decode()}".encode()
        self.subscribe_raw(self._inbox + b".*", self._on_answer)

    @property
    def info(self) -> dict[str, Any]:
        """What the server says of itself."""
        return self._server_info

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, frames: bytes) -> None:
        """Hand bytes to the socket at the end of this turn of the loop; without a connection it raises (trap 54).

        What a link did not send when it is lost is sent on no other.
        """
        if not self.up or self._writer is None:
            raise BrokerUnavailable("the connection was just lost")
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._write)
        self._unsent.append(frames)

    def _write(self) -> None:
        """What was said in one turn of the loop leaves in one write: each wakes the server."""
        frames, self._unsent = self._unsent, []
        if frames and self.up and self._writer is not None:
            self._writer.write(b"".join(frames))

    async def drained(self) -> None:
        """Wait until the socket has taken most of what was sent."""
        if not self.up or self._writer is None:
            raise BrokerUnavailable("the connection was just lost")
        self._write()
        try:
            await self._writer.drain()
        except OSError as error:
            self.abandon(f"writing failed: {error}")
            raise BrokerUnavailable("the connection was just lost") from None

    def subscribe_raw(self, subject: bytes, sink: RawSink) -> int:
        self._counter += 1
        sid = self._counter
        self._sinks[sid] = sink
        self.send(b"SUB %b %d\r\n" % (subject, sid))
        return sid

    def drop_sink(self, sid: int) -> None:
        self._sinks.pop(sid, None)

    def replace_sink(self, sid: int, sink: RawSink) -> None:
        self._sinks[sid] = sink

    def unsubscribe_raw(self, sid: int, *, forget: bool = True) -> None:
        """Take no more. With `forget` off the sink still gets what is on its way; forget it later."""
        if forget:
            self._sinks.pop(sid, None)
        if self.up:
            self.send(b"UNSUB %d\r\n" % sid)

    def own_subject(self) -> bytes:
        """A subject that is ours alone; tokens may follow."""
        return f"{self._link_options.inbox}.{self._nuid.next().decode()}".encode()

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def expect(self, answer: Answer, tag: int = 0) -> bytes:
        """A subject for one answer, which `answer` will be called with."""
        self._counter += 1
        token = b"%d" % self._counter
        self._awaited[token] = (answer, tag)
        return self._inbox + b"." + token

    def forget(self, reply: bytes) -> None:
        """The answer is not waited for any more."""
        self._awaited.pop(reply[len(self._inbox) + 1 :], None)

    @contextlib.contextmanager
    def may_be_refused(self, subject: str, refused: Callable[[], None]) -> Iterator[None]:
        """Meanwhile this link does without the subject, where the user has no permission to publish on it."""
        self._not_needed[subject.lower()] = refused
        try:
            yield
        finally:
            self._not_needed.pop(subject.lower(), None)

    async def ask(self, subject: str, payload: bytes, timeout: float, *, needed: bool = True) -> bytes:
        """Send a request and return the body of its answer. What is not `needed` may be refused without any harm.

        Raises:
            NoResponders: nobody listens there.
            Refused: this user may not publish there, and it is not needed.
            BrokerUnavailable: no answer in time, or the connection was lost.
        """
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def take(_: int, headers: bytes | None, data: bytes | None) -> None:
            if future.done():
                return
            if data is None:
                future.set_exception(BrokerUnavailable("the connection was just lost"))
            elif headers is not None and not data and status_of(headers)[0] == 503:
                future.set_exception(NoResponders(f"nobody answers on {subject}"))
            else:
                future.set_result(data)

        def refused() -> None:
            if not future.done():
                future.set_exception(refusal_of(subject))

        reply = self.expect(take)
        try:
            with contextlib.nullcontext() if needed else self.may_be_refused(subject, refused):
                self.send(b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply, len(payload), payload))
                async with asyncio.timeout(timeout):
                    return await future
        except TimeoutError:
            raise BrokerUnavailable(f"no answer on {subject} within {timeout:g} s{self._why_not(subject)}") from None
        finally:
            self.forget(reply)

    def _why_not(self, subject: str) -> str:
        return f" ({self.denied})" if subject.lower() in self.denied else ""

    async def round_trip(self, timeout: float) -> None:
        """Wait until the server has read all that was sent; raises BrokerUnavailable if it does not in time."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ping(future)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            raise BrokerUnavailable(f"the server did not answer within {timeout:g} s") from None
        if not self.up:
            raise BrokerUnavailable("the connection was just lost")

    def ping(self, answered: asyncio.Future[None] | None = None) -> None:
        """Ask the server whether it is there; the answer counts as heard."""
        self.send(b"PING\r\n")
        self._pinged.append(answered)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def abandon(self, why: str) -> None:
        """Drop the socket with whatever was not sent, and tell everybody who waits. Safe to call twice."""
        was_up, self.up = self.up, False
        self.ended = self.ended or why
        self._status = Client.CLOSED
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        self._abort()
        self._sinks.clear()
        awaited, self._awaited = self._awaited, {}
        for answer, tag in awaited.values():
            answer(tag, None, None)
        for future in self._pinged:
            if future is not None and not future.done():
                future.set_result(None)
        self._pinged.clear()
        if was_up:
            self._lost(self, why)

    async def close_gently(self, timeout: float = 1.0) -> None:
        """End on purpose: send what is left, then go."""
        self._lost = _nobody
        try:
            if self.up:
                async with asyncio.timeout(timeout):
                    await self.round_trip(timeout)
        except (TimeoutError, BrokerUnavailable):
            pass  # what was confirmed is confirmed; nothing else counts
        finally:
            self.abandon("closed")
            await asyncio.sleep(0)

    def _abort(self) -> None:
        if (writer := self._stream()) is not None:
            # Not close(): it waits until the peer has taken all that was written (trap 47).
            writer.transport.abort()

    def _stream(self) -> asyncio.StreamWriter | None:
        return getattr(self._transport, "_io_writer", None)

    @property
    def silent(self) -> bool:
        """Somebody took the connection, and has said nothing."""
        return self._stream() is not None and not self._server_info and not self._unread()

    def last_words(self) -> str:
        """Why the server closed the connection, where it said so and reset it before that was read."""
        found = _ERROR.search(self._unread())
        return found[1].decode("ascii", "replace") if found else ""

    def _unread(self) -> bytes:
        return bytes(getattr(getattr(self._transport, "_io_reader", None), "_buffer", b""))

    # ── what the library calls ──────────────────────────────────────────────────────────────────────────────────────

    async def _select_next_server(self) -> None:
        """One server, one attempt; which is next, `Connection` says."""
        server: Srv = self._server_pool[0]
        await self._connect_to_server(server)
        self._current_server = server
        writer = self._stream()
        if writer is not None and (sock := writer.get_extra_info("socket")) is not None:
            _tune(sock)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self._link_options.tls and not self._link_options.tls_first:
            if not (info.get("tls_required") or info.get("tls_available")):
                raise PlainServer
            info["tls_required"] = True
        if told := info.get("connect_urls"):
            self.told = [
                (url.hostname, url.port) for one in told if (url := urlsplit(f"//{one}")).hostname and url.port
            ]
        await super()._process_info(info, initial_connection)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.heard += 1
        sink = self._sinks.get(sid)
        if sink is None:
            return
        try:
            sink(subject, reply, headers, data)
        except Exception:
            # An error in here would end the library's read loop in silence (trap 46).
            log.exception("a message on %s could not be taken in", subject.decode("ascii", "replace"))

    def _on_answer(self, subject: bytes, reply: bytes, headers: bytes | None, data: bytes) -> None:
        entry = self._awaited.pop(subject[len(self._inbox) + 1 :], None)
        if entry is not None:
            entry[0](entry[1], headers, data)

    async def _process_ping(self) -> None:
        self.heard += 1
        self.send(b"PONG\r\n")

    async def _process_pong(self) -> None:
        self.heard += 1
        if self._pinged and (future := self._pinged.popleft()) is not None and not future.done():
            future.set_result(None)

    async def _process_err(self, err_msg: str) -> None:
        said = err_msg.strip("'")
        if "permissions violation" in said:
            for subject, refused in list(self._not_needed.items()):
                if f'"{subject}"' in said:
                    return refused()
            self.denied = said
            log.error("the server refused a subject: %s. Grant it to this user, then restart the service", said)
            for tell in list(self.when_denied):
                tell()
        else:
            self.abandon(f"the server said: {said}")

    async def _process_op_err(self, e: Exception) -> None:
        self.abandon(f"{type(e).__name__}: {e}")

    async def _ping_interval(self) -> None:
        """The watchdog of `Connection` does this."""

    async def _flusher(self) -> None:
        """Nothing is kept back, so nothing has to be flushed."""


def refusal_of(subject: str) -> Refused:
    return Refused(f"this user may not publish on {subject}")


async def _ignore(error: Exception) -> None:
    """Errors reach us by exceptions and by `_process_err`; the library's own report would come on top."""


def _nobody(link: Link, why: str) -> None:
    """Takes the place of the callback when an end was meant."""


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
