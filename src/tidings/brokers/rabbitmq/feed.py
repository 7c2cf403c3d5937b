"""A running subscription: what its queues bring, handed over within the limits, and settled.

The server knows of limits in messages only; what is more than the bytes that were asked for waits here. Nothing has to
be kept alive: the server delivers again when a channel ends, and not before.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from functools import partial
from hashlib import blake2b
from typing import Any, Final

from tidings.brokers.rabbitmq import names, waiting
from tidings.brokers.rabbitmq.connection import Connection
from tidings.brokers.rabbitmq.frames import Content
from tidings.brokers.rabbitmq.moving import Mover
from tidings.brokers.rabbitmq.source import Source, Token
from tidings.brokers.rabbitmq.topology import Topology
from tidings.delivery import Delivery, Header, Route
from tidings.errors import BrokerUnavailable
from tidings.ports import Backlog, Sink, Subscription

log = logging.getLogger("tidings.rabbitmq")

RETRY_PART: Final = 8
"""One part in so many of the in-flight limit is the retry route's, so that neither road can block the other."""
SMALL_LIMIT: Final = 8
"""Below this many in flight there is nothing to share: one copy may wait here beside the events."""
SAMPLE: Final = 100
"""Over how many messages their size is averaged."""
TOO_MUCH: Final = 2
"""How many times the bytes that may be in flight may be with us."""
ANSWER: Final = 10.0
PAUSE: Final = 1.0

Move = Callable[[str, Sequence[Content]], Awaitable[Sequence[Exception | None]]]
"""Stores copies, of that position, where they are to stand next."""


