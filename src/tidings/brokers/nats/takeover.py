"""What a new owner of a share does first: gather all that is open, and sort it. See `share.py` for why."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from tidings.brokers.nats.api import Api
from tidings.brokers.nats.consumers import ORDERED_ACK_PENDING, find_consumer, pinned_in
from tidings.brokers.nats.pull import Pull
from tidings.brokers.nats.tokens import Token
from tidings.delivery import Delivery
from tidings.errors import BrokerUnavailable

if TYPE_CHECKING:
    from tidings.brokers.nats.connection import Connection

log = logging.getLogger("tidings.nats")

QUIET: Final = 0.5
"""Seconds without a delivery after which the server is asked whether anything is still open elsewhere."""
AGAIN: Final = 0.1
"""Seconds until it is asked whether the rest may come now."""
LONGEST: Final = 10.0
"""Seconds after which a take-over ends, whatever is still missing."""
PORTION: Final = 2000
"""How many are given back in one write."""


async def info_of(api: Api, pull: Pull) -> dict[str, Any]:
    """What the server says of the consumer that is asked.

    Raises:
        BrokerUnavailable: it is gone, or nobody answers.
    """
    found = await find_consumer(api, pull.stream, pull.durable)
    if found is None:
        pull.check_consumer = True
        raise BrokerUnavailable(f"the consumer {pull.durable} is gone")
    return found


class Pinned(Protocol):
    """What is taken over."""

    name: str
    pin: str
    in_doubt: bool
    connection: Connection

    @property
    def pull(self) -> Pull: ...

    async def info(self) -> dict[str, Any]: ...
    def sure(self, since: float) -> None: ...
    def held_here(self) -> dict[Token, Delivery]: ...


class TakeOver:
    """Gathers what comes to a share that has just been pinned to us."""

    def __init__(self, share: Pinned) -> None:
        self._share = share
        self.gathered: list[tuple[Token, Delivery]] = []
        self._counter = 0
        """The server's number of the last delivery."""
        self._numbers: list[int] = []
        """The numbers of all that came while it was gathered."""
        self._subject = b""
        """What deliveries are settled under, with places for the numbers."""
        self._arrived = asyncio.Event()

    @property
    def can_speak(self) -> bool:
        """It is known how to speak of what others have."""
        return bool(self._subject)

    def pinned_by(self, token: Token) -> None:
        """The delivery that said that it is ours to take over."""
        self._subject = _subject_for(token)

    def take(self, token: Token, delivery: Delivery) -> None:
        self.gathered.append((token, delivery))
        self._arrived.set()

    def follows(self, token: Token) -> bool:
        """Whether a delivery is the next one by its number."""
        return token.counter == self._counter + 1

    def note(self, token: Token, *, counts: bool) -> None:
        # With replicas two deliveries may change places on their way.
        self._counter = max(self._counter, token.counter) if counts else token.counter
        if counts:
            self._numbers.append(token.counter)

    def sorted(self) -> list[tuple[Token, Delivery]]:
        """Take out what was gathered, in the order of the stream."""
        gathered, self.gathered = self.gathered, []
        return sorted(gathered, key=lambda pair: pair[0].seq)

    def forget(self) -> None:
        """It is not ours. What was gathered stays in `held`, and is let go with the rest."""
        self.gathered.clear()

    async def run(self) -> None:
        """Return when all that was open is here, or after `LONGEST` seconds.

        Raises:
            BrokerUnavailable: the share is not ours after all, or nobody says whether it is.
        """
        try:
            async with asyncio.timeout(LONGEST):
                while not await self._gather():
                    self._share.pull.blocked = True
                    self._share.pull.start_over()
                    await asyncio.sleep(AGAIN)
        except TimeoutError:
            if self._share.in_doubt:
                raise BrokerUnavailable("no answer in time") from None
            log.warning("%s: what the process before left has not come in full yet", self._share.name)

    async def skip(self) -> None:
        """Leave with others what they have, and know from where on deliveries come here.

        Raises:
            BrokerUnavailable: nobody says.
        """
        self._counter = (await self._info())["delivered"]["consumer_seq"]

    async def _gather(self) -> bool:
        """Have all that is open elsewhere come to us; false where that has to be asked anew, because not all came.

        The predecessor may live, and have settled the rest. With replicas, what was under way to it is not told of
        before a majority knows; and what the server's own replica does not have yet it leaves out, for later. So what
        comes in place of what is missing says nothing.
        """
        pull = self._share.pull
        since = time.monotonic()
        if (link := self._share.connection.link) is not None:
            pull.hold_pin(link, link.own_subject())
            await link.round_trip(2.0)  # nothing that we do not ask for any more can come after this
        info = await self._info()
        self._share.sure(since)
        self._counter = info["delivered"]["consumer_seq"]
        until, first = info["delivered"]["stream_seq"], self._counter + 1
        mine, settled = self._in_hand(until)
        missing = info["num_ack_pending"] - len(mine)
        if missing <= 0:
            return True
        log.info("%s: up to %d open events are taken over", self._share.name, missing)
        before = len(self.gathered)
        self._numbers.clear()
        await self._give_back_for_others(info, mine | settled)
        if missing > ORDERED_ACK_PENDING:  # more than is kept in memory: the server is trusted to keep the order
            return True
        pull.ceiling, pull.only_one, pull.blocked = pull.held + missing, False, False
        while sum(token.seq <= until for token, _ in self.gathered[before:]) < missing:
            if len(self.gathered) - before >= missing or not await self._another():
                return False
        return sorted(self._numbers) == list(range(first, first + len(self._numbers)))

    async def _another(self) -> bool:
        """Wait for a delivery; false if none comes for a while."""
        self._arrived.clear()
        self._share.pull.refill()
        try:
            async with asyncio.timeout(QUIET):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    async def _info(self) -> dict[str, Any]:
        info = await self._share.info()
        if pinned_in(info) != self._share.pin:
            raise BrokerUnavailable("the server has given it to another process, or to nobody")
        return info

    def _in_hand(self, until: int) -> tuple[set[int], set[int]]:
        """The events that are here: those that the server counts as open, and those of which nobody knows that.

        Of an acknowledgement that is on its way it is not known whether the server has heard it.
        """
        pull = self._share.pull
        mine: set[int] = set()
        settled: set[int] = set()
        for token in self._share.held_here():
            if token.pull is pull and token.seq <= until and not token.lost:
                (mine if token.is_open else settled).add(token.seq)
        return mine, settled - mine

    async def _give_back_for_others(self, info: dict[str, Any], here: set[int]) -> None:
        """Say of all that is open and not here that it may be delivered again; the server goes by the sequence."""
        link = self._share.connection.link
        if link is None:
            raise BrokerUnavailable("the connection was just lost")
        first, last = info["ack_floor"]["stream_seq"] + 1, info["delivered"]["stream_seq"]
        subject, counter = self._subject, info["delivered"]["consumer_seq"]
        frames: list[bytes] = []
        for seq in range(first, last + 1):
            if seq in here:
                continue
            frames.append(b"PUB " + subject % (seq, counter) + b" 4\r\n-NAK\r\n")
            if len(frames) >= PORTION:
                link.send(b"".join(frames))
                await link.drained()
                frames.clear()
        answered = asyncio.Event()
        reply = link.expect(lambda tag, headers, data: answered.set())
        # One goroutine of the server works these off in order: the answer to the last word comes when all are done.
        # It is about what was not delivered yet, and so about nothing: with replicas the server would otherwise send
        # that one event at once, before those that were given back ahead of it.
        link.send(b"".join(frames) + b"PUB " + subject % (last + 1, counter) + b" %b 4\r\n+WPI\r\n" % reply)
        try:
            async with asyncio.timeout(LONGEST / 2):
                await answered.wait()
        finally:
            link.forget(reply)


def _subject_for(token: Token) -> bytes:
    """The subject on which deliveries of this consumer are settled, with places for the two sequences."""
    parts = token.reply.replace(b"%", b"%%").split(b".")
    at = 4 if len(parts) == 9 else 6
    parts[at : at + 3] = [b"1", b"%d", b"%d"]
    return b".".join(parts)
