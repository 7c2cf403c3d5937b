"""What the core needs from outside: a broker, a store behind ``once``, and observers. Nothing more.

Whatever a broker lacks, its own folder makes up for; whatever it cannot do, its `Features` say.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from enum import Enum
from typing import Literal, Protocol, runtime_checkable

import msgspec

from tidings.delivery import Delivery, Message, Outcome, Route, Verdict
from tidings.errors import ConfigurationError, TransactionEnded, WorldError

Sink = Callable[[Delivery], None]
"""Takes a delivery in; never blocks and never raises. One that has a method `take` may be handed a list of them."""


@runtime_checkable
class Recalls(Protocol):
    """A `Sink` that can give up what it was handed, where a part of an ordered position goes to another process."""

    def __call__(self, delivery: Delivery, /) -> None: ...

    async def give_up(self, deliveries: Sequence[Delivery], patience: float) -> Sequence[Delivery]:
        """Forget what is not begun; wait `patience` seconds for the rest, and return what is still at work."""


Publish = Callable[[Sequence[Message]], Awaitable[Sequence[Exception | None]]]
"""What a relay publishes with: for each message None once it is stored, or why it is not."""


@runtime_checkable
class BatchPublish(Protocol):
    """A `Publish` whose broker can store several messages as one."""

    async def batch(self, messages: Sequence[Message]) -> bool:
        """See `Batches.publish_batch`."""


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker can do, as data: the conformance suite reads it, and prints what is not supported."""

    name: str
    durable: bool = True
    """What it stored survives its restart."""
    restart: bool = True
    """It is a server of its own that can be stopped and started."""
    history: bool = True
    """A new position may start at the beginning (`start="all"`), and be replayed."""
    ordered: bool = True
    """Keeps the order of a key to one position, also across processes."""
    delayed: bool = True  # the retry route waits without occupying the in-flight limit
    positions: bool = True
    """It can be asked which positions there are (`Positions`)."""
    widens: bool = True
    """A position takes what newer code asks for from the start of that code on; else an operator says so."""
    deduplicates: bool = True
    """Stores a message id once within a window of at least two minutes."""
    max_bytes: int = 1024 * 1024
    settles_at_once: bool = False
    """`settle` waits for nothing: the server is told later, of much at a time."""


class StreamPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A stream that the code declares. `keep` is None where the code does not say."""

    name: str
    keep: timedelta | None = None


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """A position of a handler, ``service.name``, as the code declares it."""

    position: str
    stream: str
    types: tuple[str, ...]
    ordered: bool = False
    """The order of each key is kept: only one process at a time may take the events of a key."""
    slots: bool = True
    """`Delivery.slot` is looked at, to share out the keys of this process; else nobody has to work it out."""
    start: Literal["all", "new"] = "all"
    """Where a position that does not exist yet begins, unless at what was stored at a moment (`since`) or later."""
    since: datetime | None = None
    hosted: bool = True
    """This process runs the handler; else the position is named, and keeps the types that it has."""
    strangers: bool = False
    """Events of its stream that are of other types may come as well; see `rolling.Sifts`."""
    max_in_flight: int = 1024
    """How many messages may be with this process, delivered and not settled."""
    max_in_flight_bytes: int = 32 * 1024 * 1024


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All that a service needs from its broker."""

    service: str
    streams: tuple[StreamPlan, ...] = ()
    subscriptions: tuple[Subscription, ...] = ()

    def check_positions(self, existing: Mapping[str, Sequence[str]], how_to_remove: str = "") -> None:
        """Stop a renamed handler from starting over: an orphan beside a new position of the same type is refused.

        `existing` are the positions of this service that the broker knows, with the types each one takes. An adapter
        calls this before it creates any. `how_to_remove` is the broker's command for it, with ``{position}``.

        Raises:
            ConfigurationError: a position exists that no handler has, and a handler of the same type has none.
        """
        declared = {one.position: one for one in self.subscriptions}
        new = [one for one in self.subscriptions if one.position not in existing]
        for orphan in sorted(set(existing) - set(declared)):
            for one in new:
                shared = sorted(set(one.types) & set(existing[orphan]))
                if shared:
                    old, name = orphan.split(".", 1)[1], one.position.split(".", 1)[1]
                    remove = how_to_remove.format(position=orphan) or "remove the old position at the broker"
                    raise ConfigurationError(
                        f"handler {one.position} is new, and {orphan}, which takes {shared[0]} too, has no handler any"
                        f" more. If the function was renamed, keep its position: @{self.service}.on(…, name={old!r})."
                        f" If {name!r} really is another handler, remove the old position: {remove}"
                    )


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """A difference between what the code declares and what the broker has. It is reported, never applied."""

    what: str
    declared: str
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: the code says {self.declared}, the broker has {self.found}. {self.remedy}"


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """How far behind a position is."""

    pending: int
    """Messages not delivered yet."""
    in_flight: int
    """Messages delivered to any process and not settled."""
    scheduled: int = 0
    """Copies that wait on the retry route for their time."""


