"""Exchanges and queues: made where they are missing, and compared where they are there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any, Final, TypeVar, cast

import msgspec
from pamqp import commands

from tidings.brokers._gained import all_of, dropped, gained, until_all_know
from tidings.brokers.rabbitmq import names, waiting
from tidings.brokers.rabbitmq.channel import DIFFERENT, GRANT, REFUSED, Channel, NotAllowed, Refused
from tidings.brokers.rabbitmq.connection import Connection
from tidings.brokers.rabbitmq.frames import Content
from tidings.brokers.rabbitmq.reading import has_begun, read_log
from tidings.errors import BrokerUnavailable, ConfigurationError
from tidings.ports import Drift, Plan, Subscription

ANSWER: Final = 10.0
NO_LIMIT: Final = 2_000_000_000
"""Deliveries after which the server would drop a message. From 4.0 on its own limit is 20, hand-backs included
(trap 111); attempts are for the core to count."""
LOGS: Final = (names.DEAD, names.NOTES, names.POSITIONS, names.UNROUTED)
Begin = Callable[[str], Awaitable[None]]
WriteDown = Callable[[Sequence["Position"]], Awaitable[None]]
UNROUTED_AGE: Final = "7D"
ON_DISK: Final = 2.0
"""Seconds after which the server has written down that a new queue is there. If it is killed before, the queue comes
back empty, whatever it had confirmed: so nothing may come into one that is younger."""
PATIENCE: Final = 15.0
PAUSE: Final = 0.1


NO_HISTORY: Final = (
    "RabbitMQ keeps no history: a queue has what was published since it was made, until it is acknowledged. What is to"
    " be read again has to be kept elsewhere, or on a broker with a log"
)

T = TypeVar("T")


class NotYet(BrokerUnavailable):
    """The server has started, and is not ready."""


class Position(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is written down of a position, because the server cannot be asked what a queue is bound to."""

    position: str
    stream: str = ""
    types: tuple[str, ...] = ()
    ordered: bool = False


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Position).decode


