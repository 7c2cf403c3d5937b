"""A service: a named set of handlers that run together, and the way its events leave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

import msgspec

from tidings.delivery import Content
from tidings.errors import DeclarationError, MisuseError
from tidings.event import Event, spec_of
from tidings.handler import NAME, Handler, Rules, make_handler
from tidings.policy import Retry
from tidings.ports import Plan, StreamPlan
from tidings.rules import check_choice, check_rules, check_service, events_of
from tidings.switch import KillSwitch

if TYPE_CHECKING:
    import asyncio

    from tidings.ports import Broker, Observer
    from tidings.running import Running


F = TypeVar("F", bound=Callable[..., Any])

PUBLISH_TIMEOUT: Final = 10.0


class Service:
    """A named set of handlers, with its broker and its store.

    * `name`: lower case letters, digits and hyphens. Positions and metrics carry it, so it stays.
    * `broker`: a URL, a live broker, or nothing, which means ``TIDINGS_BROKER``, read at start.
    * `store`: a URL, a live engine or store, or nothing, which means ``TIDINGS_STORE``, read at start.
    * `publishes`: the events that leave other than by a handler's annotated return.
    * `lifespan`: an async context manager of the service; the one object it yields is handed to handlers by its type.
    * `keep`: how long the streams it publishes to keep their events; seven days unless told otherwise.
    * `version`: the version of your program; dead letters and ``tidings_build_info`` carry it.
    * `content`: ``"structured"`` puts an event with its attributes into one JSON object, ``"binary"`` its attributes
      into headers.
    """

    def __init__(
        self,
        name: str,
        *,
        broker: str | Broker | None = None,
        store: object | str | None = None,
        publishes: Iterable[type[Event]] = (),
        lifespan: Callable[[Service], AbstractAsyncContextManager[object]] | None = None,
        keep: timedelta | None = None,
        version: str = "",
        content: Content = "structured",
    ) -> None:
        if not NAME.fullmatch(name):
            raise DeclarationError(f"{name!r} is no name for a service: lower case letters, digits and hyphens")
        check_service(content, keep, lifespan)
        self.name = name
        self.version = version
        self._broker_spec, self._store_spec = broker, store
        self._publishes = events_of(publishes)
        self._lifespan = lifespan
        self._keep = keep
        self.content: Content = content
        self._handlers: dict[str, Handler] = {}
        self._begun: Running | None = None
        self._running: Running | None = None
        self.observers: list[Observer] = []
        """Watch every outcome; they can change nothing."""

    def __repr__(self) -> str:
        return f"<Service {self.name}: {', '.join(self._handlers) or 'no handlers'}>"

    @property
    def handlers(self) -> Sequence[Handler]:
        return tuple(self._handlers.values())

    def on(
        self,
        *events: type[Event],
        name: str | None = None,
        once: bool | str = True,
        idempotent: bool = False,
        order: Literal["key", "auto"] | None = "auto",
        concurrency: int = 1,
        timeout: float = 30.0,
        abandon_after: float | None = 60.0,
        batch: int | None = None,
        retry: Retry = Retry(),  # noqa: B008  # frozen
        conflict: Literal["duplicate", "dead"] = "duplicate",
        start: Literal["all", "new"] = "all",
        forget_after: timedelta | None = None,
        kill_switch: KillSwitch | None = KillSwitch(),  # noqa: B008  # frozen
        on_dead: Literal["skip", "park", "block"] = "skip",
    ) -> Callable[[F], F]:
        """Register a handler for event types of one stream; the function itself is returned unchanged.

        * `name`: its place in ``service.name``, which keeps its position; the function's name unless told otherwise.
        * `once`: True applies each event id once, a field's name each value of it; both need a store.
        * `idempotent`: the effect may safely repeat, and no store is needed.
        * `order`: ``"key"`` keeps the order of each key, which has one process at a time; None does not. Unless told,
          it is kept where all the events have a key.
        * `concurrency`: how many lanes work side by side; in order, each key keeps to one.
        * `timeout`: seconds for one event; then it is cancelled, and has failed.
        * `abandon_after`: seconds after that until a call that has not ended, cancelled or in its thread, is left
          behind, so that it stops nobody else; None waits for ever.
        * `batch`: how many events may share a transaction or a wave of acknowledgements; 1 handles each alone.
        * `retry`: how often and when a failed event is tried again.
        * `conflict`: what becomes of another event with a key that was applied: a ``"duplicate"``, or a ``"dead"``
          letter.
        * `start`: a new position begins with ``"all"`` of the stored history, or with what is ``"new"`` from now on.
        * `forget_after`: how long a key of `once="field"` is known; after it the same key is applied again. For ever,
          unless told. Event ids are forgotten by themselves, some time after their events.
        * `kill_switch`: when the handler pauses by itself because too much of what it does fails; None is never.
        * `on_dead`: in order, what later events of a key do when one is a dead letter: ``"skip"`` it, ``"park"`` behind
          it as letters, or ``"block"``: the same, until it was put right or discarded, and then go on in order.

        Raises:
            DeclarationError: the function or a rule cannot work; the message says what to write.
        """
        once = False if idempotent else once
        rules = Rules(
            once=once,
            ordered=order == "key",
            concurrency=concurrency,
            timeout=timeout,
            abandon_after=abandon_after,
            batch=batch,
            retry=retry,
            conflict=conflict,
            start=start,
            forget_after=forget_after,
            kill_switch=kill_switch,
            on_dead=on_dead,
        )
        return self._register("on", events, name, rules, order)

    def on_batch(
        self,
        *events: type[Event],
        name: str | None = None,
        once: bool | str = True,
        idempotent: bool = False,
        order: Literal["key", "auto"] | None = "auto",
        concurrency: int = 1,
        timeout: float = 30.0,
        abandon_after: float | None = 60.0,
        batch: int | None = None,
        retry: Retry = Retry(),  # noqa: B008  # frozen
        conflict: Literal["duplicate", "dead"] = "duplicate",
        start: Literal["all", "new"] = "all",
        forget_after: timedelta | None = None,
        kill_switch: KillSwitch | None = KillSwitch(),  # noqa: B008  # frozen
        on_dead: Literal["skip", "park", "block"] = "skip",
    ) -> Callable[[F], F]:
        """Register a handler that takes a list of events, one transaction for all of them; see `on` for the rest.

        It gets whatever waits, up to `batch`, and never waits for more: a list of one is ordinary. Duplicates and keys
        that others hold are not in the list; what is in it is in order. It returns None, or a list with one entry for
        each event: what that event caused (an event, a list of them) or None. It applies each event once with the
        connection of a SQL store, for which it has to ask; without one it has to be `idempotent`.

        When it raises, everything is rolled back and it is called again with half of the events, and half of those,
        until the event that fails is alone: that one gets its outcome, and the rest is applied.

        * `timeout`: seconds for one call, however many events it was given.
        * `batch`: how many events it is given at most; 256 unless told, and 64 without `once`.

        Raises:
            DeclarationError: the function or a rule cannot work; the message says what to write.
        """
        once = False if idempotent else once
        rules = Rules(
            once=once,
            ordered=order == "key",
            concurrency=concurrency,
            timeout=timeout,
            abandon_after=abandon_after,
            batch=batch,
            retry=retry,
            conflict=conflict,
            start=start,
            forget_after=forget_after,
            kill_switch=kill_switch,
            on_dead=on_dead,
        )
        return self._register("on_batch", events, name, rules, order)

    def _register(
        self,
        how: Literal["on", "on_batch"],
        events: tuple[type[Event], ...],
        name: str | None,
        rules: Rules,
        order: Literal["key", "auto"] | None,
    ) -> Callable[[F], F]:
        if events and not all(isinstance(event, type) for event in events):
            raise DeclarationError(f"@{self.name}.{how} takes event classes. Write: @{self.name}.{how}(OrderPlaced)")
        check_choice("order", order)
        check_rules(rules)
        keyed = all(spec_of(event).key is not None for event in events)
        if order == "key" and not keyed:
            raise DeclarationError(f'@{self.name}.{how}(…, order="key"): not all of its events have a key')
        if order == "auto" and keyed:
            rules = msgspec.structs.replace(rules, ordered=True)
        if rules.on_dead != "skip" and not rules.ordered:
            raise DeclarationError(
                f'@{self.name}.{how}(…, on_dead="{rules.on_dead}") is about the order of a key, which this handler does'
                ' not keep. Write: order="key", with events that have a key'
            )

        def register(function: F) -> F:
            handler = make_handler(self.name, function, events, name, rules, batches=how == "on_batch")
            if handler.name in self._handlers:
                raise DeclarationError(
                    f"{self.name} has a handler {handler.name!r} already. Write: name=…, another one"
                )
            self._handlers[handler.name] = handler
            return function

        return register

    @property
    def plan(self) -> Plan:
        """What the code declares: streams and positions."""
        own = {spec_of(event).stream for event in self.published}
        streams = sorted(own | {handler.stream for handler in self.handlers})
        return Plan(
            service=self.name,
            streams=tuple(StreamPlan(name=one, keep=self._keep if one in own else None) for one in streams),
            subscriptions=tuple(handler.subscription for handler in self.handlers),
        )

    @property
    def published(self) -> tuple[type[Event], ...]:
        """The events it says: those of `publishes`, and those its handlers are annotated to return."""
        returned = [event for handler in self.handlers for event in handler.returns if event is not Event]
        return tuple(dict.fromkeys([*self._publishes, *returned]))

    # ── its life ────────────────────────────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def running(self, *, broker: str | Broker | None = None, store: object | None = None) -> AsyncIterator[Self]:
        """Run inside an application or a test: started on entry, stopped with grace on exit.

        Raises:
            ConfigurationError: no broker or store is named, or it cannot do what is needed.
            BrokerUnavailable, StoreUnavailable: it cannot be reached.
        """
        if self._begun is not None:
            raise MisuseError(f"{self.name} runs already")
        from tidings.running import Running

        running = Running.of(self, broker or self._broker_spec, store or self._store_spec)
        self._begun = running  # handlers run, and may publish, before the last of them has started
        try:
            async with running.life():
                self._running = running
                yield self
        finally:
            self._begun = self._running = None  # only now: what still runs while it stops may publish

    @asynccontextmanager
    async def beside(
        self,
        handler: str,
        name: str,
        since: datetime,
        *,
        broker: str | Broker | None = None,
        store: object | None = None,
    ) -> AsyncIterator[Running]:
        """Run one handler under another name, on a position of its own; the others do not run here.

        The position begins with what was stored at `since`, or goes on where it is. Its keys of `once=`, and the ids of
        what it causes, are its own: it applies the events that the handler has applied.

        Raises:
            MisuseError: there is no such handler, or one has that name already, or the service runs in this process.
            ConfigurationError, BrokerUnavailable, StoreUnavailable: as `running`.
        """
        if self._begun is not None:
            raise MisuseError(f"{self.name} runs already")
        if handler not in self._handlers:
            raise MisuseError(f"{self.name} has no handler {handler!r}; it has: {', '.join(self._handlers) or 'none'}")
        if name in self._handlers or not NAME.fullmatch(name):
            why = "has a handler of that name" if name in self._handlers else "cannot have a handler of that name"
            raise MisuseError(f"{name!r}: {self.name} {why}. Choose another: lower case letters, digits and hyphens")
        from tidings.beside import Beside
        from tidings.running import Running

        declared = Beside(self, self._handlers[handler], name, since)
        running = Running.of(declared, broker or self._broker_spec, store or self._store_spec)
        self._begun = running  # its handler may publish in a transaction
        try:
            async with running.life():
                yield running
        finally:
            self._begun = None

    @asynccontextmanager
    async def relaying(self, *, broker: str | Broker | None = None, store: object | None = None) -> AsyncIterator[Self]:
        """Only publish what its outbox holds; its handlers do not run. Beside running services one relays at a time.

        Raises:
            ConfigurationError: no broker is named, or no store with an outbox, or an SQLite file that is not there.
            BrokerUnavailable, StoreUnavailable: it cannot be reached.
        """
        from tidings.running import Running

        running = Running.of(self, broker or self._broker_spec, store or self._store_spec, missing="make-tables")
        async with running.relaying():
            yield self

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[object]:
        """Its own lifespan: the one object that it yields, or None."""
        if self._lifespan is None:
            yield None
            return
        async with self._lifespan(self) as shared:
            yield shared

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """For ``FastAPI(lifespan=stock.lifespan)`` and Starlette: the service runs as long as the application."""
        async with self.running():
            yield

    async def run(self, *, until: asyncio.Event | None = None) -> None:
        """Run until `until` is set, or until cancelled."""
        async with self.running():
            await (until or _never()).wait()

    @property
    def active(self) -> Running:
        """The running parts, for health, metrics and tests.

        Raises:
            MisuseError: the service does not run.
        """
        if self._running is None:
            raise MisuseError(
                f"{self.name} does not run. Write: async with {self.name}.running(): … or start it with tidings run"
            )
        return self._running

    # ── what leaves ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def publish(self, event: Event, *, tx: object | None = None, timeout: float = PUBLISH_TIMEOUT) -> None:
        """Publish one event: return once the broker has stored it, or with `tx`, once it is part of the transaction.

        Promises that an event whose publish returned is not lost. After BrokerUnavailable it may or may not be stored;
        publishing the same object again is safe, since it keeps its id.

        Raises:
            BrokerUnavailable, NotStored, EventTooLarge: it was not, or may not have been, stored.
            MisuseError: inside a handler without `tx`, or an event that the service does not declare.
        """
        (error,) = await self.publish_many([event], tx=tx, timeout=timeout)
        if error is not None:
            raise error

    async def publish_many(
        self, events: Sequence[Event], *, tx: object | None = None, timeout: float = PUBLISH_TIMEOUT
    ) -> Sequence[Exception | None]:
        """Publish several events at once, and say for each what became of it: None once it is stored."""
        return await (self._begun or self.active).publish(events, tx, timeout)

    @asynccontextmanager
    async def transaction(self, wanted: type | None = None) -> AsyncIterator[Any]:
        """A transaction outside handlers: what is published with ``tx=`` leaves when it commits, or not at all."""
        store = (self._begun or self.active).store
        if store is None:
            raise MisuseError(f"{self.name} has no store. Write: Service({self.name!r}, store=…)")
        async with store.transaction(wanted) as tx:
            yield tx


def _never() -> asyncio.Event:
    import asyncio

    return asyncio.Event()
