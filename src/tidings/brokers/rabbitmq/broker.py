"""The RabbitMQ broker: what the parts of this folder are together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from tidings.brokers._standing import of_log
from tidings.brokers.rabbitmq import names
from tidings.brokers.rabbitmq.channel import Refused
from tidings.brokers.rabbitmq.connection import Connection
from tidings.brokers.rabbitmq.feed import RabbitFeed
from tidings.brokers.rabbitmq.options import Options, parse
from tidings.brokers.rabbitmq.ordered import OrderedFeed
from tidings.brokers.rabbitmq.publishing import Publisher
from tidings.brokers.rabbitmq.reading import BEGINS, end_of, offset_of, read_log
from tidings.brokers.rabbitmq.settling import settle
from tidings.brokers.rabbitmq.topology import NO_HISTORY, Position, Topology, encoded
from tidings.delivery import MAX_EVENT_BYTES, Delivery, Header, Message, Route, Verdict
from tidings.errors import BrokerUnavailable, ConfigurationError, MisuseError, TidingsError
from tidings.ports import Drift, Features, Plan, Sink, Subscription

log = logging.getLogger("tidings.rabbitmq")

OLDEST: Final = (3, 10)
FEATURES: Final = Features(name="rabbitmq", history=False, deduplicates=False, max_bytes=MAX_EVENT_BYTES)
KEEP: Final = timedelta(days=7)
"""For how long an applied event is remembered where the code does not say."""
ANSWER: Final = 10.0


class RabbitBroker:
    """A RabbitMQ server, or cluster.

    Parameters:
        url: ``amqp://`` or ``amqps://``; `options.py` says what else may stand in it.
    """

    def __init__(self, url: str) -> None:
        self._options: Options = parse(url)
        self._main: Connection | None = None
        self._inward: Connection | None = None
        """Deliveries have a connection of their own: a server that takes no messages reads nothing from the other."""
        self._feeds: list[RabbitFeed] = []
        self._keep: dict[str, timedelta] = {}
        self._opened = 0
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<RabbitBroker {self._options.where}>"

    @property
    def features(self) -> Features:
        return FEATURES

    @property
    def trouble(self) -> str:
        for connection in (self._main, self._inward):
            if connection is not None and connection.trouble:
                return connection.trouble
        if self._main is None:
            return "not connected"
        return next((feed.trouble for feed in self._feeds if feed.trouble), "")

    @property
    def reconnects(self) -> int:
        """See `sight.Reconnects`."""
        return sum(one.reconnects for one in (self._main, self._inward) if one is not None)

    # ── open and close ──────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self, plan: Plan) -> Sequence[Drift]:
        """Connect, check the server, and create the exchanges and queues that are missing.

        Each `open` wants a `close` of its own.

        Raises:
            BrokerUnavailable: it cannot be reached in time.
            ConfigurationError: the server cannot do what is needed, or a position was orphaned.
        """
        async with self._turn:
            try:
                await self._connect(plan.service)
                drifts = await self._topology.declare(plan, self._publisher.begin, self._write_down)
            except BaseException:
                if not self._opened:
                    await self._disconnect()
                raise
            self._keep |= {stream.name: stream.keep for stream in plan.streams if stream.keep is not None}
            self._opened += 1
            return drifts

    async def _connect(self, service: str) -> None:
        if self._main is not None:
            return
        main = self._main = Connection(self._options, f"tidings {service}")
        link = await main.start()
        check_version(link.version, self._options.where)
        # What is asked about queues must be answered also while messages are not taken.
        self._inward = Connection(self._options, f"{main.name} (deliveries)")
        await self._inward.start()
        self._topology = Topology(self._inward)
        self._publisher = Publisher(main, self._topology)

    async def _write_down(self, news: Sequence[Position]) -> None:
        """What positions there are, and what they take: the server cannot be asked."""
        errors = await self._publisher.write_down([encoded(one) for one in news], ANSWER)
        for error in errors:
            if error is not None:
                raise error

    async def close(self) -> None:
        """Close the feeds and the connections, once everybody who opened this has closed it. Safe to call twice."""
        async with self._turn:
            self._opened = max(0, self._opened - 1)
            if not self._opened:
                await self._disconnect()

    async def _disconnect(self) -> None:
        feeds, self._feeds = self._feeds, []
        await asyncio.gather(*(feed.close() for feed in feeds), return_exceptions=True)
        for connection in (self._inward, self._main):
            if connection is not None:
                await connection.close()
        self._inward = self._main = None

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def publish(self, messages: Sequence[Message], *, timeout: float) -> Sequence[Exception | None]:
        """Store messages; for each None once it is stored, or why it is not."""
        if self._main is None:
            return [_not_open("publish")] * len(messages)
        return await self._publisher.publish(messages, timeout)

    async def subscribe(self, subscription: Subscription, sink: Sink) -> RabbitFeed:
        """Hand messages to `sink`, never more than the limits allow before others are settled.

        Raises:
            MisuseError: `open` was not called.
            BrokerUnavailable: there is no connection just now.
        """
        if self._inward is None or self._main is None:
            raise _not_open("subscribe")
        await self._inward.ready(ANSWER)
        keep, move = self._keep.get(subscription.stream, KEEP), self._publisher.move
        make = OrderedFeed if subscription.ordered else RabbitFeed
        feed = make(self._inward, self._topology, subscription, sink, outward=self._main, move=move, keep=keep)
        feed.start()
        self._feeds = [one for one in self._feeds if not one.closed] + [feed]
        return feed

    async def settle(self, verdicts: Sequence[tuple[Delivery, Verdict]]) -> Sequence[Exception | None]:
        """Tell the server, followed by one round trip; for each None, or why it was not told."""
        if self._inward is None:
            return [_not_open("settle")] * len(verdicts)
        return await settle(verdicts)

    def read(
        self, route: Route, stream: str = "", *, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[Delivery]:
        """Read a log from its beginning: dead letters, or the notes of a position. There is none of events.

        Raises:
            MisuseError: `open` was not called.
            ConfigurationError: there is no such log.
            BrokerUnavailable: the server does not answer for too long; what was read so far was read.
        """
        if self._inward is None:
            raise _not_open("read")
        if route not in _LOGS:
            raise ConfigurationError(NO_HISTORY)
        return of_log(route, self._read(self._inward, route, stream, since, follow))

    async def _read(
        self, connection: Connection, route: Route, position: str, since: datetime | None, follow: bool
    ) -> AsyncIterator[Delivery | None]:
        """The log; and of what is followed None, where all that stood has come."""
        queue = _LOGS[route]
        end, behind = await end_of(connection, queue, follow=True) if follow else -1, -1
        async for content in read_log(connection, queue, since=since, follow=follow):
            offset = offset_of(content)
            ours = route is not Route.NOTE or content.headers.get(Header.HANDLER) == position
            if ours and BEGINS not in content.headers:
                yield Delivery(
                    body=content.body,
                    stream=content.headers.get(Header.STREAM) or queue,
                    origin=(queue, offset),
                    token=None,
                    headers=content.headers,
                    route=route,
                )
            if behind < end <= offset:
                yield None
            behind = offset

    async def positions(self, service: str) -> Mapping[str, Sequence[str]]:
        """The positions of a service that exist, each with the types it takes; see `ports.Positions`."""
        if self._main is None:
            raise _not_open("positions")
        return {name: one.types for name, one in (await self._topology.of_service(service)).items()}

    async def taken(self, position: str) -> Collection[str]:
        """The types that a position takes; see `rolling.Remembers`."""
        if self._main is None:
            raise _not_open("taken")
        known = (await self._topology.positions(age=JUST_NOW)).get(position)
        return () if known is None else known.types

    async def remember(self, position: str, types: Collection[str]) -> None:
        """From now on a position takes these types; see `rolling.Remembers`."""
        if self._main is None:
            raise _not_open("remember")
        try:
            await self._topology.remember(position, types, self._write_down)
        except Refused as error:
            raise BrokerUnavailable(f"what {position} takes could not be changed: {error}") from error

    async def copies(self, position: str) -> int:
        """How many copies are on the retry route of a position and not settled; see `ports.Positions`.

        Those that are with a process just now are not seen, nor those of an ordered position whose time has come: they
        stand among its events.
        """
        if self._main is None:
            raise _not_open("copies")
        known = (await self._topology.positions()).get(position)
        if known is None or known.ordered:
            return 0
        due = await self._topology.count(names.retry_queue(position))
        moving = sum(feed.moving for feed in self._feeds if feed.position == position)
        return (due or 0) + moving + await self._topology.scheduled(position)


JUST_NOW: Final = 0.25
"""Seconds: handlers that ask together what they take are told of one reading, within what `until_all_know` allows."""
_LOGS: Final = {Route.DEAD: names.DEAD, Route.NOTE: names.NOTES}


def check_version(text: str, where: str) -> None:
    """Raises ConfigurationError for a server that is too old."""
    numbers = tuple(int(part) for part in text.split("-")[0].split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        raise ConfigurationError(
            f"{where} runs RabbitMQ {text or 'of an unknown version'}; Tidings needs {'.'.join(map(str, OLDEST))} or"
            " newer: upgrade the server"
        )


def _not_open(what: str) -> TidingsError:
    return MisuseError(f"{what}: the broker is not open; await broker.open(plan) comes first")
