"""An ordered position: its shares are spread over the living processes of the service, each to one of them.

`share.py` says how a share is taken over and kept, `members.py` how the processes know of each other, `_assignment.py`
who is to have what. The core sees one feed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tidings.brokers._assignment import assign
from tidings.brokers.nats.feed import NatsFeed, split
from tidings.brokers.nats.members import Members
from tidings.brokers.nats.names import SHARES
from tidings.brokers.nats.pull import Pull
from tidings.brokers.nats.settling import say_all
from tidings.brokers.nats.share import Share
from tidings.brokers.nats.tokens import Token
from tidings.delivery import Delivery
from tidings.errors import BrokerUnavailable
from tidings.ports import Recalls, Sink, Subscription

if TYPE_CHECKING:
    from tidings.brokers.nats.api import Api
    from tidings.brokers.nats.connection import Connection
    from tidings.brokers.nats.link import Link
    from tidings.brokers.nats.watch import Watch

log = logging.getLogger("tidings.nats")

HEAR_OTHERS: Final = 0.05
"""Seconds that a process which has just come listens who else is there, before it asks for anything."""
UNCLAIMED: Final = 3.0
"""Seconds after which a share that the process which is to have it does not ask for is asked for by all."""
FOR_EVER: Final = float("inf")


class OrderedFeed(NatsFeed):
    """See `ports.Feed`, and `ports.Fenced`."""

    def __init__(
        self, connection: Connection, subscription: Subscription, sink: Sink, *, watch: Watch, api: Api
    ) -> None:
        self._api = api
        self.shares: list[Share] = []
        self._sure_until = FOR_EVER
        self._recalls = sink if isinstance(sink, Recalls) else None
        self._members = Members(subscription.position, self._others_changed)
        self._claimed = [time.monotonic()] * SHARES
        """When each share was last asked for by anybody else."""
        self._wanted = 0
        self._listening: asyncio.TimerHandle | None = None
        self._began = False
        self._giving_up: set[asyncio.Task[None]] = set()
        super().__init__(connection, subscription, sink, watch=watch)
        self._divide()

    def _make_pulls(self) -> Sequence[Pull]:
        self.shares = [Share(self, number, self._connection, self._api, self.subscription) for number in range(SHARES)]
        return [pull for share in self.shares for pull in share.pulls]

    # ── who has what ────────────────────────────────────────────────────────────────────────────────────────────────

    def _others_changed(self, answer: bool) -> None:
        link = self._connection.link
        if link is not None and answer and not self._stopping and self._began:
            self._say(link)
        self._consider()

    def _say(self, link: Link, *, new: bool = False) -> None:
        self._members.say(link, self._wants(), leaving=self._keeps_on(), new=new)

    def _wants(self) -> int:
        return sum(1 << share.number for share in self.shares if share.wanted and not share.leaving)

    def _keeps_on(self) -> int:
        """The shares that go, or went with this feed, and of which something is still here."""
        at_work = {token.pull for token in self.held}
        going = (share for share in self.shares if share.leaving or self._stopping)
        return sum(1 << share.number for share in going if not at_work.isdisjoint(share.pulls))

    def _consider(self) -> None:
        """Ask for what is to be ours, and let go of what is not."""
        link = self._connection.link
        if link is None or self._stopping or not self._began:
            return
        before, now = self._wants(), time.monotonic()
        for share, owner in zip(self.shares, assign(self._members.living(), SHARES), strict=True):
            if self._members.wanted_by(share.number):
                self._claimed[share.number] = now
            share.preferred = owner == self._members.id
            if share.leaving:
                continue
            if share.preferred:
                if not share.wanted:
                    share.ask(link)
            elif share.wanted:
                if self._members.wanted_by(share.number, owner) and now >= share.stays_until:
                    share.leave()
            elif now - self._claimed[share.number] > UNCLAIMED:
                share.ask(link)
        self._divide()
        if self._wants() != before:
            self._say(link)

    def _divide(self) -> None:
        """The limits are those of the process: its shares have them together."""
        wanted = max(1, sum(share.wanted for share in self.shares))
        if wanted == self._wanted:
            return
        self._wanted = wanted
        each = split(max(1, self._most // wanted), max(1, self._most_bytes // wanted))
        for share in self.shares:
            share.events.limit(*each[:2])
            share.retries.limit(*each[2:])

    def left(self) -> None:
        """A share has gone: tell the others, and see whether it is to come back."""
        link = self._connection.link
        if link is not None and not self._stopping:
            self._say(link)
        self._consider()

    # ── what is in hand ─────────────────────────────────────────────────────────────────────────────────────────────

    def fence(self) -> str:
        """See `ports.Fenced`."""
        now = time.monotonic()
        if now < self._sure_until:
            return ""
        for share in self.shares:
            if share.exposed and now >= share.sure_until:
                share.lose("this process was held up, or cut off, for too long to be sure that it still has it")
        self.sure_again()
        return "" if now < self._sure_until else "the broker has not said yet which keys are still ours"

    def sure_again(self) -> None:
        """Work out anew until when all that is in hand is ours for certain."""
        self._sure_until = min(
            (0.0 if share.in_doubt else share.sure_until for share in self.shares if share.exposed), default=FOR_EVER
        )

    def begins(self) -> None:
        """This process begins to take from a share: what those before it left in notes is to be asked anew."""
        self.tenure += 1

    def others_have(self, share: int) -> bool:
        """Whether something of a share may run in another process."""
        return self._members.had_by(share)

    def take_event(self, token: Token, delivery: Delivery) -> None:
        self._take_event(token, delivery, b"", None)

    def lost(self, share: Share) -> None:
        """Another process may have the share: drop what is not begun. What runs may be acknowledged, and no more."""
        self.sure_again()
        deliveries = self._withdraw(share)
        tokens = [token for token in self.held if token.pull in share.pulls]
        for token in tokens:
            token.stale = token.lost = True
        self.let_go([token for token in tokens if not token.given])
        if deliveries and self._recalls is not None:
            task = asyncio.create_task(self._give_up(deliveries), name=f"tidings-lost-{share.events.durable}")
            self._giving_up.add(task)
            task.add_done_callback(self._giving_up.discard)

    async def _give_up(self, deliveries: list[Delivery]) -> None:
        assert self._recalls is not None
        await self._recalls.give_up(deliveries, FOR_EVER)
        self.let_go([token for one in deliveries if isinstance(token := one.token, Token) and token.is_open])

    def _withdraw(self, share: Share) -> list[Delivery]:
        """Mark what the core has of a share, and take the rest out of the queue."""
        self._queue = type(self._queue)(pair for pair in self._queue if pair[0].pull not in share.pulls)
        found = []
        for token, delivery in self.held.items():
            if token.pull in share.pulls and token.given:
                delivery.withdrawn = True
                found.append(delivery)
        return found

    async def emptied(self, share: Share, patience: float) -> bool:
        """Give back what is not begun, and wait for what runs; whether nothing of the share is left."""
        deliveries = self._withdraw(share)
        working: Sequence[Delivery]
        if self._recalls is None:
            working = await self._settled(share, deliveries, patience)
        else:
            working = await self._recalls.give_up(deliveries, patience)
        at_work = {id(one) for one in working}
        for one in working:
            one.withdrawn = False
        rest = [
            token
            for token, delivery in self.held.items()
            if token.pull in share.pulls and token.is_open and id(delivery) not in at_work
        ]
        link = self._connection.link
        fresh = sorted((token for token in rest if not token.stale), key=lambda token: token.seq)
        if link is not None and fresh:
            link.send(say_all(fresh, b"-NAK"))
        self.let_go(rest)
        return not working

    async def _settled(self, share: Share, deliveries: list[Delivery], patience: float) -> list[Delivery]:
        """Somebody who does not say what runs: all that is not settled may."""
        end = time.monotonic() + patience
        while working := [one for one in deliveries if isinstance(one.token, Token) and one.token.is_open]:
            if time.monotonic() > end:
                break
            await asyncio.sleep(0.02)
        return working

    # ── the link comes and goes ─────────────────────────────────────────────────────────────────────────────────────

    def _attach(self, link: Link) -> None:
        self._members.attach(link)
        for share in self.shares:
            share.link_up(link)
        self._say(link, new=True)
        if self._began:
            self._consider()
        elif self._listening is None:
            self._listening = asyncio.get_running_loop().call_later(HEAR_OTHERS, self._begin)

    def _begin(self) -> None:
        self._began = True
        try:
            self._consider()
        except BrokerUnavailable:
            pass  # the next link brings a new round

    def _on_down(self, link: Link) -> None:
        super()._on_down(link)
        for share in self.shares:
            share.link_down()
        self.sure_again()

    def _round(self) -> None:
        link = self._connection.link
        if link is None:
            return
        for share in self.shares:
            share.hold(link)
            if not self._stopping:
                share.copies.look()
        if self._stopping:
            self._members.say(link, 0, leaving=self._keeps_on(), leaves=True)
        elif self._began:
            self._say(link)
            self._consider()

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def stop(self) -> None:
        if self._stopping:
            return
        if self._listening is not None:
            self._listening.cancel()
        for share in self.shares:
            share.stop()
        link = self._connection.link
        if link is not None:
            try:
                self._members.say(link, 0, leaving=self._keeps_on(), leaves=True)
                self._members.detach()
            except BrokerUnavailable:
                pass  # they notice by themselves
        await super().stop()

    def _detach(self) -> list[int]:
        return [sid for share in self.shares for sid in share.detach()]

    async def _closing(self) -> None:
        link = self._connection.link
        if link is not None:
            try:
                self._members.say(link, 0, leaves=True)
                await link.round_trip(2.0)  # acknowledgements must not be overtaken by the unpinning
            except BrokerUnavailable:
                pass
        await asyncio.gather(*(share.gone() for share in self.shares))
        for task in list(self._giving_up):
            task.cancel()
