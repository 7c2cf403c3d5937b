"""`embedded:` starts a real nats-server on a folder of this machine, or joins the one that runs there already.

Who starts it, and who ends it:

- The first process to come starts the server, all others join it; a lock on the folder makes sure that there is one.
- The server runs in a session of its own. Ctrl-C does not reach it, and it outlives the process that started it for as
  long as others use it.
- Whoever leaves last with `EmbeddedServer.stop` ends it. When the last users are killed, nobody does: the server then
  stays until somebody joins and leaves again.
- When the server is killed, any user brings it back (`ensure_running`, `watch`): same port, same password, same data.
  Clients reconnect by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from tidings.brokers.nats.embedded_binary import server_version
from tidings.brokers.nats.embedded_folder import USER, Folder
from tidings.brokers.nats.embedded_probe import HOST, Health, log_tail, probe
from tidings.brokers.nats.embedded_process import POLL, TERM, ServerProcess
from tidings.errors import BrokerUnavailable, ConfigurationError, MisuseError, TidingsError

__all__ = ["DEFAULT_FOLDER", "EmbeddedServer", "embedded_server", "server_version"]

DEFAULT_FOLDER: Final = ".tidings"

_LAUNCHES: Final = 4
"""How often one call starts a server: a port that looked free may be gone a moment later."""
_DAMAGED: Final = 8
"""How many checks in a row must find a stream missing: one that is being made is, for a moment."""
_THAW: Final = 10.0
"""Seconds between two restarts because of a write error: where that does not help, it must not go in a circle."""

_log = logging.getLogger("tidings.embedded")
_T = TypeVar("_T")


class EmbeddedServer:
    """A nats-server with JetStream on 127.0.0.1, shared by all processes that name the same folder.

    Everything stored survives the server, the processes and the machine: the server writes to disk before it
    acknowledges. One object is one user; make it, `start` it, and `stop` it once.

    Args:
        folder: where data, password and log live; made if missing, with mode 0700. It must be empty or ours.
        port: to listen on. None takes the port of the last time if it is free, else any free one.
        ready_timeout: seconds until the server must be ready, reading back its data included.
    """

    def __init__(
        self, folder: str | os.PathLike[str] = DEFAULT_FOLDER, *, port: int | None = None, ready_timeout: float = 60.0
    ) -> None:
        if port is not None and not 1 <= port <= 65_535:
            raise ConfigurationError(f"a port lies between 1 and 65535, not at {port}: embedded:?port=4222")
        self._files = Folder(folder)
        self._named_port = port
        self._ready_timeout = ready_timeout
        self._users = self._files.users_lock()
        self._password: str | None = None
        self._port: int | None = None
        self._process = ServerProcess(self._files)
        self._thawed = -_THAW
        self._problem: str | None = None

    @classmethod
    def from_url(cls, url: str) -> EmbeddedServer:
        """`embedded:`, `embedded:./data`, `embedded:/path`, each with `?port=4222` if a port is wanted.

        Raises:
            ConfigurationError: the URL says something else.
        """
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        port = options.pop("port", None)
        if parts.scheme != "embedded" or parts.netloc or parts.fragment or options:
            wrong = f"{next(iter(options))!r} is no option" if options else "it is not of that form"
            raise ConfigurationError(
                f"{url!r} names no embedded server: {wrong}. Write embedded:, embedded:./folder or"
                f" embedded:/path/to/folder, and ?port=4222 behind it for a port of your choice"
            )
        if port is not None and not (port.isascii() and port.isdigit()):
            raise ConfigurationError(f"{url!r}: a port is a number: embedded:?port=4222")
        return cls(unquote(parts.path) or DEFAULT_FOLDER, port=None if port is None else int(port))

    def __repr__(self) -> str:
        where = f"port={self._port}" if self._users.held else "not started"
        return f"<EmbeddedServer {str(self.folder)!r} {where}>"

    @property
    def folder(self) -> Path:
        """The data folder, absolute."""
        return self._files.path

    @property
    def url(self) -> str:
        """`nats://user:password@127.0.0.1:port`. It holds the password: never log it."""
        if self._password is None or self._port is None:
            raise MisuseError("the embedded server has no URL before `await server.start()`")
        return f"nats://{USER}:{self._password}@{HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The process id of the server that runs now, whoever started it; None if none does."""
        state = self._files.state()
        return self._files.pid(state) if state is not None and self._files.has_server() else None

    @property
    def monitor_url(self) -> str:
        """Where the server tells of itself: `/healthz`, `/varz`, `/jsz`. On loopback, without a password."""
        state = self._files.state()
        if state is None:
            raise MisuseError("the embedded server has no monitor URL before `await server.start()`")
        return state.monitor_url

    @property
    def problem(self) -> str | None:
        """Why the server did not work when `ensure_running` or `watch` last looked; None if it did."""
        return self._problem

    async def start(self) -> str:
        """Start the server, or join the one that runs on the folder, and return its `url` once it is ready.

        Raises:
            ConfigurationError: the folder, the port or the binary cannot be used; nothing was started.
            BrokerUnavailable: it does not get ready, its disk is full, its port is taken. Trying again may help.
        """
        if self._users.held:
            return self.url
        await _in_thread(self._files.prepare)
        async with self._starting():
            with self._files.explained():
                alone = self._users.acquire()
                self._users.release()
                if not self._users.acquire(shared=True):
                    raise BrokerUnavailable(
                        f"another program holds {self.folder}/users.lock for itself. Find it (lsof), end it, try again"
                    )
            try:
                await self._settle_port(alone)
                await self._bring_up()
            except BaseException:
                await self._leave()
                raise
        _log.info("embedded nats-server on %s:%s, data in %s", HOST, self._port, self.folder)
        return self.url

    async def ensure_running(self) -> str:
        """Bring the server back if it is gone: same port, password and data. Cheap when it is well.

        A server whose stream froze on a write error (a full disk) is restarted once there is room again.

        Raises:
            MisuseError: `start` was not called, or `stop` was.
            WorldError, ConfigurationError: as `start`; call again later.
        """
        self._check_started()
        try:
            state = self._files.state()
            if state is None or state.port != self._port or (await probe(state))[0] is not Health.READY:
                async with self._starting():
                    self._check_started()  # it may have been stopped while we waited
                    await self._bring_up()
        except TidingsError as reason:
            self._problem = str(reason)
            raise
        self._problem = None
        return self.url

    def _check_started(self) -> None:
        if not self._users.held:
            raise MisuseError("the embedded server was not started, or was stopped: `await server.start()`")

    async def watch(self, *, every: float = 0.5, most: float = 5.0) -> None:
        """Keep the server running until cancelled. Run it as a supervised task between `start` and `stop`.

        Args:
            every: seconds between two looks.
            most: seconds that the pause between failed attempts grows to.
        """
        pause = every
        while True:
            await asyncio.sleep(pause)
            before = self._problem
            try:
                await self.ensure_running()
            except MisuseError:
                raise
            except TidingsError as reason:
                pause = min(pause * 2, most)
                if str(reason) != before:
                    _log.error("embedded server: %s", reason)
            else:
                pause = every
                if before is not None:
                    _log.warning("the embedded server of %s is well again", self.folder)

    async def stop(self) -> None:
        """Leave. Whoever leaves last ends the server; what is stored stays. Close the connections to it before."""
        if not self._users.held:
            return
        try:
            async with self._starting():
                await self._leave()
        except TidingsError as reason:
            if not self.folder.exists():  # removed under a running server: end that one all the same
                await self._leave()
            else:
                _log.warning("left the embedded server, without looking whether others use it: %s", reason)
        finally:
            self._users.release()

    async def _settle_port(self, alone: bool) -> None:
        """Which port it must be: the one that others use, or the one that was named."""
        state, self._port = self._files.state(), self._named_port
        if state is None or self._named_port == state.port:
            return
        if not alone:
            self._port = state.port
            self._check_named_port()
        elif self._named_port is not None:
            await self._process.end()  # left behind by users that were killed, on a port that is not wanted any more

    def _check_named_port(self) -> None:
        if self._named_port not in (None, self._port):
            raise ConfigurationError(
                f"the embedded server of {self.folder} is in use on port {self._port}, and you asked for port"
                f" {self._named_port}. Leave the port out, or stop the processes that use the folder first"
            )

    @contextlib.asynccontextmanager
    async def _starting(self) -> AsyncIterator[None]:
        """Hold the folder's start lock: nobody else starts, joins or ends the server meanwhile."""
        lock, end = self._files.start_lock(), time.monotonic() + self._ready_timeout + TERM
        while True:
            with self._files.explained():
                if lock.acquire():
                    break
            if time.monotonic() > end:
                raise BrokerUnavailable(
                    f"another process has been starting or ending the embedded server of {self.folder} for"
                    f" {self._ready_timeout + TERM:.0f} s. Find it (lsof {self.folder}/lock), end it, and try again"
                )
            await asyncio.sleep(POLL)
        try:
            yield
        finally:
            lock.release()

    async def _bring_up(self) -> None:
        """See to it that the server runs and is ready. Under the start lock."""
        end = time.monotonic() + self._ready_timeout
        for attempt in range(1, _LAUNCHES + 1):
            launched = not self._files.has_server()
            if launched:
                await _in_thread(self._launch)
            health, detail = await self._until_ready(end)
            if health is Health.READY:
                self._joined()
                return
            if health is Health.DAMAGED:
                raise self._damaged(detail)
            if health is Health.FROZEN:
                await self._thaw(detail)
            elif self._files.has_server():
                break
            elif launched:
                reason = self._process.why_it_ended()
                if "address already in use" not in str(reason) or attempt == _LAUNCHES:
                    raise reason
        raise self._not_ready()

    def _launch(self) -> None:
        self._process.launch(port=self._port, named=self._named_port is not None, password=self._password)

    async def _thaw(self, detail: str) -> None:
        """End a server that takes no events since a write failed. Restarting it is the only cure."""
        self._files.check_disk()
        if time.monotonic() - self._thawed < _THAW:
            raise BrokerUnavailable(
                f"the embedded server of {self.folder} cannot write to its disk: {detail}. It was"
                f" restarted, which did not help, and will be again. Look at the disk"
            )
        _log.warning("restarting the embedded server of %s: since a write failed it stores nothing", self.folder)
        self._thawed = time.monotonic()
        await self._process.end()

    async def _until_ready(self, end: float) -> tuple[Health, str]:
        """What became of it, and why: SILENT if the server ended or the time is over."""
        health, detail, damaged = Health.SILENT, "", 0
        while time.monotonic() < end and self._files.has_server():
            state = self._files.state()
            if state is not None:
                health, detail = await probe(state)
            damaged = damaged + 1 if health is Health.DAMAGED else 0
            if health in (Health.READY, Health.FROZEN) or damaged == _DAMAGED:
                return health, detail
            await asyncio.sleep(POLL if health is Health.SILENT else 0.1)
        return Health.SILENT, detail

    def _joined(self) -> None:
        """Take over where the server is; raises if that is not where it was asked for."""
        state, password = self._files.state(), self._files.read_password()
        if state is None or password is None:
            raise BrokerUnavailable(
                f"an embedded server runs on {self.folder}, but its state.json or its password file is gone. Stop all"
                f" processes that use the folder, end the server (lsof {self.folder}/server.lock), and start again"
            )
        self._port, self._password = state.port, password
        self._check_named_port()
        self._process.remember(state)

    def _damaged(self, detail: str) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"the embedded server of {self.folder} could not read its data back: {detail}. Nothing was removed. Restore"
            f" the folder from a copy, or give up the events of that stream by removing its folder below"
            f" {self.folder / 'jetstream'}. What is wrong with it stands in {self._files.log_file}"
        )

    def _not_ready(self) -> BrokerUnavailable:
        state = self._files.state()
        pid = state and self._files.pid(state)
        return BrokerUnavailable(
            f"the embedded server of {self.folder} runs (process {pid or 'unknown'}) but was not ready within"
            f" {self._ready_timeout:g} s. If it hangs, end it (kill {pid or 'PID'}) and try again; if it runs in"
            f" another container, connect to it by nats:// instead. Its log ends:"
            f" {log_tail(self._files, self._process.log_start)}"
        )

    async def _leave(self) -> None:
        """Let go of the server, and end it if nobody else uses it. Under the start lock."""
        try:
            if self._users.make_exclusive():
                await self._process.end()
        finally:
            self._users.release()


@contextlib.asynccontextmanager
async def embedded_server(
    folder: str | os.PathLike[str] = DEFAULT_FOLDER, *, port: int | None = None, ready_timeout: float = 60.0
) -> AsyncIterator[EmbeddedServer]:
    """An `EmbeddedServer`, started or joined, and left at the end. A dead one is not brought back: see `watch`."""
    server = EmbeddedServer(folder, port=port, ready_timeout=ready_timeout)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def _in_thread(work: Callable[[], _T]) -> _T:
    """Run blocking work in a thread. When cancelled it waits for the end of the work before it lets go."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: the cancellation counts
        raise
