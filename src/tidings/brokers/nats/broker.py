"""The JetStream broker: what the parts of this folder are together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final

from tidings.brokers._gained import all_of, gained, until_all_know
from tidings.brokers.nats.api import Api
from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.consumers import (
    check_kept_alike,
    ensure_consumer,
    event_consumers,
    existing_positions,
    how_to_remove,
    remember_types,
    retry_consumers,
    types_taken,
)
from tidings.brokers.nats.embedded import EmbeddedServer
from tidings.brokers.nats.feed import NatsFeed
from tidings.brokers.nats.letters import NatsLetterLog
from tidings.brokers.nats.link import Link
from tidings.brokers.nats.login import Login
from tidings.brokers.nats.names import RETRY_STREAM
from tidings.brokers.nats.options import Options, parse
from tidings.brokers.nats.ordered import OrderedFeed
from tidings.brokers.nats.publishing import Publisher
from tidings.brokers.nats.reading import read_log
from tidings.brokers.nats.settling import Settler
from tidings.brokers.nats.streams import dead_stream, ensure_stream, event_stream, fill_of, note_stream, retry_stream
from tidings.brokers.nats.watch import Watch, copies
from tidings.delivery import MAX_EVENT_BYTES, Delivery, Message, Route, Verdict
from tidings.errors import ConfigurationError, MisuseError, TidingsError
from tidings.ports import Drift, Features, Plan, Sink, Subscription
from tidings.sight import Fill

log = logging.getLogger("tidings.nats")

OLDEST: Final = (2, 12, 0)
ADVISED: Final = (2, 14, 6)
ROOM_FOR_HEADERS: Final = 64 * 1024


class NatsBroker:
    """A NATS server, or cluster, with JetStream.

    Parameters:
        url: ``nats://``, ``tls://`` or ``embedded:``; `options.py` says what else may stand in it.
        login: gives a token, or a user and a password, in place of what stands in the URL. It is asked before each
            attempt to connect, may be a coroutine function, and is not to block.
    """

    def __init__(self, url: str, *, login: Login | None = None) -> None:
        if login is not None and url.startswith("embedded:"):
            raise ConfigurationError("login= is for a server that runs elsewhere: embedded: knows its own password")
        self._login = login
        embedded, self._settings = _split(url) if url.startswith("embedded:") else ("", "")
        self._server = EmbeddedServer.from_url(embedded) if embedded else None
        self._options: Options | None = None if self._server else parse(url)
        self._features = Features(name="nats", widens=False, max_bytes=MAX_EVENT_BYTES)
        self._main: Connection | None = None
        self._inward: Connection | None = None
        """Deliveries have a connection of their own: neither road can take the other down (trap 51)."""
        self._watching: asyncio.Task[None] | None = None
        self._feeds: list[NatsFeed] = []
        self._declared: dict[str, Subscription] = {}
        self._opened = 0
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<NatsBroker {self._options.where if self._options else self._server}>"

    @property
    def features(self) -> Features:
        return self._features

    @property
    def trouble(self) -> str:
        if self._server is not None and self._server.problem:
            return self._server.problem
        if self._watching is not None and self._watching.done() and self._opened:
            return "nobody looks after the embedded server any more: restart the process"
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
        """Connect, check the server, and create the streams and positions that are missing.

        Each `open` wants a `close` of its own.

        Raises:
            BrokerUnavailable: it cannot be reached in time.
            ConfigurationError: the server cannot do what is needed, or a position was orphaned.
        """
        async with self._turn:
            try:
                main = await self._connect(plan.service)
                drifts = await self._declare(Api(main), plan)
            except BaseException:
                if not self._opened:
                    await self._disconnect()
                raise
            self._opened += 1
            return drifts

    async def close(self) -> None:
        """Close the feeds and the connections, once everybody who opened this has closed it. Safe to call twice."""
        async with self._turn:
            self._opened = max(0, self._opened - 1)
            if not self._opened:
                await self._disconnect()

    async def _connect(self, service: str) -> Connection:
        if self._main is not None:
            return self._main
        if self._server is not None:
            self._options = parse(await self._server.start() + self._settings)
            self._watching = asyncio.create_task(self._server.watch(), name="tidings-embedded-watch")
        assert self._options is not None
        main = self._main = Connection(self._options, f"tidings {service}", self._login)
        api = self._api = Api(main)
        self._publisher = Publisher(main, api)
        main.on_up.append(self._measure)
        link = await main.start()
        _check_version(str(link.info.get("version", "")), self._options.where)
        await api.check()
        if (most := self._publisher.max_payload) < 2 * ROOM_FOR_HEADERS:
            raise ConfigurationError(
                f"{self._options.where} takes messages of {most:,} bytes at most: set max_payload to 1.2MB or more in"
                " its configuration, so that dead letters fit with their headers"
            )
        return main

    def _measure(self, link: Link) -> None:
        """See what this server takes: it may be another, or have got other settings meanwhile.

        It closes the connection of whoever sends it more, and each attempt to send that again would do the same.
        """
        most = int(link.info.get("max_payload", 1024 * 1024))
        self._features = Features(name="nats", widens=False, max_bytes=min(MAX_EVENT_BYTES, most - ROOM_FOR_HEADERS))
        self._publisher.max_event, self._publisher.max_payload = self._features.max_bytes, most

    async def _declare(self, api: Api, plan: Plan) -> list[Drift]:
        assert self._options is not None
        replicas, ack_wait = self._options.replicas, self._options.ack_wait
        names = sorted({one.stream for one in plan.subscriptions})
        existing = await existing_positions(api, plan.service, names)
        declared = {one.position for one in plan.subscriptions}
        kept = {position: found.types for position, found in existing.items() if position in declared}
        for orphan in sorted(set(existing) - declared):
            left = existing[orphan]
            where = (left.types[0] if left.types else "STREAM").split(".", 1)[0]
            plan.check_positions({**kept, orphan: left.types}, how_to_remove(where, orphan, left.durables))
        for one in plan.subscriptions:
            if one.position in existing:
                check_kept_alike(one, existing[one.position])
        self._declared |= {one.position: one for one in plan.subscriptions}
        drifts = []
        for stream in plan.streams:
            drifts += await ensure_stream(api, event_stream(stream, replicas), stream, replicas)
        for wanted in (retry_stream(replicas), dead_stream(replicas), note_stream(replicas)):
            drifts += await ensure_stream(api, wanted, None, replicas)
        for one in plan.subscriptions:
            wanted_here = [(one.stream, consumer) for consumer in event_consumers(one, ack_wait)]
            wanted_here += [(RETRY_STREAM, consumer) for consumer in retry_consumers(one, ack_wait)]
            found_here = await asyncio.gather(*(ensure_consumer(api, *each) for each in wanted_here))
            drifts += [drift for each in found_here for drift in each]
        before = {
            one.position: await remember_types(api, one, RETRY_STREAM, partial(all_of, one))
            for one in plan.subscriptions
        }
        if gained(plan, {position: types for position, types in before.items() if types is not None}):
            await until_all_know()  # the server says in a difference of its own what is to be done
        return drifts

    async def _disconnect(self) -> None:
        feeds, self._feeds = self._feeds, []
        await asyncio.gather(*(feed.close() for feed in feeds), return_exceptions=True)
        for connection in (self._inward, self._main):
            if connection is not None:
                await connection.close()
        self._inward = self._main = None
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        if self._server is not None:
            await self._server.stop()

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def publish(self, messages: Sequence[Message], *, timeout: float) -> Sequence[Exception | None]:
        """Store messages; for each None once it is stored, or why it is not."""
        if self._main is None:
            return [_not_open("publish")] * len(messages)
        return await self._publisher.publish(messages, timeout)

    async def publish_batch(self, messages: Sequence[Message], *, timeout: float) -> bool:
        """Store messages of one stream in their order, all or none; false when that is not what became of them."""
        return self._main is not None and await self._publisher.publish_batch(messages, timeout)

    async def subscribe(self, subscription: Subscription, sink: Sink) -> NatsFeed:
        """Hand messages to `sink`, never more than the limits allow before others are settled.

        Raises:
            MisuseError: `open` was not called.
            BrokerUnavailable: there is no connection just now.
        """
        if self._main is None or self._options is None:
            raise _not_open("subscribe")
        if self._inward is None:
            self._inward = Connection(self._options, f"{self._main.name} (deliveries)", self._login)
            self._settler = Settler(self._inward)
        await self._inward.start()
        watch = Watch(self._api, subscription)
        if subscription.ordered:
            feed: NatsFeed = OrderedFeed(self._inward, subscription, sink, watch=watch, api=self._api)
        else:
            feed = NatsFeed(self._inward, subscription, sink, watch=watch)
        watch.of(feed.pulls)
        feed.start()
        self._feeds.append(feed)
        return feed

    async def settle(self, verdicts: Sequence[tuple[Delivery, Verdict]]) -> Sequence[Exception | None]:
        """Tell the server, confirmed by one round trip; for each None, or why it was not confirmed."""
        if self._inward is None:
            return [_not_open("settle")] * len(verdicts)
        return await self._settler.settle(verdicts)

    def read(
        self, route: Route, stream: str = "", *, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[Delivery]:
        """Read a log from its beginning: all events of a stream, or all dead letters.

        Raises:
            MisuseError: `open` was not called.
            ConfigurationError: there is no such stream.
            BrokerUnavailable: the server does not answer for too long; what was read so far was read.
        """
        if self._main is None:
            raise _not_open("read")
        return read_log(self._main, self._api, route, stream, since, follow)

    async def positions(self, service: str) -> Mapping[str, Sequence[str]]:
        """The positions of a service that exist, each with the types it takes; see `ports.Positions`."""
        if self._main is None:
            raise _not_open("positions")
        found = await existing_positions(self._api, service, [RETRY_STREAM])
        return {position: one.types for position, one in found.items()}

    async def taken(self, position: str) -> Collection[str]:
        """The types that a position takes; see `rolling.Remembers`."""
        if self._main is None:
            raise _not_open("taken")
        one = self._declared.get(position)  # a user may be allowed to ask for what its own code declares, and no more
        return () if one is None else await types_taken(self._api, one, RETRY_STREAM)

    async def remember(self, position: str, types: Collection[str]) -> None:
        """From now on a position takes these types; see `rolling.Remembers`."""
        if self._main is None:
            raise _not_open("remember")
        if (one := self._declared.get(position)) is not None:
            await remember_types(self._api, one, RETRY_STREAM, lambda had: types)

    async def fill(self, stream: str) -> Fill:
        """How full a stream is; see `sight.Fills`."""
        if self._main is None:
            raise _not_open("fill")
        return await fill_of(self._api, stream)

    def letters(self, position: str, *, ordered: bool) -> NatsLetterLog:
        """The log of a handler's dead letters; see `sight.Letters`."""
        if self._main is None:
            raise _not_open("letters")
        return NatsLetterLog(self._main, self._api, position, ordered=ordered)

    async def copies(self, position: str) -> int:
        """How many copies are on the retry route of a position and not settled; see `ports.Positions`."""
        if self._main is None:
            raise _not_open("copies")
        return await copies(self._api, position)


