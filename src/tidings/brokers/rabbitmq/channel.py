"""A channel: its calls and their answers, what is confirmed of what was published, and what is delivered.

Everything ends with the channel: delivery tags are its own (trap 110), so a token belongs to the channel it came by.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar, cast

import pamqp.frame
from pamqp import commands
from pamqp.base import Frame

from tidings.brokers.rabbitmq.frames import (
    ACK,
    BODY,
    CLOSE,
    CLOSE_OK,
    DELIVER,
    HEADER,
    METHOD,
    NACK,
    RETURN,
    Content,
    confirmed,
    delivered,
    read_header,
    returned,
)
from tidings.errors import BrokerUnavailable, ConfigurationError

NOT_FOUND: Final = 404
REFUSED: Final = 403
DIFFERENT: Final = 406

GRANT: Final = "Grant it with rabbitmqctl set_permissions"

F = TypeVar("F", bound=Frame)
Take = Callable[[Content], None]


class Refused(BrokerUnavailable):
    """The server closed a channel, or a connection, with a code that says why."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code
        self.text = text

    @property
    def passing(self) -> bool:
        """What was asked for is there, and does not work yet: a server that has just started says so of its queues."""
        return "down or inaccessible" in self.text

    @property
    def missing(self) -> bool:
        """What was asked for is not there."""
        return self.code == NOT_FOUND and not self.passing


class NotAllowed(ConfigurationError):
    """The user has not the right."""


class Carrier(Protocol):
    """What a channel needs of the link that it belongs to."""

    most_frame: int
    blocked: str

    def send(self, data: bytes) -> None: ...
    def forget(self, channel: Channel) -> None: ...
    async def drained(self) -> None: ...


