"""A service: a named set of handlers that run together, and the way its events leave."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any, Final, Literal, Self, TypeVar

from tidings.brokers import EXAMPLE_URL, broker_from
from tidings.calling import make_call, resource_of
from tidings.claims import Claimer
from tidings.context import current
from tidings.delivery import Message
from tidings.errors import ConfigurationError, DeclarationError, MisuseError
from tidings.event import Event, spec_of
from tidings.handler import NAME, Handler, Rules, make_handler
from tidings.observe.logs import OutcomeLog
from tidings.pipeline import Pipeline
from tidings.policy import Retry
from tidings.ports import Broker, Observer, Plan, Store, StreamPlan, Subscription
from tidings.publisher import Content, Wrapper, refuse_in_handler
from tidings.settling import Settler
from tidings.stores import store_from
from tidings.supervision import Supervisor
from tidings.worker import Worker

log = logging.getLogger("tidings.service")

F = TypeVar("F", bound=Callable[..., Any])

PUBLISH_TIMEOUT: Final = 10.0
GRACE: Final = 20.0
"""Seconds that handlers have to finish when a service stops: less than the 30 s of common orchestrators."""

BATCH: Final = 64
BATCH_WITH_STORE: Final = 256


class Service:
    """A named set of handlers, with its broker and its store.

    `broker` and `store` take a URL, a live object, or nothing, which means ``TIDINGS_BROKER`` and ``TIDINGS_STORE``,
    read at start. `publishes` names the events that leave other than by a handler's annotated return. `lifespan` is
    an async context manager of the service; the one object it yields is handed to handlers by its type. `keep` is how
    long the streams it publishes to keep their events (seven days unless told otherwise).
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
        self.name = name
        self.version = version
        self._broker_spec, self._store_spec = broker, store
        self._publishes = tuple(publishes)
        self._lifespan = lifespan
        self._keep = keep
        self._content = content
        self._handlers: dict[str, Handler] = {}
        self._running: Running | None = None
        self.observers: list[Observer] = [OutcomeLog()]
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
        batch: int | None = None,
        retry: Retry = Retry(),  # noqa: B008  # frozen
        conflict: Literal["duplicate", "dead"] = "duplicate",
        start: Literal["all", "new"] = "all",
    ) -> Callable[[F], F]:
        """Register a handler for event types of one stream; the function itself is returned unchanged.

        * `name`: its place in ``service.name``, which keeps its position; the function's name unless told otherwise.
        * `once`: True applies each event id once, a field's name each value of it; both need a store.
        * `idempotent`: the effect may safely repeat, and no store is needed.
        * `order`: ``"key"`` keeps the order of each key and runs in one process at a time; None does not. Unless told,
          it is kept where all the events have a key.
        * `concurrency`: how many lanes work side by side; in order, each key keeps to one.
        * `timeout`: seconds for one event.
        * `batch`: how many events may share a transaction or a wave of acknowledgements; 1 handles each alone.
        * `retry`: how often and when a failed event is tried again.
        * `conflict`: what becomes of another event with a key that was applied: a duplicate, or a dead letter.
        * `start`: whether a new position begins with the stored history, or with what comes.

        Raises:
            DeclarationError: the function or a rule cannot work; the message says what to write.
        """
        if events and not all(isinstance(event, type) for event in events):
            raise DeclarationError(f"@{self.name}.on takes event classes. Write: @{self.name}.on(OrderPlaced)")
        _check_numbers(concurrency, timeout, batch)
        keyed = all(spec_of(event).key is not None for event in events)
        if order == "key" and not keyed:
            raise DeclarationError(f'@{self.name}.on(…, order="key"): not all of its events have a key')
        rules = Rules(
            once=False if idempotent else once,
            ordered=keyed if order == "auto" else order == "key",
            concurrency=concurrency,
            timeout=timeout,
            batch=batch,
            retry=retry,
            conflict=conflict,
            start=start,
        )

        def register(function: F) -> F:
            handler = make_handler(self.name, function, events, name, rules)
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
        own = {spec_of(event).stream for event in self._published}
        streams = sorted(own | {handler.stream for handler in self.handlers})
        return Plan(
            service=self.name,
            streams=tuple(StreamPlan(name=one, keep=self._keep if one in own else None) for one in streams),
            subscriptions=tuple(map(_subscription, self.handlers)),
        )

    @property
    def _published(self) -> tuple[type[Event], ...]:
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
        if self._running is not None:
            raise MisuseError(f"{self.name} runs already")
        chosen = broker_from(_chosen(broker, self._broker_spec, "TIDINGS_BROKER", "broker", self.name))
        spec = store if store is not None else self._store_spec or os.environ.get("TIDINGS_STORE")
        running = Running(self, chosen, None if spec is None else store_from(spec))
        try:
            async with running.life():
                self._running = running
                yield self
        finally:
            self._running = None  # only now: what still runs while it stops may publish

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """For ``FastAPI(lifespan=stock.lifespan)`` and Starlette: the service runs as long as the application."""
        async with self.running():
            yield

    async def run(self, *, until: asyncio.Event | None = None) -> None:
        """Run until `until` is set, or until cancelled."""
        async with self.running():
            await (until or asyncio.Event()).wait()

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
        active = self.active
        if tx is None:
            refuse_in_handler()
            return await active.broker.publish([active.wrapper.message(event) for event in events], timeout=timeout)
        if active.store is None:
            raise MisuseError(f"{self.name} has no store, so no transaction can carry an event")
        scope = current.get()
        await active.store.emit(tx, [active.wrapper.message(event, scope) for event in events])
        return [None] * len(events)

    @asynccontextmanager
    async def transaction(self, wanted: type | None = None) -> AsyncIterator[Any]:
        """A transaction outside handlers: what is published with ``tx=`` leaves when it commits, or not at all."""
        store = self.active.store
        if store is None:
            raise MisuseError(f"{self.name} has no store. Write: Service({self.name!r}, store=…)")
        async with store.transaction(wanted) as tx:
            yield tx


