"""The parts of a service while it runs: started in the order in which they need each other, stopped the other way."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from tidings.brokers import EXAMPLE_URLS, broker_from
from tidings.calling import check_connection, make_call, resource_of
from tidings.claims import Claimer
from tidings.context import current
from tidings.control import Obedience, standing
from tidings.delivery import Content
from tidings.dropping import Dropping
from tidings.errors import ConfigurationError, MisuseError, TidingsError
from tidings.event import Event, event_id
from tidings.handler import Handler
from tidings.handling import Handling
from tidings.holding import holding_of
from tidings.leaving import Leftovers
from tidings.observe import traces_for
from tidings.observe.logs import OutcomeLog
from tidings.pipeline import Pipeline
from tidings.ports import Broker, Observer, Plan, Store
from tidings.publisher import Outlet, Wrapper, outlet_of, publish, refuse_in_handler
from tidings.settling import Settler
from tidings.sight import Watchers
from tidings.stores import Missing, store_from
from tidings.supervision import Supervisor
from tidings.sweeping import Sweeper, Target, target_of
from tidings.switch import Switch
from tidings.worker import Worker

if TYPE_CHECKING:
    from tidings.observe.traces import Traces

log = logging.getLogger("tidings.service")

GRACE: Final = 20.0
"""Seconds that handlers have to finish when a service stops: less than the 30 s of common orchestrators."""


class Declared(Protocol):
    """What a service says of itself."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def handlers(self) -> Sequence[Handler]: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def published(self) -> Sequence[type[Event]]: ...
    @property
    def content(self) -> Content: ...
    @property
    def observers(self) -> Sequence[Observer]: ...
    def enter(self) -> AbstractAsyncContextManager[object]: ...


