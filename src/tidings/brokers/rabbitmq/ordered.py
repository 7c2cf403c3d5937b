"""An ordered position: its shares are spread over the living processes of the service, each to one of them.

`share.py` says how a share is kept and let go, `members.py` how the processes know of each other, `_assignment.py` who
is to have what. The core sees one feed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from tidings.brokers._assignment import assign
from tidings.brokers.rabbitmq import names
from tidings.brokers.rabbitmq.channel import GRANT, REFUSED, Refused
from tidings.brokers.rabbitmq.feed import RabbitFeed
from tidings.brokers.rabbitmq.members import Members
from tidings.brokers.rabbitmq.moving import Mover
from tidings.brokers.rabbitmq.share import Share
from tidings.brokers.rabbitmq.source import Source, Token
from tidings.delivery import Delivery
from tidings.errors import BrokerUnavailable
from tidings.ports import Recalls

log = logging.getLogger("tidings.rabbitmq")

HEAR_OTHERS: Final = 0.05
"""Seconds that a process which has just come listens who else is there, before it asks for anything."""
SAY_EVERY: Final = 1.0
UNCLAIMED: Final = 3.0
"""Seconds after which a share that the process which is to have it does not ask for is asked for by all."""
PAUSE: Final = 0.5
FOR_EVER: Final = float("inf")


class OrderedFeed(RabbitFeed):
    """See `ports.Feed`, and `ports.Fenced`."""

    shares: Sequence[Share]

    def _make_sources(self) -> Sequence[Source]:
        self._deaf = ""
        """Why the processes may not hear each other."""
        self._members = Members(self.position, self._others_changed, self._outward)
        self._recalls = self._sink if isinstance(self._sink, Recalls) else None
        self._claimed = [time.monotonic()] * names.SHARES
        """When each share was last asked for by anybody else."""
        self._began = False
        self._released: set[Token] = set()
        most = self.subscription.max_in_flight
        self.shares = [Share(self, self._connection, self.position, one, most) for one in range(names.SHARES)]
        return self.shares

    def _make_movers(self) -> Sequence[Mover]:
        return []

    def start(self) -> None:
        self.spawn(self._live(), f"members-{self.position}")

    @property
    def trouble(self) -> str:
        if not self._closed and any(share.died for share in self.shares):
            return f"a share of {self.position} died: restart the process"
        return self._deaf or super().trouble

    # ── who has what ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _live(self) -> None:
        """Hear the others and let them hear us, for as long as the feed runs."""
        while True:
            try:
                await self._members.attach(self._connection)
                await self._members.find_voice()
                self._members.say(self._wants(), new=True)
                await asyncio.sleep(HEAR_OTHERS)
                self._began = True
                while not await self._silence():
                    self._deaf = ""
                    self._consider()
                    await self._members.find_voice()
                    self._members.say(self._wants())
                self._hears_nobody(self._members.why)
            except BrokerUnavailable as error:
                self._hears_nobody(error)
            except Exception:
                log.exception("the feed of %s stumbled and goes on", self.position)
            finally:
                await self._members.detach()
            await asyncio.sleep(PAUSE)

    def _hears_nobody(self, why: BrokerUnavailable | None) -> None:
        if isinstance(why, Refused) and why.code == REFUSED:
            deaf = f"the processes of {self.position} may not hear each other: {why.text}. {GRANT}"
            if deaf != self._deaf:
                log.error("%s", deaf)
            self._deaf = deaf
        else:
            log.debug("the processes of %s do not hear each other: %s", self.position, why)

    async def _silence(self) -> bool:
        """Wait for a second; true when nobody can be heard any more."""
        self._consider()
        try:
            async with asyncio.timeout(SAY_EVERY):
                await self._members.ended()
        except TimeoutError:
            return False
        return True

    def _others_changed(self, answer: bool) -> None:
        if self._began and not self._stopping:
            if answer:
                self._tell()
            self._consider()

    def _tell(self) -> None:
        try:
            self._members.say(self._wants())
        except BrokerUnavailable:
            pass  # they hear of us when we are there again

    def _wants(self) -> int:
        return sum(1 << share.number for share in self.shares if share.wanted and not share.leaving)

    def _consider(self) -> None:
        """Ask for what is to be ours, and let go of what is not."""
        if self._stopping or not self._began:
            return
        before, now = self._wants(), time.monotonic()
        for share, owner in zip(self.shares, assign(self._members.living(), names.SHARES), strict=True):
            if self._members.wanted_by(share.number):
                self._claimed[share.number] = now
            if share.quiet:
                continue
            if owner == self._members.id:
                if not share.wanted:
                    share.ask()
            elif share.wanted:
                if self._members.wanted_by(share.number, owner) and now >= share.stays_until:
                    share.leave()
            elif now - self._claimed[share.number] > UNCLAIMED:
                share.ask()
        if self._wants() != before:
            self._tell()

    def left(self) -> None:
        """A share has gone: tell the others, and see whether it is to come back."""
        if not self._stopping:
            self._tell()
            self._consider()

    # ── what is in hand ─────────────────────────────────────────────────────────────────────────────────────────────

    def offer(self, token: Token, delivery: Delivery) -> None:
        share = token.source
        assert isinstance(share, Share)
        if share.fresh:
            share.fresh = False
            self.tenure += 1
        if share.quiet or self._stopping:
            self.hold(token, delivery)  # it goes back with its channel
        else:
            super().offer(token, delivery)

    def _too_early(self, token: Token, left: float) -> None:
        """Copies of an ordered position have no other place to wait in."""
        self.later(left, lambda: self.take(token) if token.lives and not self._stopping else None)

    def fence(self) -> str:
        """See `ports.Fenced`."""
        if time.monotonic() < self._connection.sure_until:
            return ""
        for share in self.shares:
            if share.channel is not None:
                log.info("%s is not sure to be here any more: this process was held up, or cut off", share.name)
                share.drop()
        return ""

    def lost(self, source: Source) -> None:
        """A channel has ended: another process may have the share. What is not begun is dropped."""
        given = [delivery for token, delivery in self.held.items() if token.source is source and token.given]
        for delivery in given:
            delivery.withdrawn = True
        self._released = {token for token in self._released if token.source is not source}
        super().lost(source)
        if given and self._recalls is not None and not self._closed:
            self.spawn(self._give_up(given), f"lost-{source.name}", ends=True)

    async def _give_up(self, deliveries: list[Delivery]) -> None:
        assert self._recalls is not None
        await self._recalls.give_up(deliveries, FOR_EVER)

    async def emptied(self, share: Share, patience: float) -> bool:
        """Have the core forget what is not begun, and wait for what runs; whether nothing of the share runs."""
        self._queue = deque(pair for pair in self._queue if pair[0].source is not share)
        given = [one for token, one in self.held.items() if self._is_out(token, share)]
        for delivery in given:
            delivery.withdrawn = True
        if self._recalls is None:
            return await self._settled(share, patience)
        working = await self._recalls.give_up(given, patience)
        for delivery in working:
            delivery.withdrawn = False
        at_work = {id(delivery) for delivery in working}
        for token, delivery in self.held.items():
            if self._is_out(token, share) and id(delivery) not in at_work:
                self._take_back(token)
        return not working

    def _is_out(self, token: Token, share: Share) -> bool:
        return token.source is share and token.given and token.lives and token not in self._released

    def _take_back(self, token: Token) -> None:
        token.given = False
        self._given -= 1
        self._given_bytes -= token.size

    async def _settled(self, share: Share, patience: float) -> bool:
        """Somebody who does not say what runs: all that is not settled may."""
        end = time.monotonic() + patience
        while any(self._is_out(token, share) for token in self.held):
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.02)
        return True

    def hand_over_again(self, share: Share) -> None:
        """It stays: what the core was made to forget is handed over once more, in its order."""
        for token, delivery in list(self.held.items()):
            if token.source is share and token.lives and not token.given:
                delivery.withdrawn = False
                self.hand_over(token, delivery)

    # ── giving back ─────────────────────────────────────────────────────────────────────────────────────────────────

    def release(self, source: Source, releases: Sequence[tuple[Token, float]]) -> bytes:
        """What has no key goes back alone; for the rest its share begins anew, so that its key stays in order."""
        assert isinstance(source, Share)
        loose = [(token, after) for token, after in releases if self.held[token].slot is None]
        bound = [(token, after) for token, after in releases if self.held[token].slot is not None]
        for token, _ in bound:
            self._released.add(token)
        if bound and not self._stopping:
            source.rewind(max(after for _, after in bound))
        return super().release(source, loose) if loose else b""

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def stop(self) -> None:
        """Take no new messages. The shares are kept until all that was handed over is settled, or the feed closed."""
        if self._stopping:
            return
        self._stopping = True
        self._queue.clear()
        try:
            self._members.say(0, leaves=True)
        except BrokerUnavailable:
            pass  # they notice by themselves
        for share in self.shares:
            if share.channel is None or not any(self._is_out(token, share) for token in self.held):
                await share.close()

    async def close(self) -> None:
        if self._closed:
            return
        await self.stop()
        await asyncio.gather(*(share.close() for share in self.shares))
        await super().close()
