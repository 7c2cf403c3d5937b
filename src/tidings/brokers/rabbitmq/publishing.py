"""Publishing: many messages in one write, each confirmed, and none reported as stored that is not.

Every message is persistent and mandatory: a server confirms also what no queue took, and says so before (trap 105).
What was sent and not answered is not sent again: there is nothing here that would drop the second one.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from pamqp import commands

from tidings.brokers.rabbitmq import frames, names, waiting
from tidings.brokers.rabbitmq.channel import GRANT, REFUSED, Channel, NotAllowed, Refused
from tidings.brokers.rabbitmq.connection import Connection
from tidings.brokers.rabbitmq.link import Link
from tidings.brokers.rabbitmq.reading import BEGINS
from tidings.brokers.rabbitmq.topology import Topology
from tidings.delivery import NO_HEADERS, Header, Message, Route
from tidings.errors import BrokerUnavailable, EventTooLarge, InvalidEvent, NotStored, TidingsError

WAVE_MESSAGES: Final = 1000
WAVE_BYTES: Final = 8 * 1024 * 1024
"""How much is sent before its confirmations are waited for."""
DEFAULT: Final = "amq.default"
"""How the server calls the exchange without a name."""
ANSWER: Final = 10.0
CLOSE: Final = 2.0
PAUSE: Final = 0.1
AGE: Final = 0.5
"""How old may be what is known of positions when no queue took something."""
_FRAME: Final = 8

_LOGS: Final = {Route.DEAD: names.DEAD, Route.NOTE: names.NOTES}
_MAYBE: Final = "the event may be stored or not; publishing it again under the same id is safe behind once="


class Frame(msgspec.Struct, gc=False):
    """A message on its way out, and what became of it."""

    message: Message
    exchange: str
    routing_key: str
    header: bytes
    headers: Mapping[str, str] = NO_HEADERS
    place: str = ""
    """Of a copy, for whom it is, and its partition."""
    tries: int = 0
    answer: str = ""
    """``stored``, ``refused``, ``nobody`` or nothing."""

    @property
    def size(self) -> int:
        return len(self.header) + len(self.message.body)


class _Wave:
    """Messages that were sent together."""

    def __init__(self, count: int) -> None:
        self.open = count
        self.done = asyncio.Event()

    def answered(self) -> None:
        self.open -= 1
        if not self.open:
            self.done.set()


class Confirming:
    """A channel on which everything that is published is confirmed."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._pending: dict[int, tuple[Frame, _Wave]] = {}
        self._sent = 0
        channel.on_confirm = self._confirmed
        channel.on_return = self._returned
        channel.on_closed = self._closed

    @classmethod
    async def on(cls, link: Link) -> Confirming:
        """Raises BrokerUnavailable."""
        channel = await link.channel(ANSWER)
        await channel.call(commands.Confirm.Select(), ANSWER)
        return cls(channel)

    @property
    def waits(self) -> bool:
        """Whether something has no answer yet."""
        return bool(self._pending)

    async def send(self, wave: Sequence[Frame], timeout: float) -> None:
        """Send, and wait for the answers until the time is over. Raises BrokerUnavailable if nothing was sent."""
        channel, state = self.channel, _Wave(len(wave))
        end = time.monotonic() + timeout
        try:
            async with asyncio.timeout(timeout):
                # What is written all the same piles up here, and is stored once more for each time that it was tried.
                await channel.link.drained()
        except TimeoutError:
            raise BrokerUnavailable("the server takes nothing just now") from None
        if not channel.open:
            raise channel.why
        first = self._sent + 1
        parts = []
        for frame in wave:
            self._sent += 1
            self._pending[self._sent] = (frame, state)
            body, most = frame.message.body, channel.link.most_frame
            parts.append(frames.message(channel.number, frame.exchange, frame.routing_key, frame.header, body, most))
        try:
            channel.link.send(b"".join(parts))
            async with asyncio.timeout(max(end - time.monotonic(), 0.001)):
                await state.done.wait()
        except (TimeoutError, BrokerUnavailable):
            pass  # what has no answer is not known
        finally:
            if state.open:
                for number in range(first, first + len(wave)):
                    self._pending.pop(number, None)

    def _confirmed(self, number: int, all_before: bool, stored: bool) -> None:
        pending = self._pending
        if all_before:
            for one in list(pending):
                if one > number:
                    break
                self._answer(*pending.pop(one), stored)
        elif (found := pending.pop(number, None)) is not None:
            self._answer(*found, stored)

    def _answer(self, frame: Frame, wave: _Wave, stored: bool) -> None:
        if not frame.answer:
            frame.answer = "stored" if stored else "refused"
        wave.answered()

    def _returned(self, content: frames.Content) -> None:
        """No queue took it. The confirmation comes all the same, after this (trap 108: ids alone do not tell which)."""
        for frame, _ in self._pending.values():
            if (
                not frame.answer
                and (frame.routing_key, frame.exchange) == (content.routing_key, content.exchange)
                and frames.fit_id(frame.message.id) == content.id
            ):
                frame.answer = "nobody"
                return

    def _closed(self, why: BrokerUnavailable) -> None:
        pending, self._pending = self._pending, {}
        for _, wave in pending.values():
            wave.answered()


