"""A real nats-server for one test, and a proxy that can cut or freeze the way to it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from tidings.brokers.nats.embedded_binary import verified_binary
from tidings.brokers.nats.embedded_probe import free_port


class NatsServer:
    """The server binary with a configuration of its own, on a free loopback port."""

    def __init__(self, folder: Path, *, extra: str = "", jetstream: str | None = "", max_payload: str = "2MB") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(extra=extra, jetstream=jetstream, max_payload=max_payload)

    def configure(self, *, extra: str = "", jetstream: str | None = "", max_payload: str = "2MB") -> None:
        store = "" if jetstream is None else f'jetstream {{ store_dir: "{self.folder / "js"}"\n{jetstream} }}\n'
        (self.folder / "server.conf").write_text(
            f'listen: "127.0.0.1:{self.port}"\nmax_payload: {max_payload}\n{store}{extra}\n'
        )

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    def start(self) -> NatsServer:
        arguments = [
            str(verified_binary()),
            "-c",
            str(self.folder / "server.conf"),
            "-l",
            str(self.folder / "server.log"),
        ]
        self._process = subprocess.Popen(arguments)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.2).close()
                return self
            except OSError:
                assert self._process.poll() is None, self.log
                time.sleep(0.02)
        raise AssertionError(f"the server did not start: {self.log}")

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            os.kill(process.pid, signal.SIGCONT)
            process.send_signal(how)
            process.wait(15)

    def pause(self) -> None:
        """It keeps its sockets and answers nothing, as a host that hangs."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)


class Proxy:
    """Between client and server: passes bytes on, until it is told not to."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.port = 0
        self.connections = 0
        self.swallow = b""
        """Answers that hold these bytes are lost on their way to the client."""

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def freeze(self) -> None:
        """Pass nothing on over the connections that stand, and say nothing: the peer is gone without a FIN."""
        self._open.clear()
        self._open = asyncio.Event()
        self._open.set()

    def inject(self, data: bytes) -> None:
        """Say something to every client, in the server's name."""
        for writer in self._clients:
            writer.write(data)

    def cut(self) -> None:
        """Close every connection at once."""
        for writer in self._writers:
            writer.transport.abort()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, other_writer}
        self._clients.add(writer)
        for source, target, answers in ((reader, other_writer, False), (other_reader, writer, True)):
            task = asyncio.create_task(self._pump(source, target, answers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, answers: bool) -> None:
        flowing = self._open
        try:
            while True:
                await flowing.wait()
                data = await source.read(65536)
                await flowing.wait()
                if not data:
                    break
                if not (answers and self.swallow and self.swallow in data):
                    target.write(data)
                    await target.drain()
        except OSError:
            pass  # the other side is gone, so this one goes too
        finally:
            target.transport.abort()
            self._writers.discard(target)
            self._clients.discard(target)
