"""The Kafka broker: what the parts of this folder are together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from tidings.brokers.kafka.feed import KafkaFeed, OrderedFeed
from tidings.brokers.kafka.link import Link
from tidings.brokers.kafka.offsets import copies
from tidings.brokers.kafka.options import parse
from tidings.brokers.kafka.positions import Taken, ensure_positions, existing_positions, remember, types_of
from tidings.brokers.kafka.publishing import Publisher
from tidings.brokers.kafka.reading import Reading
from tidings.brokers.kafka.topics import ensure_topics
from tidings.brokers.kafka.tracks import Track
from tidings.delivery import MAX_EVENT_BYTES, Delivery, Message, Route, Verdict
from tidings.errors import MisuseError, TidingsError
from tidings.ports import Drift, Features, Plan, Sink, Subscription

log = logging.getLogger("tidings.kafka")

FEATURES = Features(name="kafka", deduplicates=False, max_bytes=MAX_EVENT_BYTES, settles_at_once=True)


class KafkaBroker:
    """An Apache Kafka cluster.

    Parameters:
        url: ``kafka://``; `options.py` says what may stand in it.
        options: settings of librdkafka beside those in the URL, such as a callback for OAUTHBEARER tokens.
    """

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None) -> None:
        self._options = parse(url, options)
        self._link: Link | None = None
        self._publisher: Publisher | None = None
        self._reading: Reading | None = None
        self._feeds: list[KafkaFeed] = []
        self._opened = 0
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<KafkaBroker {self._options.where}>"

    @property
    def features(self) -> Features:
        return FEATURES

    @property
    def trouble(self) -> str:
        if self._link is None:
            return "not connected"
        return self._link.trouble or next((feed.trouble for feed in self._feeds if feed.trouble), "")

    # ── open and close ──────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self, plan: Plan) -> Sequence[Drift]:
        """Connect, and make the topics and groups that are missing. Each `open` wants a `close` of its own.

        Raises:
            BrokerUnavailable: the cluster cannot be reached in time.
            ConfigurationError: it cannot do what is needed, a name is refused, or a position was orphaned.
        """
        async with self._turn:
            try:
                link, publisher = await self._connect(plan.service)
                drifts = await ensure_topics(link, plan)
                drifts += await ensure_positions(link, publisher, plan)
            except BaseException:
                if not self._opened:
                    await self._disconnect()
                raise
            self._opened += 1
            return drifts

    async def close(self) -> None:
        """Close the feeds and the clients, once everybody who opened this has closed it. Safe to call twice."""
        async with self._turn:
            self._opened = max(0, self._opened - 1)
            if not self._opened:
                await self._disconnect()

    async def _connect(self, service: str) -> tuple[Link, Publisher]:
        if self._link is None:
            self._link = Link(self._options, f"tidings {service}")
            await self._link.start()
        if self._publisher is None:
            self._publisher = Publisher(self._link)
        if self._reading is None:
            self._reading = Reading(self._link)
            self._taken = Taken(self._link)
        return self._link, self._publisher

    async def _disconnect(self) -> None:
        feeds, self._feeds = self._feeds, []
        await asyncio.gather(*(feed.close() for feed in feeds), return_exceptions=True)
        if self._reading is not None:
            self._reading.close()
        if self._publisher is not None:
            await self._publisher.close()
        if self._link is not None:
            await self._link.close()
        self._link = self._publisher = self._reading = None

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def publish(self, messages: Sequence[Message], *, timeout: float) -> Sequence[Exception | None]:
        """Store messages; for each None once it is stored, or why it is not."""
        if self._publisher is None:
            return [_not_open("publish")] * len(messages)
        return await self._publisher.publish(messages, timeout)

    async def subscribe(self, subscription: Subscription, sink: Sink) -> KafkaFeed:
        """Hand messages to `sink`, never more than the limits allow before others are settled.

        Raises:
            MisuseError: `open` was not called.
        """
        if self._link is None:
            raise _not_open("subscribe")
        kind = OrderedFeed if subscription.ordered else KafkaFeed
        feed = kind(self._link, subscription, sink)
        feed.start()
        self._feeds = [one for one in self._feeds if not one.closed] + [feed]
        if self._options.join:
            await feed.joined(self._options.join)
        return feed

    async def settle(self, verdicts: Sequence[tuple[Delivery, Verdict]]) -> Sequence[Exception | None]:
        """Note what became of deliveries; each position is committed within half a second, and at its end."""
        if self._link is None:
            return [_not_open("settle")] * len(verdicts)
        results: list[Exception | None] = []
        for owner, some in _by_owner(verdicts):  # a wave is of one position
            if isinstance(owner, KafkaFeed):
                results += owner.settle(some)
                continue
            for delivery, _ in some:
                results.append(MisuseError(f"{delivery!r} did not come from this broker, so it cannot settle it"))
        return results

    def read(
        self, route: Route, stream: str = "", *, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[Delivery]:
        """Read a log from its beginning: all events of a stream, or all dead letters.

        Raises:
            MisuseError: `open` was not called.
            ConfigurationError: there is no such stream.
            BrokerUnavailable: the cluster does not answer for too long; what was read so far was read.
        """
        if self._reading is None:
            raise _not_open("read")
        return self._reading.read(route, stream, since, follow)

    async def positions(self, service: str) -> Mapping[str, Sequence[str]]:
        """The positions of a service that exist, each with the types it takes; see `ports.Positions`."""
        if self._link is None:
            raise _not_open("positions")
        return types_of(await existing_positions(self._link, service))

    async def taken(self, position: str) -> Collection[str]:
        """The types that a position takes; see `rolling.Remembers`."""
        if self._link is None:
            raise _not_open("taken")
        return await self._taken.by(position)

    async def remember(self, position: str, types: Collection[str]) -> None:
        """From now on a position takes these types; see `rolling.Remembers`."""
        if self._link is None or self._publisher is None:
            raise _not_open("remember")
        await remember(self._link, self._publisher, position, types)

    async def copies(self, position: str) -> int:
        """How many copies are on the retry route of a position and not settled; see `ports.Positions`."""
        if self._link is None:
            raise _not_open("copies")
        return await copies(self._link, position)


def _by_owner(
    verdicts: Sequence[tuple[Delivery, Verdict]],
) -> Iterator[tuple[object, Sequence[tuple[Delivery, Verdict]]]]:
    """Neighbours that came from one feed, or from nobody here; most have their partition's track in common as well."""
    begin, owner, known = 0, None, None
    for place, (delivery, _) in enumerate(verdicts):
        if delivery.token is not known:
            known = delivery.token
            other = known.owner if isinstance(known, Track) else None
            if other is not owner:
                yield owner, verdicts[begin:place]
                begin, owner = place, other
    yield owner, verdicts[begin:]


def _not_open(what: str) -> TidingsError:
    return MisuseError(f"{what}: the broker is not open; await broker.open(plan) comes first")