class Publisher:
    """Stores messages over one connection."""

    def __init__(self, connection: Connection, topology: Topology) -> None:
        self._connection = connection
        self._topology = topology
        self._where = connection.options.where
        self._confirming: Confirming | None = None
        self._turn = asyncio.Lock()
        self.max_event = 1024 * 1024

    async def publish(self, messages: Sequence[Message], timeout: float) -> list[Exception | None]:
        """Store messages; see `ports.Broker.publish`."""
        end = time.monotonic() + timeout
        results: list[Exception | None] = [None] * len(messages)
        ready: dict[int, Frame] = {}
        missing: dict[str, Exception | None] = {}
        for index, message in enumerate(messages):
            try:
                ready[index] = self._frame_of(message)
                if message.route is Route.EVENT and (error := await self._missing(message.stream, missing, end)):
                    results[index] = error
                    del ready[index]
            except TidingsError as error:
                results[index] = error
        for indices in _waves(ready):
            await self._store(indices, ready, results, end)
        return results

    async def begin(self, log: str) -> None:
        """Store a first message in a log. Raises BrokerUnavailable."""
        for error in await self._write(log, [b""], {BEGINS: "begins"}, ANSWER):
            if error is not None:
                raise error

    async def write_down(self, bodies: Sequence[bytes], timeout: float) -> list[Exception | None]:
        """Store what is to be known of positions."""
        return await self._write(names.POSITIONS, bodies, {}, timeout)

    async def _write(
        self, log: str, bodies: Sequence[bytes], headers: Mapping[str, str], timeout: float
    ) -> list[Exception | None]:
        noted = [Message(id=secrets.token_hex(8), route=Route.NOTE, stream="", type="", body=body) for body in bodies]
        ready = {
            index: Frame(one, "", log, frames.properties(headers, one.id, len(one.body)))
            for index, one in enumerate(noted)
        }
        results: list[Exception | None] = [None] * len(noted)
        for indices in _waves(ready):
            await self._store(indices, ready, results, time.monotonic() + timeout)
        return results

    async def move(self, position: str, copies: Sequence[frames.Content]) -> list[Exception | None]:
        """Store copies that are with us, as they are, where each is to stand next; the caller lets go of them then."""
        ready: dict[int, Frame] = {}
        for index, copy in enumerate(copies):
            body, headers = copy.body, copy.headers
            message = Message(
                id=copy.id, route=Route.RETRY, position=position, stream="", type="", body=body, headers=headers
            )
            place, _ = names.place_and_time(copy.routing_key)
            header = frames.properties(headers, copy.id, len(body))
            ready[index] = frame = Frame(message, "", "", header, headers, place)
            _to_wait(frame, waiting.seconds_left(copy.headers))
        results: list[Exception | None] = [None] * len(copies)
        end = time.monotonic() + ANSWER
        for indices in _waves(ready):
            await self._store(indices, ready, results, end)
        return results

    async def _missing(self, stream: str, known: dict[str, Exception | None], end: float) -> Exception | None:
        """Why events of a stream cannot be published; an exchange that is not there would close the channel."""
        if stream not in known:
            try:
                async with asyncio.timeout(max(end - time.monotonic(), 0.001)):
                    found = await self._topology.has_exchange(stream)
                known[stream] = None if found else _no_exchange(stream)
            except (TimeoutError, BrokerUnavailable) as error:
                known[stream] = BrokerUnavailable(f"nothing was sent: {str(error) or self._connection.trouble}")
        return known[stream]

    async def _store(
        self, indices: list[int], ready: Mapping[int, Frame], results: list[Exception | None], end: float
    ) -> None:
        """Send a wave, and what has to go another way after that."""
        left = indices
        while left:
            for index in left:
                ready[index].answer = ""
            try:
                confirming = await self._ready(end)
                await confirming.send([ready[index] for index in left], max(end - time.monotonic(), 0.001))
                if any(ready[index].answer == "refused" for index in left) and confirming is self._confirming:
                    self._confirming = None
                await self._let_go_of(confirming)
            except BrokerUnavailable as error:
                for index in left:
                    results[index] = BrokerUnavailable(f"nothing was sent: {self._connection.trouble or error}")
                return
            again: list[int] = []
            for index in left:
                try:
                    if await self._goes_on(ready[index], confirming, end):
                        again.append(index)
                    results[index] = None
                except TidingsError as error:
                    results[index] = error
            left = again
            if any(ready[index].tries > 1 for index in left):
                await asyncio.sleep(PAUSE)

    async def _ready(self, end: float) -> Confirming:
        try:
            async with asyncio.timeout(max(end - time.monotonic(), 0.001)):
                async with self._turn:
                    if self._confirming is None or not self._confirming.channel.open:
                        link = await self._connection.ready(max(end - time.monotonic(), 0.001))
                        self._confirming = await Confirming.on(link)
                    return self._confirming
        except TimeoutError:
            raise BrokerUnavailable(self._connection.trouble or f"no answer in time from {self._where}") from None

    async def _let_go_of(self, confirming: Confirming) -> None:
        """Close a channel on which something was refused, once nobody waits for its answers.

        A channel that first published to a queue while its leader was dying believes in that leader ever after, and
        refuses whatever comes; a new one asks who leads.
        """
        if confirming is not self._confirming and not confirming.waits:
            try:
                await confirming.channel.close(CLOSE)
            except BrokerUnavailable:
                pass  # it went with its link

    async def _goes_on(self, frame: Frame, confirming: Confirming, end: float) -> bool:
        """Whether a message is to be sent once more, another way; False when it is stored. Raises what is wrong."""
        if frame.answer == "stored":
            return False
        if frame.answer == "refused":
            raise NotStored(
                f"the server refused to store {frame.message.type or 'a note'} {frame.message.id}: a queue is full, or"
                " has no majority of its nodes"
            )
        if frame.answer == "nobody":
            return await self._another_way(frame, end)
        why = confirming.channel.why
        if isinstance(why, Refused) and why.missing:
            self._topology.forget(frame.exchange)
        if isinstance(why, Refused) and why.code == REFUSED and f"'{frame.exchange or DEFAULT}'" in why.text:
            raise NotAllowed(f"{self._where} does not let the user publish: {why.text}. {GRANT}")
        blocked = self._connection.trouble
        raise BrokerUnavailable(f"{_MAYBE}: no answer in time from {self._where}{': ' if blocked else ''}{blocked}")

    async def _another_way(self, frame: Frame, end: float) -> bool:
        """No queue took it."""
        message = frame.message
        known = {} if message.route in _LOGS else await self._topology.positions(age=AGE)
        frame.tries += 1
        if message.route is Route.EVENT and frame.exchange != names.UNROUTED:
            if not any(one.stream == message.stream for one in known.values()):
                raise NotStored(
                    f"no queue takes from the exchange {message.stream!r}, so nothing would keep {message.type}"
                    f" {message.id}: RabbitMQ has no history. Start a service that handles events of this stream first;"
                    " an event that nobody has to take is declared with optional=True"
                )
            if not any(message.type in one.types for one in known.values()):
                frame.exchange = names.UNROUTED  # nobody asks for this type: kept for a while, as a stream would
        elif message.route is Route.RETRY:
            if message.position not in known:
                raise NotStored(
                    f"there is no position {message.position!r}, so nobody would take the copy of {message.type}. Start"
                    " the service first, or look at its name"
                )
            _to_wait(frame, 0.0 if known[message.position].ordered else waiting.seconds_left(frame.headers))
        if time.monotonic() + PAUSE > end:
            raise NotStored(
                f"no queue took {message.type or 'a note'} {message.id}, although there is one for it: the server has"
                " just started, or somebody removed the queue. Restarting a service makes it anew"
            )
        return True

    def _frame_of(self, message: Message) -> Frame:
        """A message as it travels. Raises what is wrong with it."""
        route, headers = message.route, message.headers
        if len(message.body) > self.max_event:
            raise EventTooLarge(
                f"{message.type} {message.id} has {len(message.body):,} bytes; {self.max_event:,} may travel. Store the"
                " large part elsewhere and publish where it stands"
            )
        if route is Route.EVENT:
            exchange, key = message.stream, names.event_key(message.stream, message.type, message.key)
        elif route is Route.RETRY:
            if message.due is not None:
                headers = {**headers, Header.DUE: waiting.due_text(message.due)}
            exchange, key = names.RETRY, names.copy_place(message.position, message.key)
        else:
            exchange, key = "", _LOGS[route]
        try:
            header = frames.properties(headers, message.id, len(message.body))
        except ValueError as error:
            raise InvalidEvent(f"{message.type} {message.id}: {error}") from None
        if len(header) > frames.MOST_FRAME - _FRAME:
            raise EventTooLarge(f"{message.type} {message.id} has {len(header):,} bytes of headers; 128 KiB may travel")
        frame = Frame(message, exchange, key, header, headers)
        if route is Route.RETRY:
            frame.place = key
            _to_wait(frame, 0.0 if message.due is None else message.due - time.time())
        return frame


def _to_wait(frame: Frame, left: float) -> None:
    """Where a copy goes that has so much time left."""
    step = waiting.step_for(left)
    frame.exchange = names.WAIT if step else names.RETRY
    frame.routing_key = names.copy_key(frame.place, step, time.time() + min(left, step / 1000))


def _no_exchange(stream: str) -> Exception:
    return NotStored(
        f"there is no exchange {stream!r}, so nothing would keep its events. Start a service that publishes or handles"
        " them first, or name the type in publishes="
    )


def _waves(ready: Mapping[int, Frame]) -> list[list[int]]:
    """The indices in their order, in portions that bound what is on its way at once."""
    waves: list[list[int]] = []
    size = WAVE_BYTES
    for index, frame in ready.items():
        if size + frame.size > WAVE_BYTES or len(waves[-1]) >= WAVE_MESSAGES:
            waves.append([])
            size = 0
        waves[-1].append(index)
        size += frame.size
    return waves
