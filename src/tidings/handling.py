"""How the function of a handler is called: once for each new event, or once for all of them, and within which time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from tidings.context import Scope, current
from tidings.delivery import Delivery, Message
from tidings.errors import InvalidEvent
from tidings.event import Event
from tidings.handler import Handler
from tidings.limit import Limit
from tidings.ports import Claim

Call = Callable[[Any, Claim, Any], Awaitable[Any]]
"""Takes an event, the claim and the delivery; for a batch handler lists of events and deliveries."""
Wrap = Callable[[Any, Scope], Sequence[Message]]

Caused = Sequence[Sequence[Message]]
"""The messages that each event of a call caused."""


class Given(NamedTuple):
    """An event that a function is called with."""

    event: Event
    delivery: Delivery


class Handling:
    """Calls a handler, and makes messages of what it returns."""

    def __init__(self, handler: Handler, call: Call, wrap: Wrap) -> None:
        self._handler = handler
        self._call = call
        self._wrap = wrap
        self.at_once = handler.batches
        """It takes all new events of a claim in one call; otherwise each has a call of its own."""

    async def handle(self, given: Sequence[Given], claim: Claim, limit: Limit) -> Caused:
        """Call the function; what it raises is raised here, and of the events of this call none is applied then.

        Raises:
            TimeoutError: the call took longer than the handler's `timeout`, whether for one event or for many.
            InvalidEvent: what it returned are no events, or not one result for each event of a batch.
        """
        if self.at_once:
            return await self._handle_all(given, claim, limit)
        (one,) = given
        scope = Scope(one.delivery, self._handler.position)
        result = await self._within(limit, scope, one.event, claim, one.delivery)
        return [() if result is None else self._wrap(result, scope)]

    async def _handle_all(self, given: Sequence[Given], claim: Claim, limit: Limit) -> Caused:
        position = self._handler.position
        events, deliveries = [one.event for one in given], [one.delivery for one in given]
        scope = Scope(deliveries[0], position, together=True)
        results = await self._within(limit, scope, events, claim, deliveries)
        if results is None:
            return [()] * len(given)
        if not isinstance(results, (list, tuple)) or len(results) != len(given):
            count = f" of {len(results)}" if isinstance(results, (list, tuple)) else ""
            raise InvalidEvent(
                f"{position} returned a {type(results).__name__}{count} for {len(given)} events; a batch handler"
                " returns None, or a list with one entry for each event, in their order: what it caused, or None"
            )
        return [
            () if result is None else self._wrap(result, Scope(delivery, position))
            for result, delivery in zip(results, deliveries, strict=True)
        ]

    async def _within(self, limit: Limit, scope: Scope, event: Any, claim: Claim, delivery: Any) -> Any:
        token = current.set(scope)
        limit.begin()
        try:
            return await self._call(event, claim, delivery)
        except asyncio.CancelledError as error:
            if limit.took_back():
                raise TimeoutError(f"the handler ran longer than {self._handler.rules.timeout:g} s") from error
            if not we_are_cancelled():
                raise RuntimeError("the handler raised CancelledError by itself") from error
            raise
        finally:
            limit.end()
            current.reset(token)


def we_are_cancelled() -> bool:
    """Whether somebody cancelled this task, and a library did not just raise what looks like it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