def version_of(text: str) -> tuple[int, ...]:
    """The numbers of a server's version."""
    return tuple(int(part) for part in text.split("-")[0].split(".")[:3] if part.isdigit())


def _check_version(text: str, where: str) -> None:
    numbers = version_of(text)
    if numbers < OLDEST:
        raise ConfigurationError(
            f"{where} runs nats-server {text or 'of an unknown version'}; Tidings needs {'.'.join(map(str, OLDEST))} or"
            f" newer (scheduled messages, atomic batches), better {'.'.join(map(str, ADVISED))}: upgrade the server"
        )
    if numbers < ADVISED:
        log.warning(
            "%s runs nats-server %s: from %s on it keeps consumers and streams that older ones may lose",
            where,
            text,
            ".".join(map(str, ADVISED)),
        )


def _not_open(what: str) -> TidingsError:
    return MisuseError(f"{what}: the broker is not open; await broker.open(plan) comes first")


def _split(url: str) -> tuple[str, str]:
    """What of an ``embedded:`` URL the server is to know, and what the connection to it."""
    address, _, query = url.partition("?")
    settings = [one for one in query.split("&") if one]
    server = [one for one in settings if one.startswith("port=")]
    connection = [one for one in settings if not one.startswith("port=")]
    if connection:
        parse("nats://localhost?" + "&".join(connection))  # a wrong one is said now, not when it connects
    return address + ("?" + "&".join(server) if server else ""), "?" + "&".join(connection) if connection else ""
