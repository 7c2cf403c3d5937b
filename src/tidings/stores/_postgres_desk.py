"""What all transactions of one open PostgreSQL store share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tidings.errors import StoreUnavailable, TidingsError
from tidings.outbox.direct import Direct
from tidings.outbox.relay import Wake
from tidings.stores import _postgres_errors as errors
from tidings.stores._postgres_connections import Connections, Lent

NOTIFY_EVERY = 0.05
"""Seconds between two notifications of one process: each costs a lock that all of the server's commits share."""


class Desk:
    """Connections, limits, and what tells the relay."""

    def __init__(
        self,
        connections: Connections,
        *,
        where: str,
        lock_timeout: float,
        answer_timeout: float,
        most: int,
        hold: float,
    ) -> None:
        self.connections = connections
        self.where = where
        self.lock_timeout = lock_timeout
        self.answer_timeout = answer_timeout
        self.pooled = False
        self.made_at = 0.0
        self.synchronous_commit = "on"
        self.wake = Wake()
        self.direct = Direct(self.wake.now, hold=hold)
        self.publishes_until = 0.0
        """While this process has the relay's lease, nobody else need be told of rows. Monotonic."""
        self._told = 0.0
        self._room = asyncio.Semaphore(most)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Lent]:
        """A short transaction of Tidings' own, which only reads, or writes and commits.

        Raises:
            StoreUnavailable, Contention: it cannot be done.
        """
        connection: Lent | None = None
        broken = True
        try:
            async with asyncio.timeout(self.answer_timeout):
                connection = await self.connections.take()
                async with connection.transaction(isolation="read_committed"):
                    yield connection
            broken = False
        except TidingsError:
            raise
        except Exception as error:
            raise errors.own_error(error, self.where) or error from error
        finally:
            if connection is not None:
                await asyncio.shield(self.connections.give_back(connection, broken=broken))

    async def enter(self, reserved: bool) -> None:
        """Wait for room, where it is not reserved: lanes are few, web requests may be many.

        Raises:
            StoreUnavailable: there was none in time.
        """
        if reserved:
            return
        try:
            async with asyncio.timeout(self.answer_timeout):
                await self._room.acquire()
        except TimeoutError:
            raise StoreUnavailable(
                f"{self.where}: no connection became free in {self.answer_timeout:g} s. Shorten the transactions, or"
                " give the store a larger `connections`"
            ) from None

    def leave(self, reserved: bool) -> None:
        if not reserved:
            self._room.release()

    def notifies(self) -> bool:
        """Whether rows that are written now are to wake another process' relay."""
        now = time.monotonic()
        if now < self.publishes_until or now < self._told + NOTIFY_EVERY:
            return False
        self._told = now
        return True
