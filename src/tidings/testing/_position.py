"""A position of the memory broker: what waits, what is in flight, and which of its feeds gets what next."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Protocol

import msgspec

from tidings.delivery import Delivery, Message, Route
from tidings.partition import slot_of
from tidings.ports import Backlog, Subscription

DEDUPLICATION_WINDOW = 120.0
"""For how many seconds a message id is stored once."""

_MARGIN = 0.001
"""Seconds added to a due time: the wall clock, by which it is given, and the monotonic one may differ by a hair."""


class Stored(msgspec.Struct, frozen=True):
    """A message in a log."""

    sequence: int
    message: Message
    at: float
    """When it was stored, Unix seconds."""


class Log:
    """Messages in the order in which they were stored, numbered from 1. Nothing is ever removed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries: list[Stored] = []
        self._seen: dict[str, float] = {}

    def append(self, message: Message) -> Stored | None:
        """Store a message; None when its id was stored within the window."""
        now = time.monotonic()
        seen = self._seen.get(message.id)
        if seen is not None and now - seen < DEDUPLICATION_WINDOW:
            return None
        self._seen[message.id] = now
        entry = Stored(len(self.entries) + 1, message, time.time())
        self.entries.append(entry)
        return entry

    def delivery(self, entry: Stored, *, token: object = None, delivered: int = 1, stored: float = 0.0) -> Delivery:
        message = entry.message
        return Delivery(
            body=message.body,
            stream=message.stream,
            origin=(self.name, entry.sequence),
            token=token,
            headers=dict(message.headers),
            slot=None if message.key is None else slot_of(message.key),
            delivered=delivered,
            route=message.route,
            stored=stored,
        )


class Item:
    """A message on its way to one position."""

    __slots__ = ("delivered", "entry", "log")

    def __init__(self, log: Log, entry: Stored) -> None:
        self.log = log
        self.entry = entry
        self.delivered = 0

    @property
    def size(self) -> int:
        return len(self.entry.message.body)

    @property
    def rank(self) -> tuple[bool, int]:
        """What comes again comes before what is new: copies of the retry route first, then events in their order."""
        return (self.entry.message.route is Route.EVENT, self.entry.sequence)


class Taker(Protocol):
    """What a position hands its deliveries to."""

    @property
    def taking(self) -> bool:
        """It takes new messages."""

    @property
    def present(self) -> bool:
        """It takes new messages or has some in flight: while it does, an ordered position goes to no other."""

    tenure: int

    def has_room(self, size: int) -> bool: ...

    def take(self, delivery: Delivery, flight: Flight) -> None: ...

    def settled(self, flight: Flight) -> None: ...


class Flight:
    """The token of a delivery: an item that was handed over and not settled."""

    __slots__ = ("item", "position", "taker")

    def __init__(self, position: Position, taker: Taker, item: Item) -> None:
        self.position = position
        self.taker = taker
        self.item = item


