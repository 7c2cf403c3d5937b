"""How a handler is called: what it asks for besides the event, and in which thread it runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, Final

from tidings.context import Scope, current
from tidings.delivery import Delivery
from tidings.errors import ConfigurationError
from tidings.handler import Deliveries, Handler
from tidings.handling import Call
from tidings.ports import Claim, Once
from tidings.threads import Threads

Give = Callable[[Claim, Any], object]
"""Of the claim and the delivery: of a batch the deliveries."""


def resource_of(handler: Handler, once: Once | None) -> type | None:
    """The type that the handler wants from its store, or None.

    Raises:
        ConfigurationError: it wants two, or there is no store.
    """
    if once is None:
        return None
    wanted = [hint for _, hint in handler.wants if once.gives(hint, sync=handler.sync)]
    if len(wanted) > 1:
        raise ConfigurationError(f"{handler.position} asks for {len(wanted)} connections; one transaction has one")
    return wanted[0] if wanted else None


def make_call(handler: Handler, once: Once | None, shared: object) -> Call:
    """The shortest way from an event to the handler's result. `shared` is what the service's lifespan yielded.

    Raises:
        ConfigurationError: a parameter that nothing can fill.
    """
    gives = {name: _giver(handler, name, hint, once, shared) for name, hint in handler.wants}
    bound = _bind(handler.function, tuple(gives.items()))
    if not handler.sync:
        return bound
    return _in_thread(bound, Threads(f"tidings {handler.position}"))


def _giver(handler: Handler, name: str, hint: type, once: Once | None, shared: object) -> Give:
    if hint in (Delivery, Deliveries):
        return lambda claim, delivery: delivery
    if once is not None and once.gives(hint, sync=handler.sync):
        return lambda claim, delivery: claim.resource(hint)
    if shared is not None and isinstance(shared, hint):
        return lambda claim, delivery: shared
    kind = "a sync" if handler.sync else "an async"
    source = "the service has no store" if once is None else f"its store gives no {hint.__name__} to {kind} handler"
    raise ConfigurationError(
        f"{handler.position}: nothing can fill its parameter {name}: {hint.__name__}: {source}, and"
        f" {'the lifespan yields ' + type(shared).__name__ if shared is not None else 'the service has no lifespan'}."
        f" {_WHOSE.get(_library(hint), '')}A handler can ask for Delivery, for a connection of its store, and for what"
        " Service(lifespan=…) yields"
    )


def check_connection(handler: Handler, once: Once | None) -> None:
    """Refuse a handler that asks for a connection which its store does not give.

    Raises:
        ConfigurationError: it does; the message says which store gives one.
    """
    for name, hint in handler.wants:
        whose = _WHOSE.get(_library(hint), "")
        if whose and not (once is not None and once.gives(hint, sync=handler.sync)):
            raise ConfigurationError(
                f"{handler.position}: its store gives no {hint.__name__} ({name}) to"
                f" {'a sync' if handler.sync else 'an async'} handler. {whose.rstrip()}"
            )


def _library(hint: type) -> str:
    return hint.__module__.partition(".")[0]


_WHOSE: Final = {
    "sqlalchemy": (
        "AsyncConnection and AsyncSession, in a sync handler Connection and Session, are of the stores through"
        " SQLAlchemy: write postgresql+asyncpg://…, postgresql+psycopg://…, mariadb+aiomysql://… or sqlite:///…."
        " With postgresql://… ask for asyncpg.Connection. "
    ),
    "asyncpg": (
        "asyncpg.Connection is of the store postgresql://…, in async handlers. With postgresql+asyncpg://… and the"
        " others through SQLAlchemy ask for AsyncConnection. "
    ),
}
"""Which stores give the connections of a library."""


def _bind(function: Callable[..., Any], gives: tuple[tuple[str, Give], ...]) -> Call:
    if not gives:
        return lambda event, claim, delivery: function(event)
    if len(gives) == 1:
        ((name, give),) = gives
        return lambda event, claim, delivery: function(event, **{name: give(claim, delivery)})
    return lambda event, claim, delivery: function(event, **{name: give(claim, delivery) for name, give in gives})


def _in_thread(bound: Callable[[Any, Claim, Any], Any], threads: Threads) -> Call:
    """A sync handler runs in a thread: that of its store's connection, or one of its own.

    Not one of the loop's: those do the name look-ups of every connection, and one slow handler would use them up.
    """

    def run(scope: Scope | None, event: Any, claim: Claim, delivery: Any) -> Any:
        if scope is not None:
            scope.thread = threading.get_ident()
        try:
            return bound(event, claim, delivery)
        except StopIteration as error:  # which no future can carry: it would never end
            raise RuntimeError("the handler raised StopIteration") from error

    async def call(event: Any, claim: Claim, delivery: Any) -> Any:
        scope = current.get()
        own = threads.take() if claim.executor is None else None
        within = partial(copy_context().run, run, scope, event, claim, delivery)
        running = asyncio.get_running_loop().run_in_executor(own or claim.executor, within)
        if scope is not None:
            scope.running = running
        try:
            return await _until_it_ends(running, scope)
        finally:
            if own is not None and running.done():  # else it is left to what runs in it
                threads.give_back(own)

    return call


async def _until_it_ends(running: asyncio.Future[Any], scope: Scope | None) -> Any:
    """Nothing can stop a thread, so it is waited for however often this is cancelled, and what it returns counts.

    Its event is not given back while its effect is still being made; unless it was abandoned.
    """
    while True:
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if running.cancelled() or (running.done() and isinstance(running.exception(), asyncio.CancelledError)):
                raise
            if scope is not None and scope.abandoned:
                raise
