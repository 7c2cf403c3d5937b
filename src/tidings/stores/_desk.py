"""What all transactions of one open store share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from tidings.errors import Contention, MisuseError, TidingsError
from tidings.outbox.direct import Direct
from tidings.outbox.relay import Wake
from tidings.outbox.waiting import to_end
from tidings.stores._database import BEGIN, Database, own_error, used_up
from tidings.stores._links import AsyncLink, Link, ThreadLink
from tidings.threads import Threads

T = TypeVar("T")


class Desk:
    """Connections, the turn to write, and those transactions whose rollback is not done yet."""

    def __init__(
        self,
        database: Database,
        engine: AsyncEngine,
        sync_engine: sa.Engine | None,
        *,
        lock_timeout: float,
        hold: float,
        ours: bool,
    ) -> None:
        self.database = database
        self.engine = engine
        self.sync_engine = sync_engine
        self.lock_timeout = lock_timeout
        self.wake = Wake()
        self.direct = Direct(self.wake.now, hold=hold)
        self._ours = ours
        self.hooks: list[Callable[[], None]] = []
        """What takes out again what was hooked into the engines."""
        self.late: set[asyncio.Task[None]] = set()
        self._threads = Threads("tidings-store")
        # Where one writes at a time the others poll, and whoever comes at the right moment wins. Here they queue.
        self._turn = asyncio.Lock() if database.one_writer else None

    def link(self, *, sync: bool) -> Link:
        if not sync:
            return AsyncLink(self.engine)
        if self.sync_engine is None:
            self.database.check_sync()
            raise MisuseError("this store was opened before the driver for sync handlers was there")
        return ThreadLink(self.sync_engine, self._threads)

    async def take_turn(self) -> None:
        """Wait until no other transaction of this process writes, where only one can.

        Raises:
            Contention: one did for too long.
        """
        if self._turn is None:
            return
        try:
            async with asyncio.timeout(self.lock_timeout):
                await self._turn.acquire()
        except TimeoutError:
            raise Contention(
                f"{self.database} was being written by another transaction of this process for more than"
                f" {self.lock_timeout:g} s. A handler that waits for something else while it holds its connection"
                " keeps all others from writing"
            ) from None

    def give_turn(self) -> None:
        if self._turn is not None:
            self._turn.release()

    def finish_later(self, step: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something that nobody waits for, but a close."""
        task = asyncio.ensure_future(step)
        self.late.add(task)
        task.add_done_callback(self.late.discard)
        return task

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Read without a transaction and without waiting for writers.

        Run to its end also when cancelled: nobody gives a connection back that is being made when it is cancelled.

        Raises:
            StoreUnavailable, Contention: it cannot be read.
        """
        return await to_end(self._read(work))

    async def _read(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            self.database.check()
            try:
                return await self._read_once(work)
            except sa.exc.DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                return await self._read_once(work)  # it had been idle in the pool, and was closed
        except TidingsError:
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and (trouble := used_up(self.database, self.engine)):
                raise trouble from error
            raise own_error(self.database, error) or error from error

    async def _read_once(self, work: Callable[[sa.Connection], T]) -> T:
        async with asyncio.timeout(self.database.answers_within), self.engine.connect() as connection:
            _ = await connection.execution_options(**{BEGIN: ""})
            return await connection.run_sync(work)

    async def close(self, limit: float) -> None:
        """Wait for late rollbacks, then let go of all connections and threads."""
        if self.late:
            await asyncio.wait(self.late, timeout=limit)
        self._threads.close()
        while self.hooks:
            self.hooks.pop()()
        if self._ours:  # a live engine belongs to whoever made it
            await self.engine.dispose()
        if self.sync_engine is not None:
            await asyncio.to_thread(self.sync_engine.dispose)

    async def forget_connections(self) -> None:
        """Connect anew from now on: the pooled connections lead to a file that is gone."""
        await self.engine.dispose()
        if self.sync_engine is not None:
            await asyncio.to_thread(self.sync_engine.dispose)
