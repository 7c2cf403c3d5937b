"""The server half of the memory broker: streams, positions and time. It knows no clients by name.

Everything happens in the event loop that calls it; nothing here has a task of its own.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import msgspec

from tidings.delivery import MAX_EVENT_BYTES, Message, Route
from tidings.errors import ConfigurationError, EventTooLarge, NotStored
from tidings.ports import Drift, Plan, StreamPlan, Subscription
from tidings.testing._position import Log, Position

RETRY_LOG = "tidings-retry"
DEAD_LOG = "tidings-dead"
NOTE_LOG = "tidings-notes"


class Server:
    """What the clients of one memory broker share."""

    def __init__(self, ack_wait: float) -> None:
        self.ack_wait = ack_wait
        self.streams: dict[str, Log] = {}
        self.plans: dict[str, StreamPlan] = {}
        self.positions: dict[str, Position] = {}
        self.retries = Log(RETRY_LOG)
        self.dead = Log(DEAD_LOG)
        self.notes = Log(NOTE_LOG)
        self.down: asyncio.Event | None = None
        """Set while the server is away; the event is fired when it is back."""
        self._pumping: tuple[asyncio.AbstractEventLoop, asyncio.Handle] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watchers: set[asyncio.Future[None]] = set()

    def declare(self, plan: Plan) -> list[Drift]:
        """Create the streams and positions that are missing."""
        prefix = plan.service + "."
        plan.check_positions(
            {name: sorted(one.types) for name, one in self.positions.items() if name.startswith(prefix)}
        )
        drifts = [drift for stream in plan.streams if (drift := self._declare_stream(stream)) is not None]
        for subscription in plan.subscriptions:
            self._declare_position(subscription)
        return drifts

    def store(self, message: Message) -> Exception | None:
        if len(message.body) > MAX_EVENT_BYTES:
            return EventTooLarge(
                f"{message.type} {message.id} has {len(message.body):,} bytes; {MAX_EVENT_BYTES:,} may travel."
                " Store the large part elsewhere and publish where it stands."
            )
        if message.route is Route.EVENT and message.stream not in self.streams:
            return NotStored(
                f"no service has declared the stream {message.stream!r}, so nothing would keep {message.type}"
                f" {message.id}. Start a service that publishes or handles it first, or name the type in publishes=."
            )
        target = self.log(message.route, message.stream)
        # What travels is a copy: nobody can change later what was stored.
        copy = msgspec.structs.replace(message, body=bytes(message.body), headers=dict(message.headers))
        entry = target.append(copy)
        if entry is not None:
            for position in self._concerned(message):
                position.offer(target, entry)
            self.wake()
        return None

    def log(self, route: Route, stream: str) -> Log:
        if route is Route.EVENT:
            if stream not in self.streams:
                raise ConfigurationError(
                    f"there is no stream {stream!r}; the streams are: {', '.join(self.streams) or 'none'}"
                )
            return self.streams[stream]
        return {Route.RETRY: self.retries, Route.DEAD: self.dead, Route.NOTE: self.notes}[route]

    def lose_connections(self) -> None:
        """Go away: whatever is in flight is nobody's any more."""
        self.down = asyncio.Event()
        for position in self.positions.values():
            position.give_back()

    def come_back(self) -> None:
        down, self.down = self.down, None
        if down is not None:
            down.set()
        self.wake()

    def wake(self) -> None:
        """Have everything looked at soon, in the loop that runs now."""
        loop = asyncio.get_running_loop()
        if self._pumping is None or self._pumping[0] is not loop:
            self._pumping = (loop, loop.call_soon(self._pump))

    async def changed(self, timeout: float) -> None:
        """Wait until something happened, or so many seconds have passed."""
        watcher = asyncio.get_running_loop().create_future()
        self._watchers.add(watcher)
        try:
            await asyncio.wait([watcher], timeout=timeout)
        finally:
            self._watchers.discard(watcher)

    def _pump(self) -> None:
        self._pumping = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)
        if self.down is not None:
            return
        waits = [wait for position in self.positions.values() if (wait := position.pump()) is not None]
        if waits:
            self._timer = asyncio.get_running_loop().call_later(min(waits), self._pump)

    def _concerned(self, message: Message) -> Iterator[Position]:
        if message.route is Route.EVENT:
            yield from (one for one in self.positions.values() if one.stream == message.stream)
        elif message.route is Route.RETRY and message.position in self.positions:
            yield self.positions[message.position]

    def _declare_stream(self, plan: StreamPlan) -> Drift | None:
        if plan.name not in self.streams:
            self.streams[plan.name] = Log(plan.name)
            self.plans[plan.name] = plan
            return None
        found = self.plans[plan.name].keep
        if plan.keep is None or plan.keep == found:
            return None
        return Drift(
            what=f"keep of stream {plan.name}",
            declared=str(plan.keep),
            found="nothing" if found is None else str(found),
            remedy="Declare it alike in all services of this test.",
        )

    def _declare_position(self, subscription: Subscription) -> None:
        if subscription.stream not in self.streams:
            raise ConfigurationError(
                f"{subscription.position} wants the stream {subscription.stream!r}, which its plan does not declare"
            )
        if (position := self.positions.get(subscription.position)) is not None:
            position.types |= frozenset(subscription.types if subscription.hosted else ())
            position.ordered = subscription.ordered
            return
        position = Position(subscription, self.wake)
        self.positions[position.name] = position
        log, since = self.streams[subscription.stream], subscription.since
        begins = since.timestamp() if since is not None else 0.0 if subscription.start == "all" else math.inf
        for entry in log.entries:
            if entry.at >= begins:
                position.offer(log, entry)
        for entry in self.retries.entries:
            if entry.message.position == position.name:
                position.offer(self.retries, entry)
