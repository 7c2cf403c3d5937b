"""A proxy that can cut, freeze or lose what passes between a client and a server."""

from __future__ import annotations

import asyncio


class Proxy:
    """Between client and server: passes bytes on, until it is told not to."""

    def __init__(self, port: int, at: int = 0) -> None:
        self._target = port
        self._at = at
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
        self.lose = b""
        """Requests that hold these bytes are lost on their way to the server."""
        self.unanswered = b""
        """The first request that holds these bytes reaches the server, and nothing of its connection comes back."""
        self.cuts = False
        """What is lost takes its connection along."""
        self.lost = 0

    async def start(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._at)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def lead_to(self, port: int) -> None:
        """New connections lead to another server, as after a failover; those that stand stay where they are."""
        self._target = port

    def freeze(self) -> None:
        """Pass nothing on over the connections that stand, and say nothing: the peer is gone without a FIN."""
        self._open.clear()
        self._open = asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        """Pass nothing on over any connection, those that stand and those that come, and say nothing."""
        self._open.clear()

    def release(self) -> None:
        """Pass on again what was held, and all that follows."""
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
        mute = asyncio.Event()
        for source, target, answers in ((reader, other_writer, False), (other_reader, writer, True)):
            task = asyncio.create_task(self._pump(source, target, answers, mute))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, answers: bool, mute: asyncio.Event
    ) -> None:
        flowing = self._open
        try:
            while True:
                await flowing.wait()
                data = await source.read(65536)
                await flowing.wait()
                if not data:
                    break
                wanted = self.swallow if answers else self.lose
                if not answers and self.unanswered and self.unanswered in data:
                    self.unanswered = b""
                    mute.set()
                if not (wanted and wanted in data) and not (answers and mute.is_set()):
                    target.write(data)
                    await target.drain()
                    continue
                self.lost += 1
                if self.cuts:
                    self.cut()
                    break
        except OSError:
            pass  # the other side is gone, so this one goes too
        finally:
            target.transport.abort()
            self._writers.discard(target)
            self._clients.discard(target)
