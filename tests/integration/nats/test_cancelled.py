"""Trap 151: up to Python 3.11 `asyncio.wait_for`, which the client library stands on, swallows a cancellation that
comes in the same moment as what it waits for. A connection must end all the same.
"""

from __future__ import annotations

import asyncio

import pytest

from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.options import parse

pytestmark = pytest.mark.server

INFO = b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"headers":true,"jetstream":true}\r\n'
OFFSETS = range(14)
"""Rounds of the loop between the server's word and the cancellation: some of them meet at the same moment."""


class SlowServer:
    """Greets the first client and drops it; the next one is greeted, or answered, only when it is told to."""

    def __init__(self, waits_before: bytes) -> None:
        self._waits_before = waits_before
        self._first = True
        self.arrived, self.go = asyncio.Event(), asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, self._first = self._first, False
        try:
            await self._before(b"INFO", first)
            writer.write(INFO)
            while line := await reader.readline():
                if line.startswith(b"PING"):
                    await self._before(b"PONG", first)
                    writer.write(b"PONG\r\n")
                    if first:
                        await asyncio.sleep(0.02)
                        return
        except OSError:
            pass  # the client went away
        finally:
            writer.transport.abort()

    async def _before(self, word: bytes, first: bool) -> None:
        if word == self._waits_before and not first:
            self.arrived.set()
            await self.go.wait()


@pytest.mark.parametrize("word", [b"INFO", b"PONG"])
async def test_trap_151_a_connection_closed_in_the_moment_it_comes_back_is_closed(word: bytes) -> None:
    for offset in OFFSETS:
        slow = SlowServer(word)
        server = await asyncio.start_server(slow.serve, "127.0.0.1", 0)
        connection = Connection(parse(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"), "test")
        async with server, asyncio.timeout(10):
            await connection.start()
            await slow.arrived.wait()
            await asyncio.sleep(0.01)
            slow.go.set()
            for _ in range(offset):
                await asyncio.sleep(0)
            await connection.close()
            assert connection.link is None


@pytest.mark.parametrize("word", [b"INFO", b"PONG"])
async def test_trap_151_a_task_cancelled_in_the_moment_it_is_connected_is_cancelled(word: bytes) -> None:
    for offset in OFFSETS:
        slow = SlowServer(word)
        slow._first = False
        server = await asyncio.start_server(slow.serve, "127.0.0.1", 0)
        connection = Connection(parse(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"), "test")
        async with server, asyncio.timeout(10):
            starting = asyncio.create_task(connection.start())
            await slow.arrived.wait()
            await asyncio.sleep(0.01)
            slow.go.set()
            for _ in range(offset):
                await asyncio.sleep(0)
            cancelled = starting.cancel()
            await asyncio.wait({starting})
            assert starting.cancelled() == cancelled
            await connection.close()
