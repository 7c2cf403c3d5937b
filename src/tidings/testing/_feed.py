"""A feed of the memory broker: one subscription of one client, with its limits."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from tidings.delivery import Delivery
from tidings.errors import BrokerUnavailable
from tidings.ports import Backlog, Sink, Subscription
from tidings.testing._position import Flight, Position
from tidings.testing._server import Server


class MemoryFeed:
    """A running subscription. Beside what `tidings.ports.Feed` asks for it can die like a killed process: `crash()`."""

    def __init__(
        self, owner: object, server: Server, position: Position, subscription: Subscription, sink: Sink
    ) -> None:
        self.owner = owner
        self._server = server
        self._position = position
        self._limits = (subscription.max_in_flight, subscription.max_in_flight_bytes)
        self._sink = sink
        self._in_flight = self._in_flight_bytes = 0
        self._stopped = self.closed = False
        self.tenure = 0

    async def stop(self) -> None:
        """Take no new messages; what was handed over may still be settled."""
        self._stopped = True
        self._server.wake()

    async def close(self) -> None:
        """End, and give back at once what was handed over and not settled. Safe to call twice."""
        if not self.closed:
            self._stopped = self.closed = True
            self._position.takers.remove(self)
            self._position.give_back(self)
            self._server.wake()

    async def backlog(self) -> Backlog:
        return self._position.backlog()

    async def keeps(self) -> timedelta | None:
        """What the plan said of the stream. Nothing is really removed here before the broker is."""
        if self._server.down is not None:
            raise BrokerUnavailable("the memory broker is away")
        return self._server.plans[self._position.stream].keep

    def crash(self) -> None:
        """Die as by ``kill -9``: nothing is given back, and it all comes again when the ack wait has passed."""
        if not self.closed:
            self._stopped = self.closed = True
            self._position.abandon(self, self._server.ack_wait)
            self._server.wake()

    @property
    def taking(self) -> bool:
        return not self._stopped

    @property
    def present(self) -> bool:
        return not self._stopped or self._in_flight > 0

    def has_room(self, size: int) -> bool:
        most, most_bytes = self._limits
        if self._in_flight == 0:
            return True  # or a message larger than the limit would never come
        return self._in_flight < most and self._in_flight_bytes + size <= most_bytes

    def take(self, delivery: Delivery, flight: Flight) -> None:
        self._in_flight += 1
        self._in_flight_bytes += flight.item.size
        self._sink(delivery)

    def settled(self, flight: Flight) -> None:
        self._in_flight -= 1
        self._in_flight_bytes -= flight.item.size


class Fault(msgspec.Struct):
    """What the next calls of one kind get instead of their answer."""

    error: Exception
    times: int
    done: bool
    """The server did what was asked, and only the answer was lost."""
