"""Starting and ending the server process of an embedded server. Everything here happens under the start lock."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from tidings.brokers.nats.embedded_binary import INSTALL, VERSION, verified_binary
from tidings.brokers.nats.embedded_folder import USER, FileLock, Folder, State
from tidings.brokers.nats.embedded_probe import (
    HOST,
    Health,
    free_port,
    log_size,
    port_is_free,
    port_taken,
    probe,
    why_it_ended,
)
from tidings.errors import ConfigurationError, TidingsError

POLL: Final = 0.01
"""Seconds between two looks at a server that is starting or ending."""
TERM: Final = 10.0
"""Seconds that a server has to end in good order before it is killed."""
_NAMED: Final = 2.0
"""Seconds until a process that has been started can be told from others by its command line."""

_KEPT: Final = ("PATH", "HOME", "TZ", "LANG", "GOMAXPROCS", "GOMEMLIMIT", "GOGC")
"""All that the server gets of our environment, which may hold the secrets of others."""

_log = logging.getLogger("tidings.embedded")


class ServerProcess:
    """The server process of one folder, whoever started it."""

    def __init__(self, files: Folder) -> None:
        self._files = files
        self._log_start = 0
        self._last: State | None = None

    @property
    def log_start(self) -> int:
        """Where in the log the server begins that we started; 0 if it was another."""
        return self._log_start

    def launch(self, *, port: int | None, named: bool, password: str | None) -> None:
        """Start the server; it is not ready yet when this returns. Blocks for some 0.1 s: call it in a thread.

        Args:
            port: the one it must have; None takes that of the last time if it is free, else any.
            named: whether the user named that port; the error for a taken one says so.
            password: the one that clients know; None takes the folder's.

        Raises:
            ConfigurationError, BrokerUnavailable: it cannot be started, and why.
        """
        binary = verified_binary()
        self._files.prepare()
        self._files.check_disk()
        before = self._files.state()
        self._check_not_newer(before)
        lock = self._files.server_lock()
        with self._files.explained():
            end = time.monotonic() + 2.0
            while not lock.acquire():  # `has_server` of another process takes it for a moment
                if time.monotonic() > end:
                    return  # it lives after all: the caller looks again
                time.sleep(POLL)
            try:
                state = self._planned(before, port, named)
                self._files.write_settings(state, self._files.keep_password(password))
                # Before there is a process: should we be killed now, the next one can tell whose it is.
                self._files.write_state(state)
                self._log_start = log_size(self._files)
                self._spawn(binary, lock, state)
            finally:
                lock.hand_over()

    def _planned(self, before: State | None, port: int | None, named: bool) -> State:
        if port is not None:
            end = time.monotonic() + 1.0
            while not port_is_free(port):  # a server just killed keeps it for a moment
                if time.monotonic() > end:
                    raise port_taken(port, self._files.path, named=named)
                time.sleep(POLL)
        else:
            port = before.port if before is not None and port_is_free(before.port) else free_port()
        return State(
            instance=f"tidings-{secrets.token_hex(8)}",
            port=port,
            monitor_port=free_port(avoid=[port]),
            version=VERSION,
            url=f"nats://{USER}@{HOST}:{port}",
        )

    def _spawn(self, binary: Path, lock: FileLock, state: State) -> None:
        errors = self._files.stderr_file
        if errors.exists() and errors.stat().st_size:
            errors.replace(errors.with_name(errors.name + ".1"))  # the last words of the one before
        with open(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as output:
            try:
                process = subprocess.Popen(
                    [binary, "-c", self._files.settings_file],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self._files.path,
                    env={name: os.environ[name] for name in _KEPT if name in os.environ},
                    start_new_session=True,
                    pass_fds=[lock.fd],
                    umask=0o077,
                )
            except OSError as reason:
                raise ConfigurationError(
                    f"the nats-server binary {binary} cannot be started ({reason.strerror}). If its disk is mounted"
                    f" noexec, install it elsewhere; otherwise install it again: {INSTALL}"
                ) from None
        # It may outlive us, so nobody waits for it; but while we live, its end must not leave a zombie.
        threading.Thread(target=process.wait, name="tidings-nats-server", daemon=True).start()
        self._files.write_state(msgspec.structs.replace(state, pid=process.pid))

    def _check_not_newer(self, before: State | None) -> None:
        if before is not None and _minor(before.version) > _minor(VERSION):
            raise ConfigurationError(
                f"the data in {self._files.path} was written by nats-server {before.version}, which {VERSION} may not"
                f" understand. Use the version of Tidings that wrote it, or name another folder: embedded:/path"
            )

    def remember(self, state: State) -> None:
        """Keep who runs, so that it can be ended even when the folder is removed under it."""
        self._last = state

    async def end(self) -> None:
        """SIGTERM, and SIGKILL if that does not help; what was acknowledged is on the disk either way."""
        state = self._files.state() or self._last
        if state is None or not await self._told_to_end(state):
            return
        if await self._gone_within(TERM):
            return
        _log.error("the embedded server of %s did not end within %g s and is killed", self._files.path, TERM)
        await self._signal(state, signal.SIGKILL)
        await self._gone_within(2.0)

    async def _told_to_end(self, state: State) -> bool:
        """One that began a moment ago has an empty command line (Linux), which does not say yet whose it is."""
        end = time.monotonic() + _NAMED
        while not await self._signal(state, signal.SIGTERM):
            if time.monotonic() > end or not self._files.has_server():
                return False
            await asyncio.sleep(POLL)
        return True

    async def _gone_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self._files.has_server():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(POLL)
        return True

    async def _signal(self, state: State, number: signal.Signals) -> bool:
        """Send it to the server of this folder, and to no other process that may have got its number since."""
        pid = self._files.pid(state)
        if pid is None:
            return False
        if sys.platform == "linux":
            return _signal_if_named(pid, number, self._files.settings_file)
        else:  # without /proc: the server itself says who it is
            health, _ = await probe(state)
            if health is Health.SILENT:
                return False
            os.kill(pid, number)
            return True

    def why_it_ended(self) -> TidingsError:
        return why_it_ended(self._files, self._log_start)


if sys.platform == "linux":

    def _signal_if_named(pid: int, number: signal.Signals, argument: Path) -> bool:
        """Signal the process if `argument` is on its command line; the handle keeps the number from being reused."""
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            ours = os.fsencode(argument) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if ours:
                signal.pidfd_send_signal(handle, number)
            return ours
        except OSError:
            return False
        finally:
            os.close(handle)


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
