"""What outlives a process: the broker's messages, the store's rows, the ledger of effects, and what went wrong."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tidings.delivery import Message, Route

ACK_WAIT = 30.0
"""Seconds after which a broker that heard nothing delivers again."""


class Boom(Exception):
    """A handler's own failure."""


class DriverError(Exception):
    """What a database driver raises inside a handler when it meets somebody else's lock."""


class Odd(Exception):
    """An error that does not tell whose fault it was."""


class Mute(Exception):
    """An error that cannot even be printed."""

    def __str__(self) -> str:
        raise ValueError("no words")


class Faults:
    """Each fault strikes `times` times, after letting `skip` chances pass."""

    def __init__(self, names: Iterable[str] = (), *, times: int = 1, skip: int = 0) -> None:
        self.names = frozenset(names)
        self._left = dict.fromkeys(self.names, times)
        self._skip = dict.fromkeys(self.names, skip)
        self.struck: Counter[str] = Counter()

    def take(self, name: str) -> bool:
        """Whether it strikes here."""
        if name not in self._left or not self._left[name]:
            return False
        if self._skip[name]:
            self._skip[name] -= 1
            return False
        self._left[name] -= 1
        self.struck[name] += 1
        return True


@dataclass(eq=False)
class Stored:
    """A message as the broker keeps it for the position."""

    number: int
    body: bytes
    headers: Mapping[str, str]
    route: Route
    event: str
    """Its event's id, or ``garbage``."""
    key: str
    due: float = 0.0
    delivered: int = 0
    gone: bool = False
    """Acknowledged: it is never delivered again."""


@dataclass
class World:
    faults: Faults
    transactional: bool = False
    remembers: bool = False
    """There is a store that keeps keys."""

    undos: int = 0
    """How often a claim was asked to take back what one event did."""
    messages: list[Stored] = field(default_factory=list)
    returned: list[Stored] = field(default_factory=list)
    """What was given back, in the order in which it was: it goes out again before what is fresh."""
    fresh: list[Stored] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    dead: list[Message] = field(default_factory=list)
    notes: list[Message] = field(default_factory=list)
    caused: list[Message] = field(default_factory=list)
    """Caused events that the broker has stored."""

    keys: dict[str, str] = field(default_factory=dict)
    """The keys that were applied, and by which event."""
    leases: dict[str, float] = field(default_factory=dict)
    ledger: list[str] = field(default_factory=list)
    """The event ids of effects, as they became durable. Nothing keeps an id from standing here twice."""
    outbox: list[Message] = field(default_factory=list)

    violations: list[str] = field(default_factory=list)
    all_gone: asyncio.Event = field(default_factory=asyncio.Event)

    def blame(self, what: str) -> None:
        self.violations.append(what)

    def put(self, stored: Stored) -> None:
        self.messages.append(stored)
        self.fresh.append(stored)
        self.all_gone.clear()

    def gone(self, stored: Stored) -> None:
        stored.gone = True
        if all(one.gone for one in self.messages):
            self.all_gone.set()

    def is_durable(self, stored: Stored) -> bool:
        """Whether an acknowledgement is allowed: the effect, a letter or a copy for the next attempt is there."""
        if stored.event in self.ledger and (not self.remembers or stored.event in self.keys.values()):
            return True
        if any(message.body == stored.body for message in self.dead):
            return True
        return any(one.route is Route.RETRY and one.number > stored.number and one.event == stored.event
                   for one in self.messages)  # fmt: skip
