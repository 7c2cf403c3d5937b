"""A real nats-server for one test, and a proxy on the way to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests import proxy
from tidings.brokers.nats.embedded_binary import verified_binary
from tools.services.freezing import freeze
from tools.services.ports import free_port

STARTS_WITHIN: Final = 60.0


class NatsServer:
    """The server binary with a configuration of its own, on a free loopback port."""

    host = "127.0.0.1"

    def __init__(self, folder: Path, *, extra: str = "", jetstream: str | None = "", max_payload: str = "2MB") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(extra=extra, jetstream=jetstream, max_payload=max_payload)

    def configure(self, *, extra: str = "", jetstream: str | None = "", max_payload: str = "2MB") -> None:
        store = "" if jetstream is None else f'jetstream {{ store_dir: "{self.folder / "js"}"\n{jetstream} }}\n'
        (self.folder / "server.conf").write_text(
            f'listen: "{self.host}:{self.port}"\nmax_payload: {max_payload}\n{store}{extra}\n'
        )

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        path = self.folder / "server.log"
        return path.read_text() if path.exists() else ""

    def start(self) -> Self:
        arguments = [
            str(verified_binary()),
            "-c",
            str(self.folder / "server.conf"),
            "-l",
            str(self.folder / "server.log"),
        ]
        self._process = subprocess.Popen(arguments)
        try:
            self._until_it_listens(self._process)
        except BaseException:  # also where a test's time is over: nobody else knows of it yet
            self.stop()
            raise
        return self

    def _until_it_listens(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < end and process.poll() is None:
            try:
                return socket.create_connection((self.host, self.port), 2.0).close()
            except OSError:
                time.sleep(0.02)
        raise AssertionError(f"the server did not start: {self.log}")

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        self.signal(how)
        process, self._process = self._process, None
        if process is not None:
            process.wait(30)

    def signal(self, how: signal.Signals) -> None:
        """Tell it to end, and do not wait for that."""
        process = self._process
        if process is not None and process.poll() is None:
            os.kill(process.pid, signal.SIGCONT)
            process.send_signal(how)

    def pause(self) -> None:
        """It keeps its sockets and answers nothing, as a host that hangs."""
        assert self._process is not None
        freeze(self._process.pid)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


class Proxy(proxy.Proxy):
    """Between client and server."""

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> Proxy:
        await super().start()
        return self