class Feed(Protocol):
    """A running subscription of one position: events and, beside them, the position's retry route."""

    @property
    def tenure(self) -> int:
        """Of an ordered position: how many times this process has begun to take from it, or from another part of it.

        It is raised before the first delivery of that time is handed over. Whoever begins asks anew what those before
        it left in notes. Always 0 where there is no order.
        """

    async def stop(self) -> None:
        """Take no new messages. What was handed over stays ours to settle, and is kept alive until it is."""

    async def close(self) -> None:
        """End, and give back at once whatever was handed over and not settled."""

    async def backlog(self) -> Backlog: ...

    async def keeps(self) -> timedelta | None:
        """How long the stream of this position keeps its events, as the broker has it now; None is without end.

        For as long an event may be delivered again, and its id has to be known. Raises BrokerUnavailable.
        """


@runtime_checkable
class Fenced(Protocol):
    """A `Feed` of an ordered position that can lose a part of it to another process while this one is held up."""

    def fence(self) -> str:
        """Mark as `withdrawn` what is not ours any more, or return why that is unknown: then nothing may be begun."""


class Broker(Protocol):
    """What carries and keeps messages. One object serves one process; it heals its connection by itself."""

    @property
    def features(self) -> Features: ...

    @property
    def trouble(self) -> str:
        """Why it cannot work just now, in words for a person; empty while all is well."""

    async def open(self, plan: Plan) -> Sequence[Drift]:
        """Connect, check the server, and create the streams and positions that are missing (first come, all agree).

        Raises:
            BrokerUnavailable: it cannot be reached in time.
            ConfigurationError: the server cannot do what is needed, or a position was orphaned.
        """

    async def publish(self, messages: Sequence[Message], *, timeout: float) -> Sequence[Exception | None]:
        """Store messages, and say for each what became of it: None once it is stored, or stored before.

        Order is kept among messages of one key in one call. Raises nothing but cancellation.
        """

    async def subscribe(self, subscription: Subscription, sink: Sink) -> Feed:
        """Hand messages to `sink`, never more than the limits allow before others are settled.

        The adapter keeps alive what it handed over, also while it waits in a queue, until it is settled.
        """

    async def settle(self, verdicts: Sequence[tuple[Delivery, Verdict]]) -> Sequence[Exception | None]:
        """Tell the broker, confirmed by one round trip for all of them; retried while the delivery is still ours.

        None for each that was confirmed, else why not. Raises nothing but cancellation.
        """

    def read(
        self, route: Route, stream: str = "", *, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[Delivery]:
        """Read a log from its beginning without a position: all events of a stream, or all dead letters.

        Ends where the log ended when the call was made, unless `follow`. Of `Route.NOTE` it reads those of one
        position, named by `stream`, in the order in which they were written; of several under one name that were
        written before the call it gives only the last. An adapter may forget one with an empty body, which takes the
        name back, after an hour.
        """

    async def close(self) -> None:
        """Close the feeds and the connection. Safe to call twice."""


@runtime_checkable
class Batches(Protocol):
    """What a broker has beside the rest if it can store several messages as one."""

    async def publish_batch(self, messages: Sequence[Message], *, timeout: float) -> bool:
        """Store messages of one stream in their order, all or none.

        True once they are stored. False when they were refused, or are too many or unfit to be one, or when nobody
        knows: then they are published one by one, under the same ids. Raises nothing but cancellation.
        """


@runtime_checkable
class Positions(Protocol):
    """What a broker has beside the rest if it can be asked about positions that somebody else takes from."""

    async def positions(self, service: str) -> Mapping[str, Sequence[str]]:
        """The positions of a service that exist, each with the types it takes. Raises BrokerUnavailable."""

    async def copies(self, position: str) -> int:
        """How many copies of a position are on its retry route, waiting or not settled. Raises BrokerUnavailable."""


KeyKind = Literal["event", "business"]
"""What a key is: the id of an event, or a field of it that the handler named."""

EVENT_MARK = "@"
"""What the key of an event id begins with. That of a business key begins with the field's name, which never does."""


class Key(msgspec.Struct, frozen=True):
    """What is to be applied once: by whom, which key, and which event asks.

    `key` is ``@id`` for the id of an event, and ``field:value`` for a business key.
    """

    position: str
    key: str
    event_id: str
    digest: bytes
    """A hash of the event's data, to tell a repeat from another event under the same key."""
    lives: float | None = None
    """For how many seconds after this claim closes it has to be known; None is without end.

    For a store that lets keys go by themselves. The others are told by `Store.forget`."""


class State(Enum):
    """What a store says of a key."""

    NEW = "new"
    DONE = "done"
    BUSY = "busy"


class Claimed(msgspec.Struct, frozen=True):
    """The answer for one key. `event_id` and `digest` are of the event that was applied, where it is DONE."""

    state: State
    event_id: str = ""
    digest: bytes = b""


NEW = Claimed(State.NEW)


class Forgotten(msgspec.Struct, frozen=True):
    """What one step of `Store.forget` did."""

    removed: int = 0
    after: str | None = None
    """Where the next step begins; None when there is nothing left to look at."""


class Claim(Protocol):
    """The open claim on the keys of a batch, and whatever the handlers get from the store."""

    @property
    def states(self) -> Sequence[Claimed]:
        """One for each key, in the order asked. Of equal keys the first is NEW, the others DONE."""

    @property
    def executor(self) -> Executor | None:
        """The thread in which sync handlers must run, because their connection belongs to it; None means any."""

    def resource(self, wanted: type) -> object:
        """The connection or session of this claim's transaction."""

    def fail(self, index: int) -> None:
        """Give one key back when the claim closes cleanly: it was not applied, whatever became of the others."""

    def cut(self) -> None:
        """A handler runs on with what it was lent: when the claim closes, end its transaction, and wait for nothing."""

    async def emit(self, messages: Sequence[Message]) -> bool:
        """Write caused events into the transaction. False: this store cannot, the broker must store them first."""


class Once(Protocol):
    """The rule that makes an effect apply once."""

    @property
    def transactional(self) -> bool:
        """Keys, effects and caused events of a claim commit together or not at all."""

    def translate(self, error: Exception) -> WorldError | TransactionEnded | None:
        """What a driver's error inside a handler says of the store, or None: it is the handler's own."""

    def gives(self, wanted: type, *, sync: bool) -> bool:
        """Whether handlers can ask for this type."""

    def claim(self, keys: Sequence[Key], *, resource: type | None, sync: bool) -> AbstractAsyncContextManager[Claim]:
        """Claim keys in one round trip. A clean exit makes them durable; any exception gives all of them back.

        Raises:
            StoreUnavailable: the store does not answer; nothing was claimed.
            Contention: somebody else's locks; nothing was claimed.
        """


class Store(Once, Protocol):
    """A store with what surrounds its claims: its life, and the outbox where it has one."""

    async def open(self) -> None:
        """Connect and check; raises StoreUnavailable or ConfigurationError."""

    async def close(self) -> None: ...

    def transaction(self, wanted: type | None = None) -> AbstractAsyncContextManager[object]:
        """A transaction for code outside handlers; yields what `publish(tx=…)` takes."""

    async def emit(self, tx: object, messages: Sequence[Message]) -> None:
        """Write events into a transaction that this store, or the user, has open."""

    async def forget(self, position: str, kind: KeyKind, before: float, *, after: str = "", most: int) -> Forgotten:
        """Remove the keys of this kind that a handler applied before `before` (Unix seconds): one step of many.

        A step looks at `most` keys behind `after`, in an order of its own, and writes in one short transaction at most.
        Who calls pauses between steps. Where keys go by themselves, as `Key.lives` says, the answer is ``Forgotten()``.

        Raises:
            StoreUnavailable, Contention: nothing was removed in this step.
        """

    async def relay(self, publish: Publish) -> None:
        """Publish committed rows until cancelled; only one process at a time does for one database."""


class Settled(msgspec.Struct, frozen=True):
    """What observers are told of each delivery of a batch."""

    delivery: Delivery
    outcome: Outcome


class Observer(Protocol):
    """Sees what happens and can change nothing; whatever it raises is logged."""

    def received(self, position: str, count: int) -> None: ...

    def settled(self, position: str, batch: Sequence[Settled], seconds: float) -> None:
        """A batch came to its end, `seconds` after it was taken up."""
