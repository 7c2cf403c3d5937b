"""A strict broker: it keeps count of its tokens, gives again what was not settled, and forgives nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

from tests.walk.virtual import EPOCH
from tests.walk.world import ACK_WAIT, Stored, World
from tidings.delivery import Ack, Delivery, Header, Message, Route, Verdict
from tidings.errors import BrokerUnavailable, EventTooLarge
from tidings.partition import slot_of
from tidings.ports import Backlog, Drift, Features, Plan, Sink, Subscription


class Token:
    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.settled = False


class Session:
    """One process's connection to the broker of a world (`ports.Broker`)."""

    features = Features(name="walk", max_bytes=1 << 20)
    tenure = 1
    trouble = ""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dead = False
        self.tokens: set[Token] = set()
        """Delivered and not settled."""
        self.unsure: set[Token] = set()
        """Of settles that failed: to be reported as unsettled."""
        self.left_behind = 0
        """How many deliveries were not settled when the feed was closed."""
        self._sink: Sink | None = None
        self._slots = 0
        self._timer: asyncio.TimerHandle | None = None

    # ── the consuming half ──────────────────────────────────────────────────────────────────────────────────────────

    async def open(self, plan: Plan) -> Sequence[Drift]:
        return ()

    async def subscribe(self, subscription: Subscription, sink: Sink) -> Session:
        self._sink, self._most = sink, subscription.max_in_flight
        self.pump()
        return self

    def pump(self) -> None:
        """Hand over what is due, and come again when the next is."""
        if self.dead or self._sink is None:
            return
        now = asyncio.get_running_loop().time()
        later = []
        for queue in (self.world.returned, self.world.fresh):
            waiting, queue[:] = queue[:], []
            for stored in waiting:
                if stored.gone:
                    continue
                if stored.due > now or len(self.tokens) >= self._most:
                    queue.append(stored)
                    later.append(stored.due)
                else:
                    self._sink(self._deliver(stored))
        if self._timer is not None:
            self._timer.cancel()
        if ahead := [due for due in later if due > now]:
            self._timer = asyncio.get_running_loop().call_at(min(ahead), self.pump)

    def _deliver(self, stored: Stored) -> Delivery:
        stored.delivered += 1
        token = Token(stored)
        self.tokens.add(token)
        return Delivery(
            body=stored.body,
            stream="walk",
            origin=("tidings-retry" if stored.route is Route.RETRY else "walk", stored.number),
            token=token,
            headers=stored.headers,
            slot=slot_of(stored.key) if stored.key else None,
            delivered=stored.delivered,
            route=stored.route,
        )

    async def stop(self) -> None:
        self._sink = None

    async def close(self) -> None:
        """As a feed and as a broker: whatever is not settled goes back."""
        self.left_behind = len(self.tokens)
        self.disconnect()

    async def keeps(self) -> timedelta | None:
        return None

    async def backlog(self) -> Backlog:
        return Backlog(pending=len(self.world.fresh), in_flight=len(self.tokens))

    def disconnect(self) -> None:
        """The broker notices that the process is gone."""
        self.dead = True
        if self._timer is not None:
            self._timer.cancel()
        for token in sorted(self.tokens, key=lambda token: token.stored.number):
            self._give_back(token, 0.0)
        self.tokens.clear()

    def _give_back(self, token: Token, due: float) -> None:
        token.stored.due = due
        self.world.returned.append(token.stored)

    # ── the settling half ───────────────────────────────────────────────────────────────────────────────────────────

    async def settle(self, verdicts: Sequence[tuple[Delivery, Verdict]]) -> Sequence[Exception | None]:
        if self.features.settles_at_once:
            answers = [self._settle(delivery, verdict) for delivery, verdict in verdicts]
        else:
            await self._travel()
            answers = [self._settle(delivery, verdict) for delivery, verdict in verdicts]
            await self._travel()
        self.pump()
        return answers

    def _settle(self, delivery: Delivery, verdict: Verdict) -> Exception | None:
        token = delivery.token
        assert isinstance(token, Token)
        stored, faults = token.stored, self.world.faults
        now = asyncio.get_running_loop().time()
        if token.settled or token not in self.tokens:
            self.world.blame(f"{stored.event} was settled twice")
            return None
        if faults.take("settle"):
            self.tokens.discard(token)
            self.unsure.add(token)
            self._give_back(token, now + ACK_WAIT)
            return BrokerUnavailable("no answer")
        token.settled = True
        self.tokens.discard(token)
        if isinstance(verdict, Ack):
            if not self.world.is_durable(stored):
                self.world.blame(f"{stored.event} was acknowledged before anything of it was durable")
            self.world.gone(stored)
        else:
            self._give_back(token, now + verdict.after)
        if faults.take("settle-late"):
            self.unsure.add(token)
            return BrokerUnavailable("the answer was lost")
        return None

    async def publish(self, messages: Sequence[Message], *, timeout: float) -> Sequence[Exception | None]:
        await self._travel()
        answers = [self._store(message) for message in messages]
        await self._travel()
        self.pump()
        return answers

    def _store(self, message: Message) -> Exception | None:
        faults = self.world.faults
        if faults.take("publish"):
            return BrokerUnavailable("no leader")
        if message.route is Route.RETRY and faults.take("too-large"):
            return EventTooLarge("the copy")
        if message.id not in self.world.ids:
            self.world.ids.add(message.id)
            if message.route is Route.DEAD:
                self.world.dead.append(message)
            elif message.route is Route.EVENT:
                self.world.caused.append(message)
            elif message.route is Route.NOTE:
                self.world.notes.append(message)
            else:
                self._store_retry(message)
        return BrokerUnavailable("the answer was lost") if faults.take("publish-late") else None

    def _store_retry(self, message: Message) -> None:
        self.world.put(
            Stored(
                number=len(self.world.messages) + 1,
                body=message.body,
                headers=message.headers,
                route=Route.RETRY,
                event=message.headers[Header.ID],
                key=message.key or "",
                due=0.0 if message.due is None else message.due - EPOCH,
            )
        )

    async def _travel(self) -> None:
        """To the server or back; nothing arrives from a process that is dead."""
        await asyncio.sleep(0)
        if self.dead:
            raise asyncio.CancelledError

    async def read(
        self, route: Route, stream: str = "", *, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[Delivery]:
        await self._travel()
        found = {Route.DEAD: self.world.dead, Route.NOTE: self.world.notes}[route]
        for number, message in enumerate(found, 1):
            yield Delivery(
                body=message.body,
                stream=message.stream,
                origin=(f"tidings-{route.value}", number),
                token=None,
                headers=message.headers,
                route=route,
            )
