"""A broker in one process, for tests: real bytes over the real path, redelivered as a server would.

::

    async def test_an_order_reserves_stock() -> None:
        broker = MemoryBroker()
        async with orders.running(broker=broker), stock.running(broker=broker):
            await orders.publish(OrderPlaced(order_id="1", sku="tea", quantity=2))
            await broker.idle()
        assert [event.order_id for event in broker.published(StockReserved)] == ["1"]
        assert not broker.dead_letters
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import TypeVar

from tidings.brokers._standing import of_log
from tidings.delivery import Ack, Delivery, Message, Route, Verdict
from tidings.envelope import read_envelope
from tidings.errors import BrokerUnavailable, MisuseError
from tidings.event import Event
from tidings.evolution import Reader
from tidings.ports import Backlog, Drift, Features, Plan, Sink, Subscription
from tidings.testing._feed import Fault, MemoryFeed
from tidings.testing._letters import MemoryLetterLog
from tidings.testing._position import Flight
from tidings.testing._server import Server

FEATURES = Features(name="memory")

E = TypeVar("E", bound=Event)


class MemoryBroker:
    """Carries and keeps messages in this process, and redelivers, delays and de-duplicates them like a real broker.

    Several services of a test share one object, or take a `client()` each, as processes of their own would. What is
    stored, and how far each position has come, lives as long as the object does: services may stop and start again.
    It forgets everything with the process, and keeps everything until then: it is for tests.

    Parameters:
        ack_wait: seconds after which the deliveries of a feed that died (`crash`) come again.
    """

    def __init__(self, *, ack_wait: float = 30.0) -> None:
        self._server = Server(ack_wait)
        self._feeds: list[MemoryFeed] = []
        self._opened = 0
        self._crashed = False
        self._faults: dict[str, Fault] = {}

    def client(self) -> MemoryBroker:
        """Another client of the same server, as another process would have."""
        other = MemoryBroker()
        other._server = self._server
        return other

    # ── what every broker does ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def features(self) -> Features:
        return FEATURES

    @property
    def trouble(self) -> str:
        if self._crashed:
            return "this client of the memory broker has crashed"
        return "" if self._server.down is None else "the memory broker is away"

    async def open(self, plan: Plan) -> Sequence[Drift]:
        """Create the streams and positions that are missing. Each `open`, failed or not, wants a `close` of its own.

        Raises:
            ConfigurationError: a position was orphaned, or wants a stream that the plan does not declare.
            BrokerUnavailable: it is away for longer than 5 seconds.
        """
        self._check_alive()
        self._opened += 1
        if not await self._back_within(5.0):
            raise BrokerUnavailable("the memory broker is away. Its outage() or restart() has to end first")
        return self._server.declare(plan)

    async def publish(self, messages: Sequence[Message], *, timeout: float) -> Sequence[Exception | None]:
        """Store messages; for each None once it is stored, or why it is not."""
        if refusal := self._refusal("publish"):
            return [refusal] * len(messages)
        if not await self._back_within(timeout):
            return [BrokerUnavailable(f"the memory broker did not answer in {timeout:g} s")] * len(messages)
        await asyncio.sleep(0)  # no broker answers in the same breath
        return [self._with_fault("publish", partial(self._server.store, message)) for message in messages]

    async def subscribe(self, subscription: Subscription, sink: Sink) -> MemoryFeed:
        """Hand messages to `sink`, never more than the limits allow before others are settled."""
        self._check_alive()
        position = self._server.positions.get(subscription.position)
        if position is None:
            raise MisuseError(f"no plan declares the position {subscription.position}; open(plan) comes first")
        feed = MemoryFeed(self, self._server, position, subscription, sink)
        position.takers.append(feed)
        self._feeds = [one for one in self._feeds if not one.closed] + [feed]
        self._server.wake()
        return feed

    async def settle(self, verdicts: Sequence[tuple[Delivery, Verdict]]) -> Sequence[Exception | None]:
        """Acknowledge or give back; None for each that took effect. What is no longer ours is told so."""
        await asyncio.sleep(0)
        if self._crashed:
            return [BrokerUnavailable(self.trouble)] * len(verdicts)
        return [self._with_fault("settle", partial(self._settle, delivery, verdict)) for delivery, verdict in verdicts]

    def read(
        self, route: Route, stream: str = "", *, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[Delivery]:
        """Read a log from its beginning: all events of a stream, or all dead letters."""
        source = self._server.log(route, stream)
        earliest = since.timestamp() if since else 0.0
        return of_log(route, self._read(route, stream, len(source.entries), earliest, follow))

    async def positions(self, service: str) -> Mapping[str, Sequence[str]]:
        """The positions of a service that exist, each with the types it takes."""
        self._check_alive()
        prefix = service + "."
        return {name: sorted(one.types) for name, one in self._server.positions.items() if name.startswith(prefix)}

    async def taken(self, position: str) -> Collection[str]:
        """The types that a position takes."""
        self._check_alive()
        found = self._server.positions.get(position)
        return () if found is None else found.types

    async def remember(self, position: str, types: Collection[str]) -> None:
        """From now on a position takes these types."""
        self._check_alive()
        if (found := self._server.positions.get(position)) is not None:
            found.types = frozenset(types)

    async def copies(self, position: str) -> int:
        """How many copies are on the retry route of a position and not settled."""
        self._check_alive()
        found = self._server.positions.get(position)
        return 0 if found is None else found.copies

    def letters(self, position: str, *, ordered: bool) -> MemoryLetterLog:
        """The log of a handler's dead letters; see `sight.Letters`."""
        return MemoryLetterLog(lambda: self.trouble, self._server.dead, position)

    async def close(self) -> None:
        """Close the feeds, once every service that opened this object has closed it. Safe to call again."""
        self._opened = max(0, self._opened - 1)
        if self._opened == 0:
            feeds, self._feeds = self._feeds, []
            for feed in feeds:
                await feed.close()

    # ── what tests ask ──────────────────────────────────────────────────────────────────────────────────────────────

    async def idle(self, timeout: float = 5.0) -> None:
        """Wait until the running positions have nothing pending, in flight, or due again before the time is up.

        Positions that no feed takes from do not count. What waits in an outbox is not yet here, so it is not seen.

        Raises:
            TimeoutError: after `timeout` seconds, naming the positions that are still at work.
        """
        deadline = time.monotonic() + timeout
        while busy := self._busy(deadline - time.monotonic()):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"after {timeout:g} s there is still work: {', '.join(busy)}")
            await self._server.changed(min(left, 0.05))

    def published(self, event: type[E]) -> list[E]:
        """The stored events of this class's type, read as a handler would read them, in the order they were stored.

        Raises:
            UndecodableEvent: something else was published under this type; `messages` shows the bytes.
        """
        reader = Reader((event,))
        deliveries = self.messages(event.__tidings__.type)
        found = [reader.read(read_envelope(one.body, one.headers)) for one in deliveries]
        return [one for one in found if isinstance(one, event)]

    def messages(self, type: str = "") -> list[Delivery]:
        """The stored messages of a type, or of all, as they travel: bytes and headers."""
        return [
            source.delivery(entry)
            for source in self._server.streams.values()
            for entry in source.entries
            if type in ("", entry.message.type)
        ]

    @property
    def dead_letters(self) -> list[Delivery]:
        """What was written to the log of dead letters: the letters, and the markers of what was done with them."""
        return [self._server.dead.delivery(entry) for entry in self._server.dead.entries]

    # ── what tests do to it ─────────────────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """Be away for all clients: publishing waits and fails, and what was in flight comes again afterwards."""
        self._server.lose_connections()
        try:
            yield
        finally:
            self._server.come_back()

    async def restart(self, seconds: float = 0.05) -> None:
        """Stop and start again: an `outage` of so many seconds, after which the feeds go on by themselves."""
        async with self.outage():
            await asyncio.sleep(seconds)

    def crash(self) -> None:
        """Die as the process of this client would by ``kill -9``. Its deliveries come again after the ack wait."""
        self._crashed = True
        for feed in self._feeds:
            feed.crash()

    def fail_publish(self, error: Exception, *, times: int = 1, stored: bool = False) -> None:
        """Have the next messages fail with this error; with `stored` they are kept and only the answer is lost."""
        self._faults["publish"] = Fault(error, times, stored)

    def fail_settle(self, error: Exception, *, times: int = 1, settled: bool = False) -> None:
        """Have the next verdicts fail with this error; with `settled` they count and only the answer is lost."""
        self._faults["settle"] = Fault(error, times, settled)

    # ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_alive(self) -> None:
        if self._crashed:
            raise BrokerUnavailable(self.trouble)

    def _refusal(self, what: str) -> Exception | None:
        if self._crashed:
            return BrokerUnavailable(self.trouble)
        return None if self._opened else MisuseError(f"{what}: this client of the memory broker is not open")

    async def _back_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while self._server.down is not None:
                    await self._server.down.wait()
        except TimeoutError:
            return False
        return True

    def _with_fault(self, kind: str, act: Callable[[], Exception | None]) -> Exception | None:
        fault = self._faults.get(kind)
        if fault is None or fault.times <= 0:
            return act()
        fault.times -= 1
        if fault.done and (error := act()) is not None:
            return error
        return fault.error

    def _settle(self, delivery: Delivery, verdict: Verdict) -> Exception | None:
        flight = delivery.token
        if not isinstance(flight, Flight) or getattr(flight.taker, "owner", None) is not self:
            return MisuseError(f"{delivery!r} did not come from this client, so it cannot settle it")
        if flight.position.settle(flight, None if isinstance(verdict, Ack) else verdict.after):
            return None
        return BrokerUnavailable(f"{delivery!r} was given back or settled before; it is no longer ours")

    async def _read(
        self, route: Route, stream: str, end: int, since: float, follow: bool
    ) -> AsyncIterator[Delivery | None]:
        source = self._server.log(route, stream)
        at = 0
        while follow or at < end:
            if at == end:
                yield None
            for entry in source.entries[at : end if at < end else None]:
                at += 1
                if entry.at >= since and (route is not Route.NOTE or entry.message.position == stream):
                    yield source.delivery(entry, stored=entry.at)
            if follow and at == len(source.entries):
                await self._server.changed(1.0)

    def _busy(self, within: float) -> list[str]:
        busy = []
        for position in self._server.positions.values():
            if any(taker.taking for taker in position.takers) and position.busy(within):
                busy.append(f"{position.name} ({_describe(position.backlog())})")
        return busy


def _describe(backlog: Backlog) -> str:
    return f"{backlog.pending} pending, {backlog.in_flight} in flight, {backlog.scheduled} scheduled"
