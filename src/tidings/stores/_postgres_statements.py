"""Statements that need no answer: queued, and sent together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import groupby
from operator import itemgetter
from typing import Any

from tidings import points
from tidings.errors import MisuseError
from tidings.stores._postgres_connections import Lent


class Statements:
    """What a handler asks for that needs no answer from most of its statements.

    `execute` queues a statement and returns at once; it is no coroutine. Consecutive equal statements leave as one
    ``executemany``, and the order of all is kept. Whatever is awaited here, and the end of the batch, sends the queue
    first. An error there is not known to be this handler's: everything is rolled back, and each event of the batch is
    applied alone.
    """

    def __init__(self, lent: Callable[[], Lent]) -> None:
        self._lent = lent
        self._queue: list[tuple[str, tuple[object, ...]]] = []
        self._begins = 0
        self.sent = False
        """Something was sent since the handler that has them now began."""
        self.unattributed: Exception | None = None
        """An error of a statement that an earlier handler may have queued."""

    def execute(self, query: str, *args: object) -> None:
        """Queue a statement.

        Raises:
            MisuseError: the transaction is over.
        """
        self._lent()
        self._queue.append((query, args))

    async def fetch(self, query: str, *args: object) -> list[Any]:
        """Send what is queued, then ask; the rows of the answer."""
        await self.flush()
        return await self._lent().fetch(query, *args)

    async def fetchrow(self, query: str, *args: object) -> Any:
        """The same for the first row, or None."""
        await self.flush()
        return await self._lent().fetchrow(query, *args)

    async def fetchval(self, query: str, *args: object) -> Any:
        """The same for the first value of the first row, or None."""
        await self.flush()
        return await self._lent().fetchval(query, *args)

    async def flush(self) -> None:
        """Send what is queued."""
        await self.send(self._lent())

    def begin(self) -> None:
        """Another handler begins: what is queued by now is not its own."""
        self._begins = len(self._queue)
        self.sent = False

    def undo(self) -> None:
        """Forget what the handler that has them now has queued."""
        del self._queue[self._begins :]

    def check(self) -> None:
        """See that nothing that failed before is passed over."""
        if self.unattributed is not None:
            raise self.unattributed

    async def send(self, connection: Lent) -> None:
        """Send what is queued, over a connection."""
        self.sent = True
        queue, self._queue, begins, self._begins = self._queue, [], self._begins, 0
        sent = 0
        for query, group in groupby(queue, itemgetter(0)):
            arguments = [args for _, args in group]
            try:
                if len(arguments) > 1 and arguments[0]:
                    await _as_the_handlers(connection, connection.executemany, query, arguments)
                else:
                    for args in arguments:
                        await _as_the_handlers(connection, connection.execute, query, *args)
            except Exception as error:
                if sent < begins:
                    self.unattributed = error
                raise
            sent += len(arguments)


async def _as_the_handlers(connection: Lent, say: Callable[..., Awaitable[object]], *what: object) -> None:
    """Send a statement of a handler: also when the connection is taken back by then, as at the end of a batch."""
    if points.reached is None or getattr(connection, "borrower", None) is not None:  # while lent, it says so by itself
        await say(*what)
        return
    points.at(points.BEFORE_STATEMENT)
    await say(*what)
    points.at(points.AFTER_STATEMENT)


def over() -> MisuseError:
    """What is said to whoever comes after the end."""
    return MisuseError("this transaction is over. Use its statements only inside the handler or block they are for")