class Channel:
    """One channel of a link."""

    def __init__(self, link: Carrier, number: int) -> None:
        self.link = link
        self.number = number
        self.open = True
        self.why: BrokerUnavailable = BrokerUnavailable("the channel was closed")
        self.on_closed: Callable[[BrokerUnavailable], None] | None = None
        """Told when it has ended and it was not we who closed it."""
        self.on_confirm: Callable[[int, bool, bool], None] | None = None
        """Told of confirmations: the number, whether all up to it, whether it is stored."""
        self.on_return: Take | None = None
        self._takers: dict[str, tuple[Take, Callable[[str], None]]] = {}
        self._calls: deque[asyncio.Future[Frame]] = deque()
        self._content: Content | None = None
        self._missing = 0
        self._pieces: list[bytes] = []
        self._tags = 0
        self._parting = False
        """We have closed it, and the server has not said yet that it has."""

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def call(self, frame: Frame, timeout: float) -> Frame:
        """Say something that has an answer. Answers come in order, so nobody has to wait for a turn.

        Raises:
            Refused: the server closed the channel for it.
            BrokerUnavailable: no answer in time, or the channel is no more. What was asked may be done all the same.
        """
        if not self.open:
            raise self.why
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._calls.append(answer)
        self.link.send(pamqp.frame.marshal(frame, self.number))
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise BrokerUnavailable(f"no answer to {frame.name} within {timeout:g} s") from None

    async def ask(self, frame: Frame, kind: type[F], timeout: float) -> F:
        """The same, for who needs what the answer says."""
        found = await self.call(frame, timeout)
        if not isinstance(found, kind):
            raise BrokerUnavailable(f"the server answered {found.name} to {frame.name}")
        return found

    async def round_trip(self, timeout: float) -> None:
        """Return once the server has heard all that was said on this channel."""
        await self.call(commands.Channel.Flow(True), timeout)

    async def consume(
        self,
        queue: str,
        take: Take,
        cancelled: Callable[[str], None],
        timeout: float,
        *,
        prefetch: int = 0,
        arguments: dict[str, Any] | None = None,
        no_ack: bool = False,
    ) -> str:
        """Have what stands in a queue delivered; `cancelled` is told when the server ends that. Returns the tag."""
        self._tags += 1
        tag = f"t{self._tags}"
        self._takers[tag] = (take, cancelled)
        qos = self.call(commands.Basic.Qos(0, prefetch, False), timeout)
        asked = commands.Basic.Consume(0, queue, tag, False, no_ack, False, False, cast(Any, arguments or {}))
        try:
            await asyncio.gather(qos, self.call(asked, timeout))
        except BaseException:
            self._takers.pop(tag, None)
            raise
        return tag

    async def cancel(self, tag: str, timeout: float) -> None:
        """Have no more delivered. When it returns nothing can come any more by that tag."""
        await self.call(commands.Basic.Cancel(tag), timeout)
        self._takers.pop(tag, None)

    async def close(self, timeout: float) -> None:
        """End it; the server gives back at once what is not acknowledged. Returns once it has begun to."""
        if not self.open:
            return
        self._part()
        try:
            await self.call(_goodbye(), timeout)
            self._parting = False
        finally:
            self._end(BrokerUnavailable("the channel was closed"))

    def leave(self) -> None:
        """The same without waiting for the answer."""
        if not self.open:
            return
        self._part()
        try:
            self.link.send(pamqp.frame.marshal(_goodbye(), self.number))
        except BrokerUnavailable:
            pass  # it has gone with its connection
        self._end(BrokerUnavailable("the channel was closed"))

    def _part(self) -> None:
        self.on_closed = None
        self._takers.clear()
        self._parting = True

    def lost(self, why: str) -> None:
        """Its connection is no more."""
        self._end(BrokerUnavailable(f"the connection was lost: {why}"))

    def _end(self, why: BrokerUnavailable) -> None:
        if not self.open:
            return
        self.open, self.why = False, why
        if not self._parting:
            self.link.forget(self)
        calls, self._calls = self._calls, deque()
        for one in calls:
            if not one.done():
                one.set_exception(why)
                one.exception()  # seen: whoever waited may have gone
        if self.on_closed is not None:
            self.on_closed(why)

    # ── what comes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, kind: int, payload: bytes) -> None:
        """A frame for this channel."""
        if not self.open:
            if kind == METHOD:
                self._parted(payload)
            return
        if kind == METHOD:
            method = int.from_bytes(payload[:4], "big")
            if method == DELIVER:
                self._content = delivered(payload)
            elif method in (ACK, NACK):
                if self.on_confirm is not None:
                    self.on_confirm(*confirmed(payload), method == ACK)
            elif method == RETURN:
                self._content = returned(payload)
            else:
                self._method(payload)
        elif kind == HEADER and self._content is not None:
            self._missing = read_header(payload, self._content)
            if not self._missing:
                self._whole(b"")
        elif kind == BODY and self._content is not None:
            self._missing -= len(payload)
            if self._missing > 0:
                self._pieces.append(payload)
            elif self._pieces:
                self._pieces.append(payload)
                pieces, self._pieces = self._pieces, []
                self._whole(b"".join(pieces))
            else:
                self._whole(payload)

    def _parted(self, payload: bytes) -> None:
        """Its number is free once the server has closed it too: what comes until then is not for the next one."""
        method = int.from_bytes(payload[:4], "big")
        if method == CLOSE:
            self.link.send(pamqp.frame.marshal(commands.Channel.CloseOk(), self.number))
        if method in (CLOSE, CLOSE_OK):
            self.link.forget(self)

    def _whole(self, body: bytes) -> None:
        content, self._content = self._content, None
        if content is None:
            return
        content.body = body
        if content.tag:
            taker = self._takers.get(content.consumer)
            if taker is not None:
                taker[0](content)
        elif self.on_return is not None:
            self.on_return(content)

    def _method(self, payload: bytes) -> None:
        raw = b"\x01" + self.number.to_bytes(2, "big") + len(payload).to_bytes(4, "big") + payload + b"\xce"
        _, _, frame = pamqp.frame.unmarshal(raw)
        if isinstance(frame, commands.Channel.Close):
            self.link.send(pamqp.frame.marshal(commands.Channel.CloseOk(), self.number))
            self._end(Refused(frame.reply_code or 0, frame.reply_text or ""))
        elif isinstance(frame, commands.Basic.Cancel):
            taker = self._takers.pop(frame.consumer_tag or "", None)
            if taker is not None:
                taker[1](frame.consumer_tag or "")
        elif isinstance(frame, commands.Channel.Flow):
            self.link.send(pamqp.frame.marshal(commands.Channel.FlowOk(frame.active), self.number))
        elif isinstance(frame, Frame) and self._calls:
            answer = self._calls.popleft()
            if not answer.done():
                answer.set_result(frame)


def _goodbye() -> commands.Channel.Close:
    return commands.Channel.Close(200, "closed", 0, 0)