class Topology:
    """What stands on one server; asks over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._where = connection.options.where
        self._group = connection.options.group_size
        self._exchanges: set[str] = set()
        self._begun: set[str] = set()
        """Logs that have a first message."""
        self._positions: dict[str, Position] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    # ── what a plan needs ───────────────────────────────────────────────────────────────────────────────────────────

    async def declare(self, plan: Plan, begin: Begin, write_down: WriteDown) -> list[Drift]:
        """Create what is missing. `begin` stores a first message in a log, `write_down` what is new of positions."""
        for stream in plan.streams:
            names.check_stream(stream.name)
        streams = {stream.name for stream in plan.streams}
        for one in plan.subscriptions:
            names.check_position(one.position)
            if one.stream not in streams:
                raise ConfigurationError(
                    f"{one.position} wants the stream {one.stream!r}, which its plan does not declare"
                )
        await self._patiently(lambda: self._common(sorted(streams)))
        await asyncio.gather(*(self._begin(log, begin) for log in LOGS))
        known = await self.positions()
        await self._check_orphans(plan, known)
        for one in plan.subscriptions:
            _check_kept_alike(one, known.get(one.position))
            if one.since is not None and one.position not in known:
                raise ConfigurationError(
                    f"{one.position} is to begin with what was stored at {one.since}: {NO_HISTORY}"
                )
        types = {name: one.types for name, one in known.items()}
        wanted = [
            Position(one.position, one.stream, all_of(one, types.get(one.position, ())), one.ordered)
            for one in plan.subscriptions
        ]
        drifts = gained(plan, types)
        if drifts:  # before any of it can come to a process that has to ask
            await write_down([one for one in wanted if one.position in known])
            await until_all_know()
        drifts += dropped(plan, types)
        drifts += [drift for one in wanted for drift in await self._queues(one)]
        if not known or any(one.position not in known for one in wanted):
            await asyncio.sleep(ON_DISK)
        for now in wanted:
            await self._bindings(now, known.get(now.position))
        await write_down([one for one in wanted if one != known.get(one.position)])
        return drifts

    async def remember(self, position: str, types: Collection[str], write_down: WriteDown) -> None:
        """From now on a position takes these types; see `rolling.Remembers`.

        What is written down is bound, whatever happens in between: else nobody would look for what does not come.
        """
        before = (await self.positions()).get(position)
        if before is None:
            return
        now = msgspec.structs.replace(before, types=tuple(sorted(types)))
        if set(now.types) - set(before.types):
            await self._bindings(now, None)
        await write_down([now])
        if gone := set(before.types) - set(now.types):
            await self._bindings(now, before)
            again = (await self.positions()).get(position, now)
            if gone.intersection(again.types):  # who asks for it has started meanwhile, and bound it before it went
                await self._bindings(again, None)

    async def _patiently(self, act: Callable[[], Awaitable[T]]) -> T:
        """Try again while the server says that it is not ready yet, as it does when it has just started."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return await act()
            except NotYet:
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(PAUSE)

    async def _begin(self, log: str, begin: Begin) -> None:
        if log not in self._begun and not await has_begun(self._connection, log):
            await begin(log)
        self._begun.add(log)

    async def _common(self, streams: Sequence[str]) -> None:
        async with self._Channel(self._connection) as channel:
            await self._declare_common(channel, streams)

    async def _declare_common(self, channel: Channel, streams: Sequence[str]) -> None:
        for name in streams:
            await self._exchange(channel, name)
        for name in (names.RETRY, names.WAIT, names.UNROUTED):
            await self._exchange(channel, name)
        await self._exchange(channel, names.LIVE, kind="direct")
        for name in LOGS:
            age = {"x-max-age": UNROUTED_AGE} if name == names.UNROUTED else {}
            group = {"x-initial-cluster-size": self._group} if self._group else {}
            await self._queue(channel, name, {"x-queue-type": "stream", **age, **group})
        await self._bind(channel, names.UNROUTED, names.UNROUTED, "#")

    async def _queues(self, now: Position) -> list[Drift]:
        drifts: list[Drift] = []
        for queue in names.all_queues(now.position, now.ordered):
            drifts += await self._patiently(partial(self.compare, queue, now.ordered))
        return drifts

    async def compare(self, queue: str, ordered: bool) -> list[Drift]:
        """How a queue of a position differs from what it should be; one that is missing is made."""
        return await self._quorum(queue, {"x-single-active-consumer": True} if ordered else {})

    async def _bindings(self, now: Position, before: Position | None) -> None:
        """What the queues of a position take; bound before anything is unbound."""
        queues = names.event_queues(now.position, now.ordered)
        wanted = names.bindings_of(now.types, now.ordered)
        had = names.bindings_of(before.types, before.ordered) if before is not None else [set[str]() for _ in queues]
        async with self._Channel(self._connection) as channel:
            for queue, exchange, key in names.copy_bindings(now.position, now.ordered):
                await self._bind(channel, queue, exchange, key)
            for queue, keys in zip(queues, wanted, strict=True):
                await asyncio.gather(*(self._bind(channel, queue, now.stream, key) for key in sorted(keys)))
            for queue, keys, old in zip(queues, wanted, had, strict=True):
                for key in sorted(old - keys):
                    await channel.call(commands.Queue.Unbind(0, queue, now.stream, key), ANSWER)

    # ── one by one ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _exchange(self, channel: Channel, name: str, kind: str = "topic") -> None:
        asked = commands.Exchange.Declare(0, name, kind, False, True, False, False, False, {})
        try:
            await channel.call(asked, ANSWER)
        except Refused as error:
            raise self._explained(f"the exchange {name!r}", error) from None
        self._exchanges.add(name)

    async def _queue(self, channel: Channel, name: str, arguments: dict[str, Any]) -> None:
        asked = commands.Queue.Declare(0, name, False, True, False, False, False, cast(Any, arguments))
        try:
            await channel.call(asked, ANSWER)
        except Refused as error:
            raise self._explained(f"the queue {name!r}", error) from None

    async def _quorum(self, name: str, more: dict[str, Any]) -> list[Drift]:
        """A quorum queue. Where it is there with other arguments, that is told, or refused if it would not work."""
        group = {"x-quorum-initial-group-size": self._group} if self._group else {}
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT, **more, **group}
        asked = commands.Queue.Declare(0, name, False, True, False, False, False, cast(Any, arguments))
        try:
            async with self._Channel(self._connection) as channel:
                await channel.call(asked, ANSWER)
        except Refused as error:
            fatal = any(f"'{one}'" in error.text for one in ("x-queue-type", "x-single-active-consumer", "durable"))
            if error.code != DIFFERENT or fatal:
                raise self._explained(f"the queue {name!r}", error) from None
            return [
                Drift(
                    what=f"arguments of the queue {name}",
                    declared=", ".join(f"{key}={value}" for key, value in arguments.items()),
                    found=error.text,
                    remedy="Arguments cannot be changed: let it run empty, stop the service, and remove the queue"
                    f" (rabbitmqctl delete_queue {name}); the next start makes it anew.",
                )
            ]
        return []

    async def _bind(self, channel: Channel, queue: str, exchange: str, key: str) -> None:
        try:
            await channel.call(commands.Queue.Bind(0, queue, exchange, key, False, {}), ANSWER)
        except Refused as error:
            raise self._explained(f"the queue {queue!r} to take from the exchange {exchange!r}", error) from None

    def _explained(self, what: str, error: Refused) -> Exception:
        if error.code == DIFFERENT:
            return ConfigurationError(
                f"{what} is there, and is another than Tidings needs: {error.text}. Remove or rename it, or give"
                " Tidings a virtual host of its own"
            )
        if error.code == REFUSED:
            return NotAllowed(f"{self._where} does not allow {what}: {error.text}. {GRANT}")
        return (NotYet if error.passing else BrokerUnavailable)(f"{what} could not be made: {error}")

    async def has_exchange(self, name: str) -> bool:
        """Whether there is such an exchange; one that was seen is believed to stay."""
        if name in self._exchanges:
            return True
        try:
            async with self._Channel(self._connection) as channel:
                asked = commands.Exchange.Declare(0, name, "topic", True, False, False, False, False, {})
                await channel.call(asked, ANSWER)
        except Refused as error:
            if error.missing:
                return False
            raise
        self._exchanges.add(name)
        return True

    def forget(self, exchange: str) -> None:
        """It was there, and is not."""
        self._exchanges.discard(exchange)

    async def count(self, queue: str) -> int | None:
        """How many messages wait in a queue to be delivered; None if there is none. Raises BrokerUnavailable."""
        try:
            async with self._Channel(self._connection) as channel:
                asked = commands.Queue.Declare(0, queue, True, False, False, False, False, {})
                return (await channel.ask(asked, commands.Queue.DeclareOk, ANSWER)).message_count or 0
        except Refused as error:
            if error.missing:
                return None
            raise

    async def scheduled(self, position: str) -> int:
        """Copies of a position that wait for their time."""
        found = await asyncio.gather(*(self.count(names.wait_queue(position, step)) for step in waiting.STEPS))
        return sum(one or 0 for one in found)

    # ── the positions there are ─────────────────────────────────────────────────────────────────────────────────────

    async def positions(self, *, age: float = 0.0) -> dict[str, Position]:
        """What is written down of positions; what was read `age` seconds ago at most is good enough.

        Those who ask while somebody reads are told all together of what the next of them reads.
        """
        asked = time.monotonic()
        async with self._reading:
            if asked - self._read_at > age:
                began = time.monotonic()
                found: dict[str, Position] = {}
                async for content in read_log(self._connection, names.POSITIONS):
                    if (one := _position_of(content)) is not None:
                        found.pop(one.position, None)
                        if one.types:
                            found[one.position] = one
                self._positions, self._read_at = found, began
            return self._positions

    async def of_service(self, service: str) -> dict[str, Position]:
        """The positions of a service that are written down and have a queue."""
        mine = {name: one for name, one in (await self.positions()).items() if name.startswith(service + ".")}
        there = await asyncio.gather(
            *(self.count(names.event_queues(name, one.ordered)[0]) for name, one in mine.items())
        )
        return {name: one for (name, one), count in zip(mine.items(), there, strict=True) if count is not None}

    async def _check_orphans(self, plan: Plan, known: dict[str, Position]) -> None:
        declared = {one.position for one in plan.subscriptions}
        if not any(name.startswith(plan.service + ".") and name not in declared for name in known):
            return
        existing = await self.of_service(plan.service)
        kept = {name: one.types for name, one in existing.items() if name in declared}
        for orphan in sorted(set(existing) - declared):
            left = existing[orphan]
            queues = names.all_queues(orphan, left.ordered)
            remove = "; ".join(f"rabbitmqctl delete_queue {queue}" for queue in queues)
            plan.check_positions({**kept, orphan: left.types}, remove)

    class _Channel:
        """A channel for a few calls: the server closes it with the first that it refuses."""

        def __init__(self, connection: Connection) -> None:
            self._connection = connection
            self._channel: Channel | None = None

        async def __aenter__(self) -> Channel:
            link = await self._connection.ready(ANSWER)
            self._channel = await link.channel(ANSWER)
            return self._channel

        async def __aexit__(self, *error: object) -> None:
            if self._channel is not None:
                try:
                    await self._channel.close(ANSWER)
                except BrokerUnavailable:
                    pass  # it went with its link


def encoded(position: Position) -> bytes:
    """As it is written down."""
    return _encode(position)


def _position_of(content: Content) -> Position | None:
    try:
        return _decode(content.body)
    except msgspec.DecodeError:
        return None  # a stranger's


def _check_kept_alike(one: Subscription, before: Position | None) -> None:
    """Whether a position is ordered cannot be changed: what waits stands in the queues of the one way."""
    if before is None or before.ordered == one.ordered:
        return
    was, now = ("ordered", "without order") if before.ordered else ("without order", "ordered")
    queues = " ".join(names.event_queues(one.position, before.ordered))
    order = "'key'" if before.ordered else "None"
    raise ConfigurationError(
        f"the position {one.position} is {was} at the broker, and the code wants it {now}. Give the handler another"
        f" name=, or order={order}; or let it run empty, and remove its queues: {queues}"
    )