class RabbitFeed:
    """See `ports.Feed`."""

    def __init__(
        self,
        connection: Connection,
        topology: Topology,
        subscription: Subscription,
        sink: Sink,
        *,
        outward: Connection,
        move: Move,
        keep: timedelta,
    ) -> None:
        self.subscription = subscription
        self.position = subscription.position
        self.held: dict[Token, Delivery] = {}
        """Whatever came and is not settled, in the order in which it came."""
        self.tenure = 0
        self._connection, self._outward = connection, outward
        self._topology = topology
        self._sink = sink
        self._move = move
        self._keep = keep
        self._most, self._most_bytes = subscription.max_in_flight, subscription.max_in_flight_bytes
        self._given = self._given_bytes = self._held_bytes = 0
        self._average = 0.0
        """Bytes of a message, as far as they were seen."""
        self._queue: deque[tuple[Token, Delivery]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._stopping = self._closed = False
        self.sources: Sequence[Source] = self._make_sources()
        self._movers: Sequence[Mover] = self._make_movers()

    def _make_sources(self) -> Sequence[Source]:
        most = self.subscription.max_in_flight
        copies = max(1, most // RETRY_PART)
        events = most - copies if most >= SMALL_LIMIT else most
        queues = [(self.position, events), (names.retry_queue(self.position), copies)]
        return [Source(self, self._connection, self.position, queues)]

    def _make_movers(self) -> Sequence[Mover]:
        queues = {step: names.wait_queue(self.position, step) for step in waiting.STEPS}
        move = partial(self._move, self.position)
        return [Mover(self._connection, queue, step / 1000, move) for step, queue in queues.items()]

    def fit(self, most: int) -> int:
        """How many messages may be asked for where `most` are allowed, so that their bytes are what is allowed, too."""
        part = self._most_bytes * most / self._most
        return max(1, min(most, int(part / self._average))) if self._average else most

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def trouble(self) -> str:
        if not self._closed and any(task.done() for task in self._tasks):
            return f"the feed of {self.position} died: restart the process"
        said = [*(source.trouble for source in self.sources), *(mover.trouble for mover in self._movers)]
        return next(filter(None, said), "")

    def start(self) -> None:
        for source in self.sources:
            self.spawn(source.run(), f"take-{source.name}")
        for mover in self._movers:
            self.spawn(mover.run(), f"move-{mover.queue}", ends=True)

    def spawn(self, work: Coroutine[Any, Any, None], what: str, *, ends: bool = False) -> None:
        """Run a task until it ends, or the feed does."""
        task = asyncio.create_task(work, name=f"tidings-rabbitmq-{what}")
        self._tasks.add(task)
        if ends:
            task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the feed of %s failed", self.position, exc_info=error)

    # ── deliveries in ───────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, token: Token) -> None:
        """A message came. Those of the retry route are never handed over before their time."""
        content = token.content
        if content.exchange == names.RETRY:
            if (left := waiting.seconds_left(content.headers)) > 0:
                self._too_early(token, left)
                return
            self.offer(token, self._copy(token))
        else:
            self.offer(token, self._event(token))

    def offer(self, token: Token, delivery: Delivery) -> None:
        """Hand a delivery over, or keep it until there is room."""
        self.hold(token, delivery)
        self.hand_over(token, delivery)

    def hand_over(self, token: Token, delivery: Delivery) -> None:
        """The same for one that is held already."""
        if self._queue or not self._has_room(token.size):
            self._queue.append((token, delivery))
        else:
            self._give(token, delivery)

    def hold(self, token: Token, delivery: Delivery) -> None:
        """Remember that it is with us. Messages that are larger than those before may be too many: ask for fewer."""
        self.held[token] = delivery
        self._held_bytes += token.size
        self._average += (token.size - self._average) / min(len(self.held) + 1, SAMPLE)
        if self._held_bytes > TOO_MUCH * self._most_bytes:
            token.source.ask_for_fewer()

    def _has_room(self, size: int) -> bool:
        if self._given == 0:
            return True  # or a message larger than the limit would never come
        return self._given < self._most and self._given_bytes + size <= self._most_bytes

    def _give(self, token: Token, delivery: Delivery) -> None:
        token.given = True
        self._given += 1
        self._given_bytes += token.size
        self._sink(delivery)

    def let_go(self, tokens: Sequence[Token]) -> None:
        """What is not with us any more makes room for others."""
        for token in tokens:
            if self.held.pop(token, None) is None:
                continue
            self._held_bytes -= token.size
            if token.given:
                self._given -= 1
                self._given_bytes -= token.size
        queue = self._queue
        while queue and not self._stopping:
            if not queue[0][0].lives:
                queue.popleft()
            elif self._has_room(queue[0][0].size):
                self._give(*queue.popleft())
            else:
                break

    def _event(self, token: Token) -> Delivery:
        content = token.content
        return Delivery(
            body=content.body,
            stream=self.subscription.stream,
            origin=(self.subscription.stream, content.id or _digest(content)),
            token=token,
            headers=content.headers,
            slot=names.slot_in(content.routing_key),
            delivered=_delivered(content),
        )

    def _copy(self, token: Token) -> Delivery:
        content = token.content
        return Delivery(
            body=content.body,
            stream=content.headers.get(Header.STREAM) or self.subscription.stream,
            origin=(names.RETRY, content.id or _digest(content)),
            token=token,
            headers=content.headers,
            slot=names.slot_in(content.routing_key) if Header.KEY in content.headers else None,
            delivered=_delivered(content),
            route=Route.RETRY,
        )

    # ── copies that came before their time ──────────────────────────────────────────────────────────────────────────

    def _too_early(self, token: Token, left: float) -> None:
        if left <= waiting.SHORT:
            self.later(left, lambda: self.take(token) if token.lives and not self._stopping else None)
        else:
            self.spawn(self._wait_again(token), f"wait-{self.position}", ends=True)

    async def _wait_again(self, token: Token) -> None:
        """Store it where it waits on, and only then let go of it here."""
        while token.lives and not self._stopping:
            (error,) = await self._move(self.position, [token.content])
            if error is None:
                if token.lives:
                    token.channel.link.send(token.source.acknowledge([token]))
                return
            log.debug("a copy of %s could not go on waiting: %s", self.position, error)
            await asyncio.sleep(PAUSE)

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something in a while, unless the feed ends before."""

        def run() -> None:
            self._timers.discard(timer)
            try:
                act()
            except BrokerUnavailable:
                pass  # the channel has ended, so all is given back

        timer = asyncio.get_running_loop().call_later(seconds, run)
        self._timers.add(timer)

    # ── settling ────────────────────────────────────────────────────────────────────────────────────────────────────

    def release(self, source: Source, releases: Sequence[tuple[Token, float]]) -> bytes:
        """What says that these come again; those that are to wait are kept here for so long, unless the feed ends."""
        now = [token for token, after in releases if after <= 0 or self._stopping]
        for token, after in releases:
            if token not in now:
                self.later(after, partial(self._release_now, token))
        if not now:
            return b""
        said = source.give_back(now)
        self.let_go(now)
        return said

    def _release_now(self, token: Token) -> None:
        if token.lives:
            token.channel.link.send(token.source.give_back([token]))
        self.let_go([token])

    # ── it ends ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def lost(self, source: Source) -> None:
        """A channel has ended: all that came by it is given back already."""
        self._queue = deque(pair for pair in self._queue if pair[0].source is not source)
        self.let_go([token for token in self.held if token.source is source])

    async def stop(self) -> None:
        """Take no new messages; what is not handed over goes back at once."""
        if self._stopping:
            return
        self._stopping = True
        await asyncio.gather(
            *(source.hush(for_good=True) for source in self.sources), *(mover.stop() for mover in self._movers)
        )
        self._queue.clear()
        for source in self.sources:
            self._give_back_unseen(source)

    def _give_back_unseen(self, source: Source) -> None:
        unseen = [token for token in self.held if token.source is source and not token.given and token.lives]
        if not unseen:
            return
        try:
            unseen[0].channel.link.send(source.give_back(unseen))
        except BrokerUnavailable:
            pass  # the channel has ended, so all is given back
        self.let_go(unseen)

    async def close(self) -> None:
        """End, and give back at once whatever was handed over and not settled. Safe to call twice."""
        if self._closed:
            return
        await self.stop()
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(source.detach() for source in self.sources))

    # ── how far it is ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def moving(self) -> int:
        """How many copies are with us on their way from one place to wait in to the next."""
        return sum(len(mover.held) for mover in self._movers)

    async def backlog(self) -> Backlog:
        """What is in flight elsewhere is not seen: the server tells only by its management plugin."""
        queues = {queue for source in self.sources for queue, _ in source.queues}
        found = await asyncio.gather(*(self._topology.count(queue) for queue in queues))
        scheduled = await self._topology.scheduled(self.position) + self.moving if self._movers else 0
        return Backlog(pending=sum(one or 0 for one in found), in_flight=len(self.held), scheduled=scheduled)

    async def keeps(self) -> timedelta | None:
        """What the plan says: a queue keeps what is not acknowledged without end, and nothing else."""
        return self._keep


def _delivered(content: Content) -> int:
    counts = (content.marks.get("x-delivery-count"), content.marks.get("x-acquired-count"))
    return 1 + max((one for one in counts if isinstance(one, int)), default=0)


def _digest(content: Content) -> str:
    """What stands in for the id that a foreign publisher did not set."""
    found = blake2b(content.body, digest_size=12)
    found.update(repr((content.routing_key, sorted(content.headers.items()))).encode())
    return found.hexdigest()
