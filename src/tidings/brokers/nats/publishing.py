"""Publishing: many messages in one write, each with a checked answer, and none reported as stored that is not.

An id is never changed between attempts, so the server stores a message once however often it is sent (traps 14 and
140). While there is no connection nothing is kept for later: the caller waits, within its timeout (trap 54).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from tidings.brokers.nats.api import FULL, NO_STREAM, TOO_LARGE, TRANSIENT, Api, ApiError
from tidings.brokers.nats.atomic import FEWEST, MOST, store_batch, suits
from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.frames import Frame, frame_of
from tidings.brokers.nats.headers import status_of
from tidings.brokers.nats.link import Link
from tidings.delivery import Message
from tidings.errors import BrokerUnavailable, ConfigurationError, EventTooLarge, NotStored, TidingsError

WAVE_MESSAGES: Final = MOST
WAVE_BYTES: Final = 8 * 1024 * 1024
"""How much is sent before its answers are waited for."""
PAUSE: Final = 0.1
ANSWER: Final = 5.0
"""Seconds for the first answer; twice as long after each attempt, so that a slow server is not sent more and more.

A leader that dies or hangs takes with it what it had not answered: nobody answers that, however long one waits.
"""


class AckError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct):
    """What the server answers to a published message."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: AckError | None = None
    batch: str = ""
    count: int = 0


_decode = msgspec.json.Decoder(PubAck).decode


class Again(Exception):
    """Not stored for a reason that passes, or not known: to be sent once more under the same id."""


class Publisher:
    """Stores messages over one connection."""

    def __init__(self, connection: Connection, api: Api) -> None:
        self._connection = connection
        self._api = api
        self._where = connection.options.where
        self.max_event = 1024 * 1024
        self.max_payload = 1024 * 1024

    async def publish(self, messages: Sequence[Message], timeout: float) -> list[Exception | None]:
        """Store messages; see `ports.Broker.publish`."""
        end = time.monotonic() + timeout
        not_tried = BrokerUnavailable(f"{_NOT_SENT}: what goes ahead of it took all the time")
        results: list[Exception | None] = [not_tried] * len(messages)
        frames: dict[int, Frame] = {}
        for index, message in enumerate(messages):
            try:
                frames[index] = frame_of(message, self.max_event, self.max_payload)
            except TidingsError as error:
                results[index] = error
        stuck: set[str] = set()
        for indices in _waves(frames):
            if (stream := frames[indices[0]].stream) not in stuck:
                await self._store(indices, frames, results, end)
                if _unknown(indices, results):
                    stuck.add(stream)  # the next wave may have later events of the same keys
        return results

    async def publish_batch(self, messages: Sequence[Message], timeout: float) -> bool:
        """Store messages all or nothing, in their order; see `ports.Batches.publish_batch`."""
        end = time.monotonic() + timeout
        try:
            frames = [frame_of(message, self.max_event, self.max_payload) for message in messages]
            if not suits(frames, fewest=2) or sum(frame.size for frame in frames) > WAVE_BYTES + self.max_payload:
                return False
            link = await self._connection.ready(max(end - time.monotonic(), 0.001))
        except TidingsError:
            return False  # publishing them one by one says why
        return await store_batch(link, frames, end - time.monotonic())

    async def _store(
        self, indices: list[int], frames: dict[int, Frame], results: list[Exception | None], end: float
    ) -> None:
        """Store a wave. Of a key that stands in it more than once nothing is sent before its turn.

        What is sent together may be stored in part, and in another order with the next attempt: the server turns away
        what it has no room for just now, and a leader that is lost takes with it what it had not shared. A batch is
        stored whole or not at all.
        """
        turns = _turns(indices, frames)
        wave = [frames[index] for index in indices]
        if suits(wave, fewest=FEWEST if len(turns) == 1 else 2):
            link = await self._link(indices, results, end)
            if link is None:
                return
            for index in indices:
                results[index] = BrokerUnavailable(f"{_MAYBE}: no answer in time from {self._where}")
            if await store_batch(link, wave, min(end - time.monotonic(), ANSWER)):
                for index in indices:
                    results[index] = None
                return
        for turn in turns:
            await self._send(turn, frames, results, end)
            if _unknown(turn, results):
                return

    async def _send(
        self, left: list[int], frames: dict[int, Frame], results: list[Exception | None], end: float
    ) -> None:
        """Send messages side by side until each of them is stored or refused, or the time is over."""
        patience = ANSWER
        while left and (link := await self._link(left, results, end)) is not None:
            limit = min(end - time.monotonic(), patience)
            patience *= 2
            wave = Wave(len(left))
            await wave.run(link, [frames[index] for index in left], limit)
            again: list[int] = []
            missing: dict[str, Exception | None] = {}
            for index, answer in zip(left, wave.answers, strict=True):
                try:
                    results[index] = await self._meaning(answer, frames[index], missing)
                except Again as reason:
                    results[index] = BrokerUnavailable(f"{_MAYBE}: {reason}")
                    again.append(index)
            left = again
            if not left or time.monotonic() + PAUSE > end:
                return
            await asyncio.sleep(PAUSE)

    async def _link(self, left: list[int], results: list[Exception | None], end: float) -> Link | None:
        """What to send over, or nothing where there is no connection, or no time."""
        if (remaining := end - time.monotonic()) <= 0:
            return None
        try:
            return await self._connection.ready(remaining)
        except BrokerUnavailable as error:
            for index in left:
                sent = str(results[index]).startswith(_MAYBE)
                results[index] = BrokerUnavailable(f"{_MAYBE if sent else _NOT_SENT}: {error}")
            return None

    async def _meaning(self, answer: Answered, frame: Frame, missing: dict[str, Exception | None]) -> Exception | None:
        """None for stored; raises Again for what may work with the next attempt."""
        if answer is None:
            link = self._connection.link
            if link is not None and f'"{frame.subject.decode().lower()}"' in link.denied:
                return ConfigurationError(
                    f"this user may not publish on {frame.subject.decode()} at {self._where} ({link.denied}): grant it"
                    " in the server's configuration"
                )
            raise Again(f"no answer in time from {self._where}")
        headers, data = answer
        if data is None:
            raise Again(f"the connection to {self._where} was lost while it was stored")
        if headers is not None and not data and status_of(headers)[0] == 503:
            if frame.stream not in missing:
                missing[frame.stream] = await self._missing(frame)
            if (error := missing[frame.stream]) is not None:
                return error
            raise Again(f"nobody takes {frame.subject.decode()} just now: the stream {frame.stream!r} has no leader")
        try:
            ack = _decode(data)
        except msgspec.DecodeError:
            ack = PubAck()
        if ack.error is not None:
            return self._refusal(ack.error, frame)
        if ack.stream != frame.stream:
            # Anybody may answer on a subject that no stream takes (trap 15).
            return NotStored(
                f"something that is not the stream {frame.stream!r} answered to an event on {frame.subject.decode()},"
                " and nothing was stored. Is the stream there (nats stream ls)? Does a service answer on its subjects?"
            )
        return None

    async def _missing(self, frame: Frame) -> Exception | None:
        """Nobody took it: because the stream is missing, or has it no leader just now (trap 16)?"""
        try:
            await self._api.call(f"STREAM.INFO.{frame.stream}", timeout=2.0, patience=0.0)
        except ApiError as error:
            if error.err_code == NO_STREAM:
                return NotStored(
                    f"there is no stream {frame.stream!r}, so nothing would keep an event on {frame.subject.decode()}."
                    " Start a service that publishes or handles its events first, or name the type in publishes="
                )
        except BrokerUnavailable:
            pass  # the same reason, most likely
        return None

    def _refusal(self, error: AckError, frame: Frame) -> Exception:
        if error.err_code in TRANSIENT or error.code == 429:
            raise Again(f"the server said: {error.description} ({error.err_code})")
        if error.err_code in FULL:
            return NotStored(
                f"the stream {frame.stream!r} is full ({error.description}), and refuses events rather than drop old"
                f" ones. Raise its limits (nats stream edit {frame.stream} --max-bytes=… --max-msgs=…), give the server"
                " more room, or keep events for a shorter time"
            )
        if error.err_code in TOO_LARGE:
            return EventTooLarge(f"the stream {frame.stream!r} refused {frame.size:,} bytes: {error.description}")
        return NotStored(
            f"the stream {frame.stream!r} did not store an event on {frame.subject.decode()}: {error.description}"
            f" ({error.err_code})"
        )


