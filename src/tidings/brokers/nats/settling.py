"""Settling: one write for a wave of verdicts, and a confirmation by the server before anybody believes it.

The server works off the acknowledgements of a consumer one after the other, in the order in which they came over a
connection, and so the answer to the last one confirms those before it. (Read in its source: one goroutine,
``processInboundAcks``; with replicas the answers follow the quorum, in the same order.)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.tokens import Source, Token
from tidings.delivery import Ack, Delivery, Verdict
from tidings.errors import BrokerUnavailable, MisuseError

if TYPE_CHECKING:
    from tidings.brokers.nats.link import Link

FEW: Final = 3
"""Up to so many verdicts are confirmed one by one."""
ANSWER: Final = 2.0
"""Seconds until an acknowledgement without answer is sent again."""
LONGEST: Final = 8.0
"""Seconds that settling may take altogether, where the ack wait is longer."""

Item = tuple[int, Token, bytes]
"""The place among the verdicts, the token, and what is said of it."""


class Settler:
    """Tells the server what became of deliveries."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._longest = min(connection.options.ack_wait, LONGEST)

    async def settle(self, verdicts: Sequence[tuple[Delivery, Verdict]]) -> list[Exception | None]:
        """See `ports.Broker.settle`."""
        results: list[Exception | None] = [None] * len(verdicts)
        acks: dict[Source, list[Item]] = {}
        naks: dict[Source, list[Item]] = {}
        for index, (delivery, verdict) in enumerate(verdicts):
            token = delivery.token
            if not isinstance(token, Token) or not token.is_open:
                results[index] = MisuseError(f"{delivery!r} is not ours to settle: it was settled or given back before")
            elif isinstance(verdict, Ack):
                acks.setdefault(token.pull, []).append((index, token, b"+ACK"))
            elif token.stale:
                results[index] = _expired(delivery)
                token.pull.settled((token,))
            else:
                naks.setdefault(token.pull, []).append((index, token, nak(verdict.after)))
        if acks or naks:
            await self._tell(acks, naks, results)
        return results

    async def _tell(
        self, acks: dict[Source, list[Item]], naks: dict[Source, list[Item]], results: list[Exception | None]
    ) -> None:
        groups = [*acks.values(), *naks.values()]
        mine = {pull: [item[1] for items in (acks, naks) for item in items.get(pull, ())] for pull in {**acks, **naks}}
        for tokens in mine.values():
            for token in tokens:
                token.is_open = False
        end = time.monotonic() + self._longest
        try:
            every = sum(map(len, groups)) <= FEW
            left = await self._send(groups, every, min(ANSWER, self._longest))
            # A nak is said once: the second could hit somebody else's delivery (trap 22). An ack may be repeated.
            unheard = [item for items in left for item in items if item[2] != b"+ACK"]
            left = [kept for items in left if (kept := [item for item in items if item[2] == b"+ACK"])]
            while left and (remaining := end - time.monotonic()) > 0:
                left = await self._send(left, True, min(ANSWER, remaining))
            for index, _, _ in [*unheard, *(item for items in left for item in items)]:
                results[index] = BrokerUnavailable(self._why())
        finally:
            # Whatever became of it: nobody here waits for it any more, so it is not kept alive either.
            for pull, tokens in mine.items():
                pull.settled(tokens)

    async def _send(self, groups: list[list[Item]], every: bool, timeout: float) -> list[list[Item]]:
        """Send, wait for the answers, and return what was not confirmed."""
        end = time.monotonic() + timeout
        try:
            link = await self._connection.ready(timeout)
        except BrokerUnavailable:
            return groups
        frames: list[bytes] = []
        answers = Answers()
        for number, items in enumerate(groups):
            asking = range(len(items)) if every else (len(items) - 1,)
            replies = {at: answers.expect(link, (number, at)) for at in asking}
            frames += _frames(items, replies)
        try:
            link.send(b"".join(frames))
            await answers.wait(end - time.monotonic())
        except BrokerUnavailable:
            pass  # what has no answer is not confirmed
        finally:
            answers.forget()
        return answers.unconfirmed(groups, every)

    def _why(self) -> str:
        return self._connection.trouble or "the server did not confirm it in time; it delivers again"


class Answers:
    """Which questions were answered."""

    def __init__(self) -> None:
        self._asked: list[tuple[int, int]] = []
        self._replies: list[bytes] = []
        self._confirmed: set[tuple[int, int]] = set()
        self._open = 0
        self._done = asyncio.Event()
        self._link: Link | None = None

    def expect(self, link: Link, place: tuple[int, int]) -> bytes:
        self._link = link
        self._asked.append(place)
        self._open += 1
        reply = link.expect(self._take, len(self._asked) - 1)
        self._replies.append(reply)
        return reply

    def _take(self, tag: int, headers: bytes | None, data: bytes | None) -> None:
        # A status instead of an empty answer means that nobody listens: the consumer is gone.
        if data is not None and not (headers is not None and headers.startswith(b"NATS/1.0 ")):
            self._confirmed.add(self._asked[tag])
        self._open -= 1
        if not self._open:
            self._done.set()

    async def wait(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._done.wait()
        except TimeoutError:
            pass  # what has no answer is not confirmed

    def forget(self) -> None:
        if self._open and self._link is not None:
            for reply in self._replies:
                self._link.forget(reply)

    def unconfirmed(self, groups: list[list[Item]], every: bool) -> list[list[Item]]:
        left = []
        for number, items in enumerate(groups):
            if every:
                items = [item for at, item in enumerate(items) if (number, at) not in self._confirmed]
            elif (number, len(items) - 1) in self._confirmed:
                items = []
            if items:
                left.append(items)
        return left


def nak(after: float) -> bytes:
    """Give a message back, to be delivered again after so many seconds."""
    return b"-NAK" if after <= 0 else b'-NAK {"delay":%d}' % int(after * 1e9)


def say(token: Token, what: bytes) -> bytes:
    """One verdict as a frame, without confirmation."""
    return b"PUB %b %d\r\n%b\r\n" % (token.reply, len(what), what)


def say_all(tokens: Sequence[Token], what: bytes) -> bytes:
    """The same verdict for many."""
    if not tokens:
        return b""
    end = b" %d\r\n%b\r\n" % (len(what), what)
    return b"PUB " + (end + b"PUB ").join([token.reply for token in tokens]) + end


def _frames(items: list[Item], replies: dict[int, bytes]) -> list[bytes]:
    last = len(items) - 1
    if len(replies) == 1 and last in replies and items[0][2] == b"+ACK":
        plain = [say_all([token for _, token, _ in items[:-1]], b"+ACK")]
        return [*plain, b"PUB %b %b 4\r\n+ACK\r\n" % (items[last][1].reply, replies[last])]
    return [
        b"PUB %b %b %d\r\n%b\r\n" % (token.reply, replies.get(at, b""), len(what), what)
        for at, (_, token, what) in enumerate(items)
    ]


def _expired(delivery: Delivery) -> BrokerUnavailable:
    return BrokerUnavailable(
        f"{delivery!r} was not kept alive in time (the event loop was blocked, or there was no connection): the server"
        " delivers it again by itself"
    )
