"""A proxy before a Kafka node that knows requests apart, and answers commits in the coordinator's name when told to."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Final

from confluent_kafka import KafkaError

PRODUCE: Final = 0
OFFSET_COMMIT: Final = 8
VERSION: Final = 9

Spoken = dict[tuple[str, int], tuple[int, str]]
"""What is said of each partition: the offset, and the text beside it."""


class Between:
    """Passes on what is asked and answered; of commits it keeps what they say, in `said`."""

    def __init__(self, port: int, at: int) -> None:
        self._target = port
        self._at = at
        self._server: asyncio.Server | None = None
        self._writers = set[asyncio.StreamWriter]()
        self._tasks = set[asyncio.Task[None]]()
        self.said: list[Spoken] = []
        """The commits that came here, in their order, those that went no further as well."""
        self.answer: Callable[[Spoken], dict[tuple[str, int], int]] = lambda spoken: {}
        """The code to answer for each partition of a commit, which then goes no further; nothing where it may pass."""
        self.holds = False
        """The next commit goes no further, and is answered just before the one that follows it passes."""
        self._held: bytes = b""
        self.keeps: int | None = None
        """Requests of this kind wait here, and others pass them, until `pass_on`."""
        self.kept: list[tuple[asyncio.StreamWriter, bytes]] = []

    async def start(self) -> Between:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._at)
        return self

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def pass_on(self) -> None:
        """Let what waits here go on, and all that follows."""
        self.keeps, kept, self.kept = None, self.kept, []
        for onward, request in kept:
            onward.write(request)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, onward}
        for coroutine in (self._asks(reader, onward, writer), self._answers(there, writer)):
            task = asyncio.create_task(coroutine)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _asks(
        self, reader: asyncio.StreamReader, onward: asyncio.StreamWriter, back: asyncio.StreamWriter
    ) -> None:
        try:
            while True:
                size = await reader.readexactly(4)
                frame = await reader.readexactly(*struct.unpack(">i", size))
                (kind,) = struct.unpack_from(">h", frame)
                if kind == self.keeps:
                    self.kept.append((onward, size + frame))
                elif kind != OFFSET_COMMIT or self._passes(frame, back):
                    onward.write(size + frame)
                await onward.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # that side is gone, so the other goes too
        finally:
            onward.transport.abort()

    def _passes(self, frame: bytes, back: asyncio.StreamWriter) -> bool:
        """Whether a commit goes on to the node."""
        spoken = _spoken(frame)
        self.said.append(spoken)
        if self.holds:
            self.holds, self._held = False, frame
            return False
        if self._held:
            held, self._held = self._held, b""
            back.write(_answer(held, dict.fromkeys(_spoken(held), KafkaError.COORDINATOR_LOAD_IN_PROGRESS)))
        if codes := self.answer(spoken):
            back.write(_answer(frame, codes))
        return not codes

    async def _answers(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                back.write(data)
                await back.drain()
        except OSError:
            pass
        finally:
            back.transport.abort()


class _Bytes:
    """Reads the fields of a request, one after the other."""

    def __init__(self, frame: bytes) -> None:
        self._frame = frame
        self._at = 0

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self._frame, self._at)
        self._at += struct.calcsize(form)
        return int(value)

    def count(self) -> int:
        """A compact length: one more than it is, and 0 for what is not there."""
        value = shift = 0
        while True:
            byte = self.take(">B")
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def text(self, size: int | None = None) -> str:
        size = max(0, self.count() - 1 if size is None else size)
        self._at += size
        return self._frame[self._at - size : self._at].decode()

    def no_tags(self) -> None:
        assert self.count() == 0


def _spoken(frame: bytes) -> Spoken:
    """What a commit says."""
    read = _Bytes(frame)
    assert (read.take(">h"), read.take(">h")) == (OFFSET_COMMIT, VERSION), "the client speaks another version"
    read.take(">i")
    read.text(read.take(">h"))  # the client's name
    read.no_tags()
    read.text()  # the group, the generation, the member and its instance
    read.take(">i")
    read.text()
    read.text()
    found: Spoken = {}
    for _ in range(read.count() - 1):
        topic = read.text()
        for _ in range(read.count() - 1):
            number, offset, _ = read.take(">i"), read.take(">q"), read.take(">i")
            found[topic, number] = offset, read.text()
            read.no_tags()
        read.no_tags()
    return found


def _answer(request: bytes, codes: dict[tuple[str, int], int]) -> bytes:
    """What a coordinator answers that found this of the partitions of a commit."""
    topics = list(dict.fromkeys(topic for topic, _ in codes))
    body = request[4:8] + b"\0" + struct.pack(">iB", 0, len(topics) + 1)
    for topic in topics:
        ours = [(number, code) for (one, number), code in codes.items() if one == topic]
        body += struct.pack(">B", len(topic) + 1) + topic.encode() + struct.pack(">B", len(ours) + 1)
        body += b"".join(struct.pack(">ihB", number, code, 0) for number, code in ours) + b"\0"
    body += b"\0"
    return struct.pack(">i", len(body)) + body
