"""How the function of a handler is called: once for each new event, or once for all of them, and within which time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

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


class Handling:
    """Calls a handler, and makes messages of what it returns."""

    def __init__(self, handler: Handler, call: Call, wrap: Wrap) -> None:
        self._handler = handler
        self._position = handler.position
        self._call = call
        self._wrap = wrap
        self.at_once = handler.batches
        """It takes all new events of a claim in one call; otherwise each has a call of its own."""

    async def handle(self, event: Event, delivery: Delivery, claim: Claim, limit: Limit) -> Sequence[Message]:
        """Call the function for one event, and return what it caused. The hot path: written out rather than called.

        Raises:
            Exception: whatever the function raises; the event is not applied then.
            TimeoutError: it took longer than the handler's `timeout`.
            InvalidEvent: what it returned are no events.
        """
        scope = Scope(delivery, self._position)
        token = current.set(scope)
        limit.begin()
        try:
            result = await self._call(event, claim, delivery)
        except asyncio.CancelledError as error:
            if (meant := self._meant(limit)) is None:
                raise
            raise meant from error
        finally:
            limit.end()
            current.reset(token)
        return () if result is None else self._wrap(result, scope)

    async def handle_all(
        self, events: Sequence[Event], deliveries: Sequence[Delivery], claim: Claim, limit: Limit
    ) -> Sequence[Sequence[Message]]:
        """Call a batch handler for all of them, and return what each caused; when it raises, none is applied.

        Raises:
            Exception: as for `handle`; the `timeout` is for the call, however many events it is given.
            InvalidEvent: it returned no events, or not one result for each event.
        """
        position = self._position
        token = current.set(Scope(deliveries[0], position, together=True))
        limit.begin()
        try:
            results = await self._call(events, claim, deliveries)
        except asyncio.CancelledError as error:
            if (meant := self._meant(limit)) is None:
                raise
            raise meant from error
        finally:
            limit.end()
            current.reset(token)
        if results is None:
            return [()] * len(events)
        if not isinstance(results, (list, tuple)) or len(results) != len(events):
            count = f" of {len(results)}" if isinstance(results, (list, tuple)) else ""
            raise InvalidEvent(
                f"{position} returned a {type(results).__name__}{count} for {len(events)} events; a batch handler"
                " returns None, or a list with one entry for each event, in their order: what it caused, or None"
            )
        return [
            () if result is None else self._wrap(result, Scope(delivery, position))
            for result, delivery in zip(results, deliveries, strict=True)
        ]

    def _meant(self, limit: Limit) -> Exception | None:
        """What a cancellation is an error of, where it is not our own."""
        if limit.took_back():
            return TimeoutError(f"the handler ran longer than {self._handler.rules.timeout:g} s")
        return None if we_are_cancelled() else RuntimeError("the handler raised CancelledError by itself")


def we_are_cancelled() -> bool:
    """Whether somebody cancelled this task, and a library did not just raise what looks like it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