Answered = tuple[bytes | None, bytes | None] | None
"""Headers and data of an answer; data is None when the connection was lost, all is None when none came."""


class Wave:
    """Messages that are sent together, and their answers."""

    def __init__(self, count: int) -> None:
        self.answers: list[Answered] = [None] * count
        self._open = count
        self._done = asyncio.Event()

    async def run(self, link: Link, frames: Sequence[Frame], timeout: float) -> None:
        """Send, and wait for the answers until the time is over."""
        replies = [link.expect(self._take, index) for index in range(len(frames))]
        link.when_denied.add(self._done.set)  # there will be no answer, so it is not waited for
        try:
            async with asyncio.timeout(timeout):
                link.send(b"".join([frame.publish(reply) for frame, reply in zip(frames, replies, strict=True)]))
                await link.drained()
                await self._done.wait()
        except (TimeoutError, BrokerUnavailable):
            pass  # what has no answer is not known
        finally:
            link.when_denied.discard(self._done.set)
            if self._open:
                for reply in replies:
                    link.forget(reply)

    def _take(self, index: int, headers: bytes | None, data: bytes | None) -> None:
        self.answers[index] = (headers, data)
        self._open -= 1
        if not self._open:
            self._done.set()


def _waves(frames: dict[int, Frame]) -> list[list[int]]:
    """The indices by stream and in their order, in portions that bound what is on its way at once."""
    waves: list[list[int]] = []
    size = WAVE_BYTES
    stream = ""
    for index, frame in sorted(frames.items(), key=lambda pair: pair[1].stream):
        if frame.stream != stream:
            stream, size = frame.stream, WAVE_BYTES
        if size + frame.size > WAVE_BYTES or len(waves[-1]) >= WAVE_MESSAGES:
            waves.append([])
            size = 0
        waves[-1].append(index)
        size += frame.size
    return waves


def _turns(wave: list[int], frames: dict[int, Frame]) -> list[list[int]]:
    """The indices of a wave in turns, each of which has a key once; what has no key has no order to keep."""
    turns: list[list[int]] = []
    seen: Counter[str] = Counter()
    for index in wave:
        key = frames[index].key
        turn = 0 if key is None else seen[key]
        if key is not None:
            seen[key] += 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(index)
    return turns


def _unknown(indices: list[int], results: list[Exception | None]) -> bool:
    """Whether one of these may be stored or not, or was not sent."""
    return any(isinstance(results[index], BrokerUnavailable) for index in indices)


_MAYBE = "the event may be stored or not; publishing it again under the same id is safe"
_NOT_SENT = "nothing was sent"
