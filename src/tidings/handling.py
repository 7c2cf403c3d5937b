"""How the function of a handler is called: once for each new event, or once for all of them, and within which time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from tidings import points
from tidings.context import Scope, current
from tidings.delivery import Delivery, Message
from tidings.errors import InvalidEvent
from tidings.grouping import Work
from tidings.handler import Handler
from tidings.limit import Limit
from tidings.policy import describe
from tidings.ports import Claim

Call = Callable[[Any, Claim, Any], Awaitable[Any]]
"""Takes an event, the claim and the delivery; for a batch handler lists of events and deliveries."""
Wrap = Callable[[Any, Scope], Sequence[Message]]

_PASSED_ON: Final = (Exception, KeyboardInterrupt, points.Ended)


class Late:
    """What is known of the calls that did not end in their time, where they are waited for aside."""

    def __init__(self) -> None:
        self.results: dict[Delivery, Any] = {}
        """What was returned, or the error that was raised, until it is taken by the next attempt."""
        self.names: dict[str, Delivery] = {}
        """Of the keys that nobody else may have meanwhile, by whose event they are held."""

    def holds(self, names: Iterable[str], delivery: Delivery) -> bool:
        """Whether one of these keys is that of another event, which has not come to its end."""
        if delivery in self.results:  # it was called for together with the others that have its key
            return False
        owners = [self.names.get(name, delivery) for name in names]
        return any(owner is not delivery and not owner.withdrawn for owner in owners)

    def take(self, delivery: Delivery) -> Any:
        """What came of the call; its event goes on, under a claim of its own."""
        self.let_go(delivery)
        return self.results.pop(delivery)

    def let_go(self, delivery: Delivery) -> None:
        for name in [name for name, owner in self.names.items() if owner is delivery]:
            del self.names[name]

    def clear(self) -> None:
        self.results.clear()
        self.names.clear()


class Handling:
    """How a handler is called, and how messages are made of what it returns: one by one by `Calls`, or all at once."""

    def __init__(self, handler: Handler, call: Call, wrap: Wrap) -> None:
        self._handler = handler
        self.position = handler.position
        self.call = call
        self.wrap = wrap
        self.late = Late()
        self._results = self.late.results
        self.at_once = handler.batches
        """It takes all new events of a claim in one call; otherwise each has a call of its own."""

    async def handle_all(self, works: Sequence[Work], claim: Claim, limit: Limit) -> Sequence[Sequence[Message]]:
        """Call a batch handler for all of them, and return what each caused; when it raises, none is applied.

        Raises:
            Exception: whatever the function raises.
            TimeoutError: it took longer than the handler's `timeout`, however many events it was given.
            InvalidEvent: it returned no events, or not one result for each event.
        """
        deliveries = [work.delivery for work in works]
        if self._results and any(delivery in self._results for delivery in deliveries):
            return await self._handle_rest(works, claim, limit)
        position = self.position
        scope = Scope(deliveries[0], position, together=True)
        token = current.set(scope)
        limit.begin(scope)
        try:
            results = await self.call([work.event for work in works], claim, deliveries)
        except BaseException as error:
            if (meant := self.meant(error, limit)) is None:
                raise
            raise meant from error
        finally:
            limit.end()
            current.reset(token)
        if results is None:
            return [()] * len(works)
        if not isinstance(results, (list, tuple)) or len(results) != len(works):
            count = f" of {len(results)}" if isinstance(results, (list, tuple)) else ""
            raise InvalidEvent(
                f"{position} returned a {type(results).__name__}{count} for {len(works)} events; a batch handler"
                " returns None, or a list with one entry for each event, in their order: what it caused, or None"
            )
        return [
            () if result is None else self.wrap(result, Scope(delivery, position))
            for result, delivery in zip(results, deliveries, strict=True)
        ]

    def came(self, delivery: Delivery) -> Sequence[Message]:
        """What came of a call that was late; raises what it raised."""
        came = self.late.take(delivery)
        if isinstance(came, Exception):
            raise came
        messages: Sequence[Message] = came
        return messages

    async def _handle_rest(self, works: Sequence[Work], claim: Claim, limit: Limit) -> Sequence[Sequence[Message]]:
        """Of some it is known what came of their call; the function is called for the others."""
        rest = [work for work in works if work.delivery not in self._results]
        found = iter(await self.handle_all(rest, claim, limit) if rest else ())
        return [self.came(one.delivery) if one.delivery in self._results else next(found) for one in works]

    def meant(self, error: BaseException, limit: Limit) -> Exception | None:
        """What stands for an error that is no `Exception`: a cancellation that is not our own, a panic, ``sys.exit``.

        Drivers in other languages panic with such a one, which would end the lane, and ``sys.exit`` the whole process,
        with no word of the handler or its event. None for what is passed on as it is.
        """
        if isinstance(error, _PASSED_ON):
            return None
        if isinstance(error, GeneratorExit) and not limit.runs:  # so a call is told to close whose loop has ended
            return None
        if not isinstance(error, asyncio.CancelledError):
            return RuntimeError(f"the handler raised what is no Exception: {describe(error)}")
        if limit.took_back():
            return TimeoutError(f"the handler ran longer than {self._handler.rules.timeout:g} s")
        return None if we_are_cancelled() else RuntimeError("the handler raised CancelledError by itself")


def we_are_cancelled() -> bool:
    """Whether somebody cancelled this task, and a library did not just raise what looks like it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