class Running:
    """One run of a service, in this process."""

    def __init__(self, service: Declared, broker: Broker, store: Store | None) -> None:
        self.service: Declared = service
        self.broker: Broker = broker
        self.store: Store | None = store
        self.traces: Traces | None = traces_for(service.name, broker.features.name)
        self.wrapper: Wrapper = Wrapper(service.name, service.published, service.content, self.traces)
        self.workers: list[Worker] = []
        self._targets: list[Target] = []
        self.tasks: Supervisor = Supervisor()
        self.stopping: bool = False
        self._obedient: list[Obedience] = []
        self.leftovers: Leftovers = Leftovers()
        self._watchers = Watchers(service.observers)

    @classmethod
    def of(
        cls, service: Declared, broker: str | Broker | None, store: object | None, *, missing: Missing = "make"
    ) -> Running:
        """Find the broker and the store that are named: by the caller, in the code, or in the environment."""
        spec = store or os.environ.get("TIDINGS_STORE") or None
        found = None if spec is None else store_from(spec, missing=missing)
        return cls(service, broker_from(_chosen(broker, service.name)), found)

    async def publish(self, events: Sequence[Event], tx: object | None, timeout: float) -> Sequence[Exception | None]:
        """Publish to the broker, or into a transaction; for each event None, or why it is not stored."""
        if tx is None:
            refuse_in_handler()
            return await self._send(events, timeout)
        if self.store is None:
            raise MisuseError(f"{self.service.name} has no store, so no transaction can carry an event")
        scope = current.get()
        await self.store.emit(tx, [self.wrapper.message(event, scope) for event in events])
        return [None] * len(events)

    async def _send(self, events: Sequence[Event], timeout: float) -> Sequence[Exception | None]:
        answers: Sequence[Exception | None] | None = None
        try:
            messages = [self.wrapper.message(event, sends=True) for event in events]
            answers = await publish(self.broker, messages, timeout, "direct", self._watchers)
            return answers
        except TidingsError as error:  # one of them is none that can be sent, and so none was
            answers = [error] * len(events)
            raise
        finally:
            if self.traces is not None:
                self.traces.sent([event_id(event) for event in events], answers)

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
            shared = await stack.enter_async_context(self.service.enter())
            stack.push_async_callback(self.tasks.cancel)
            if store is not None:
                self.tasks.spawn(f"{self.service.name} relay", lambda: store.relay(self._outlet()))
            self.workers = [self._worker(handler, shared) for handler in self.service.handlers]
            stack.push_async_callback(self._stop_workers)
            drops = [Dropping(one.position, one.reader.types, self.broker) for one in self.service.handlers]
            await asyncio.gather(*(one.start() for one in drops))
            for worker, dropping in zip(self.workers, drops, strict=True):
                await self._start(worker, dropping)
            if store is not None:
                self._sweep(store)
            yield

    @asynccontextmanager
    async def relaying(self) -> AsyncIterator[None]:
        """The relay alone: neither handlers nor their positions, nor the service's own lifespan."""
        if self.store is None or not self.store.transactional:
            raise ConfigurationError(
                f"{self.service.name} has no outbox to relay: that is what a store in a SQL database has. Set"
                " TIDINGS_STORE, or name it in the service"
            )
        store = self.store
        plan = msgspec.structs.replace(self.service.plan, subscriptions=())
        async with AsyncExitStack() as stack:
            await store.open()
            stack.push_async_callback(store.close)
            stack.push_async_callback(self.broker.close)
            for drift in await self.broker.open(plan):
                log.warning("%s", drift)
            stack.push_async_callback(self.tasks.cancel)
            self.tasks.spawn(f"{self.service.name} relay", lambda: store.relay(self._outlet()))
            yield

    def _outlet(self) -> Outlet:
        return outlet_of(self.broker, self._watchers)

    def _checked_store(self) -> Store | None:
        needing = [handler.position for handler in self.service.handlers if handler.rules.once]
        if needing and self.store is None:
            raise ConfigurationError(
                f"{needing[0]} is to apply each event once, and {self.service.name} has no store to remember it in."
                f' Write: Service("{self.service.name}", store="sqlite:///shop.db") or set TIDINGS_STORE; or say that'
                " its effect may safely repeat: idempotent=True"
            )
        for handler in self.service.handlers:
            resource = resource_of(handler, self.store)
            alone = resource is None or self.store is None or not self.store.transactional
            if handler.batches and handler.rules.once and alone:
                check_connection(handler, self.store)
                raise ConfigurationError(
                    f"{handler.position} handles batches and applies each event once, so that the effects of a batch"
                    " have to commit with its keys. Let it ask for the connection of a SQL store (db: AsyncConnection),"
                    " or say that its effect may safely repeat: idempotent=True"
                )
        return self.store

    def _worker(self, handler: Handler, shared: object) -> Worker:
        resource = resource_of(handler, self.store)
        target = None if self.store is None else target_of(handler, lambda: worker.keeps())  # once it is made, below
        if target is not None:
            self._targets.append(target)
        claimer = Claimer(handler, self.store, resource, target, self._watchers)
        observers = [OutcomeLog(), *self.service.observers]
        call = make_call(handler, self.store, shared)
        if self.traces is not None:
            observers.append(self.traces)
            call = self.traces.traced(call, handler.position, together=handler.batches)
        pipeline = Pipeline(
            handler,
            broker=self.broker,
            claimer=claimer,
            handling=Handling(handler, call, self.wrapper.caused),
            settler=Settler(
                handler.position,
                self.broker,
                service_version=self.service.version,
                observers=observers,
                holding=holding_of(handler, self.broker),
            ),
            together=1 if claimer.shared and resource is None else handler.batch,
            leftovers=self.leftovers,
        )
        worker = Worker(
            msgspec.structs.replace(handler.subscription, strangers=pipeline.newer.asks),
            pipeline,
            self.broker,
            lanes=handler.rules.concurrency,
            batch=handler.batch,
            observers=observers,
            switch=Switch(handler.rules.kill_switch),
            before=None if target is None else target.begin,
        )
        return worker

    async def _start(self, worker: Worker, dropping: Dropping) -> None:
        """Let a handler begin, unless it is paused; either way it obeys from now on."""
        if (order := await standing(self.broker, worker.position)) is not None:
            worker.paused = str(order)
            log.warning("%s begins paused %s. tidings resume %s", worker.position, order, worker.position)
        await worker.start()
        obedient = Obedience(self.broker, worker, dropping)
        self._obedient.append(obedient)
        self.tasks.spawn(f"{worker.position} orders", obedient.run)
        self.tasks.spawn(f"{worker.position} obeys", obedient.obey)
        self.tasks.spawn(f"{worker.position} types", dropping.run)

    def _sweep(self, store: Store) -> None:
        if self._targets:
            self.tasks.spawn(f"{self.service.name} sweeper", Sweeper(self.service.name, store, self._targets).run)

    async def _stop_workers(self) -> None:
        self.stopping = True
        if self.workers:
            await asyncio.gather(*(worker.stop(GRACE) for worker in self.workers))
        await asyncio.gather(*(obedient.forget() for obedient in self._obedient))


def _chosen(named: str | Broker | None, service: str) -> str | Broker:
    """On a terminal a broker is started where none is named; elsewhere a missing one is an error."""
    chosen = named or os.environ.get("TIDINGS_BROKER")
    if chosen:
        return chosen
    if sys.stdout.isatty():
        return "embedded:"
    raise ConfigurationError(
        f"{service} has no broker. Set TIDINGS_BROKER={EXAMPLE_URLS}, or TIDINGS_BROKER=embedded: to start one"
        f" here, or write Service({service!r}, broker=…)"
    )