class Position:
    """A durable position and its retry route: what waits, what is in flight, and which feeds compete for it."""

    def __init__(self, subscription: Subscription, wake: Callable[[], None]) -> None:
        self.name = subscription.position
        self.stream = subscription.stream
        self.types = frozenset(subscription.types)
        self.ordered = subscription.ordered
        self.takers: list[Taker] = []
        self._wake = wake
        self._fresh: deque[Item] = deque()
        self._again: list[tuple[tuple[bool, int], int, Item]] = []
        self._later: list[tuple[float, int, Item]] = []
        self._flights: dict[Flight, None] = {}
        self._dying: dict[Flight, float] = {}
        """Those of feeds that died, with the moment at which their ack wait ends. Living feeds keep theirs alive."""
        self._turn = 0
        self._last: Taker | None = None
        self._numbers = count()

    def offer(self, log: Log, entry: Stored) -> None:
        """Take a newly stored message in, if it is one for this position."""
        message = entry.message
        if message.route is Route.RETRY:
            wait = 0.0 if message.due is None else message.due - time.time()
            self._wait(Item(log, entry), wait + _MARGIN if wait > 0 else 0.0)
        elif message.type in self.types:
            self._fresh.append(Item(log, entry))

    def settle(self, flight: Flight, again_after: float | None) -> bool:
        """End a flight; with a number its item comes again after so many seconds. False: it ended before."""
        if flight not in self._flights:
            return False
        del self._flights[flight]
        flight.taker.settled(flight)
        if self._dying.pop(flight, None) is not None:
            self._bury(flight.taker)
        if again_after is not None:
            self._wait(flight.item, again_after)
        self._wake()
        return True

    def give_back(self, taker: Taker | None = None) -> None:
        """Return at once what a feed, or what any feed, has in flight."""
        for flight in [one for one in self._flights if taker is None or one.taker is taker]:
            self.settle(flight, 0.0)

    def abandon(self, taker: Taker, ack_wait: float) -> None:
        """A feed died: what it has in flight comes back when the ack wait has passed."""
        until = time.monotonic() + ack_wait
        self._dying.update({flight: until for flight in self._flights if flight.taker is taker})
        self._bury(taker)

    def pump(self) -> float | None:
        """Hand over whatever can be; say in how many seconds there may be more to do."""
        now = time.monotonic()
        for flight in [one for one, until in self._dying.items() if until <= now]:
            self.settle(flight, 0.0)
        while self._later and self._later[0][0] <= now:
            self._ready(heapq.heappop(self._later)[2])
        while (item := self._next()) is not None and (taker := self._taker(item.size)) is not None:
            self._hand_over(item, taker)
        moments = list(self._dying.values())
        if self._later:
            moments.append(self._later[0][0])
        return max(0.0, min(moments) - now) if moments else None

    @property
    def copies(self) -> int:
        """What is on the retry route and not settled."""
        items = [item for waiting in (self._again, self._later) for *_, item in waiting]
        items += [flight.item for flight in self._flights] + list(self._fresh)
        return sum(item.entry.message.route is Route.RETRY for item in items)

    def backlog(self) -> Backlog:
        waiting = sum(item.entry.message.route is Route.RETRY for _, _, item in self._later)
        return Backlog(
            pending=len(self._fresh) + len(self._again) + len(self._later) - waiting,
            in_flight=len(self._flights),
            scheduled=waiting,
        )

    def busy(self, within: float) -> bool:
        """Something is to be handed over or settled now, or will be within so many seconds."""
        until = time.monotonic() + within
        return bool(self._fresh or self._again or self._flights or (self._later and self._later[0][0] <= until))

    def _wait(self, item: Item, seconds: float) -> None:
        if seconds > 0:
            heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), item))
        else:
            self._ready(item)

    def _ready(self, item: Item) -> None:
        heapq.heappush(self._again, (item.rank, next(self._numbers), item))

    def _next(self) -> Item | None:
        if self._again:
            return self._again[0][2]
        return self._fresh[0] if self._fresh else None

    def _taker(self, size: int) -> Taker | None:
        """The feed whose turn it is; of an ordered position always the one that came first."""
        if self.ordered:
            active = next((one for one in self.takers if one.present), None)
            return active if active is not None and active.taking and active.has_room(size) else None
        for step in range(len(self.takers)):
            taker = self.takers[(self._turn + step) % len(self.takers)]
            if taker.taking and taker.has_room(size):
                self._turn = (self._turn + step + 1) % len(self.takers)
                return taker
        return None

    def _bury(self, taker: Taker) -> None:
        """A feed that died counts, for the order's sake, until all that it had has come back."""
        if not self._holds(taker) and taker in self.takers:
            self.takers.remove(taker)

    def _holds(self, taker: Taker) -> bool:
        return any(flight.taker is taker for flight in self._flights)

    def _hand_over(self, item: Item, taker: Taker) -> None:
        if self._again:
            heapq.heappop(self._again)
        else:
            self._fresh.popleft()
        item.delivered += 1
        if self.ordered and taker is not self._last:
            taker.tenure += 1
            self._last = taker
        flight = Flight(self, taker, item)
        self._flights[flight] = None
        taker.take(item.log.delivery(item.entry, token=flight, delivered=item.delivered, stored=item.entry.at), flight)