class Running:
    """The parts of a service while it runs."""

    def __init__(self, service: Service, broker: Broker, store: Store | None) -> None:
        self.service: Service = service
        self.broker: Broker = broker
        self.store: Store | None = store
        self.wrapper: Wrapper = Wrapper(service.name, service._published, service._content)
        self.workers: list[Worker] = []
        self.tasks: Supervisor = Supervisor()
        self.stopping: bool = False

    @asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """Start in the order in which things need each other, and stop the other way round."""
        async with AsyncExitStack() as stack:
            store = self._checked_store()
            if store is not None:
                await store.open()
                stack.push_async_callback(store.close)
            stack.push_async_callback(self.broker.close)
            for drift in await self.broker.open(self.service.plan):
                log.warning("%s", drift)
            shared = await self._shared(stack)
            stack.push_async_callback(self.tasks.cancel)
            if store is not None:
                self.tasks.spawn(f"{self.service.name} relay", lambda: store.relay(self._relay_publish))
            self.workers = [self._worker(handler, shared) for handler in self.service.handlers]
            stack.push_async_callback(self._stop_workers)
            for worker in self.workers:
                await worker.start()
            yield

    async def _shared(self, stack: AsyncExitStack) -> object:
        lifespan = self.service._lifespan
        return None if lifespan is None else await stack.enter_async_context(lifespan(self.service))

    def _checked_store(self) -> Store | None:
        needing = [handler.position for handler in self.service.handlers if handler.rules.once]
        if needing and self.store is None:
            raise ConfigurationError(
                f"{needing[0]} is to apply each event once, and {self.service.name} has no store to remember it in."
                f' Write: Service("{self.service.name}", store="sqlite:///shop.db") or set TIDINGS_STORE; or say that'
                " its effect may safely repeat: idempotent=True"
            )
        for handler in self.service.handlers:
            resource_of(handler, self.store)
        return self.store

    def _worker(self, handler: Handler, shared: object) -> Worker:
        resource = resource_of(handler, self.store)
        claimer = Claimer(handler, self.store, resource)
        batch = handler.rules.batch or (BATCH_WITH_STORE if handler.rules.once else BATCH)
        observers = self.service.observers
        pipeline = Pipeline(
            handler,
            broker=self.broker,
            claimer=claimer,
            call=make_call(handler, self.store, shared),
            wrap=self.wrapper.caused,
            settler=Settler(handler.position, self.broker, service_version=self.service.version, observers=observers),
            together=1 if claimer.shared and resource is None else batch,
        )
        return Worker(
            _subscription(handler),
            pipeline,
            self.broker,
            lanes=handler.rules.concurrency,
            batch=batch,
            observers=observers,
        )

    async def _stop_workers(self) -> None:
        self.stopping = True
        if self.workers:
            await asyncio.gather(*(worker.stop(GRACE) for worker in self.workers))

    async def _relay_publish(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        return await self.broker.publish(messages, timeout=PUBLISH_TIMEOUT)


def _subscription(handler: Handler) -> Subscription:
    rules = handler.rules
    batch = rules.batch or (BATCH_WITH_STORE if rules.once else BATCH)
    return Subscription(
        position=handler.position,
        stream=handler.stream,
        types=handler.reader.types,
        ordered=rules.ordered,
        start=rules.start,
        max_in_flight=4 * batch * rules.concurrency,
    )


def _chosen(
    given: str | Broker | None, declared: str | Broker | None, variable: str, what: str, service: str
) -> str | Broker:
    chosen = given if given is not None else declared if declared is not None else os.environ.get(variable)
    if chosen:
        return chosen
    if sys.stdout.isatty():
        return "embedded:"
    raise ConfigurationError(
        f"{service} has no {what}. Set {variable}={EXAMPLE_URL}, or {variable}=embedded: to start one"
        f" here, or write Service({service!r}, {what}=…)"
    )


def _check_numbers(concurrency: int, timeout: float, batch: int | None) -> None:
    if not 1 <= concurrency <= 64:
        raise DeclarationError(f"concurrency={concurrency}: between 1 and 64 lanes")
    if timeout <= 0:
        raise DeclarationError(f"timeout={timeout}: more than 0 seconds")
    if batch is not None and not 1 <= batch <= 1000:
        raise DeclarationError(f"batch={batch}: between 1 and 1000 events")
