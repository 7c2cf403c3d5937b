"""A connection on loan from an engine, and where its work is done: on the loop, or in one thread of its own.

The statements of Tidings are written once, as plain functions of a `sqlalchemy.Connection`; a link runs them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from tidings.threads import OneThread, Threads

T = TypeVar("T")

ASYNC_KINDS = (AsyncConnection, AsyncSession)
SYNC_KINDS = (sa.Connection, Session)


class Link(Protocol):
    """One connection, from its loan to its return."""

    @property
    def executor(self) -> Executor | None: ...

    async def connect(self, **options: object) -> None:
        """Borrow a connection, with execution options; after `close` another one."""

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Do something with the connection, where it belongs."""

    async def close(self, *, broken: bool) -> None:
        """Give the connection back, or throw it away."""

    def resource(self, wanted: type) -> object:
        """The connection, or the one session on it, for a handler."""

    def lent(self, tx: object) -> bool:
        """Whether this is what `resource` gave."""

    @property
    def session(self) -> Session | None:
        """The session that a handler was given, if one was."""


class AsyncLink:
    """A connection for async handlers."""

    executor: Executor | None = None

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._connection = AsyncConnection(engine)
        self._session: AsyncSession | None = None

    async def connect(self, **options: object) -> None:
        self._connection = AsyncConnection(self._engine)
        _ = await self._connection.start()
        _ = await self._connection.execution_options(**options)

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        return await self._connection.run_sync(work)

    async def close(self, *, broken: bool) -> None:
        if self._connection.sync_connection is None:
            return  # it never came to a connection
        if self._session is not None:
            await self._session.close()
        if broken:
            await self._connection.invalidate()
        await self._connection.close()

    def resource(self, wanted: type) -> object:
        if issubclass(wanted, AsyncConnection):
            return self._connection
        if self._session is None:
            self._session = AsyncSession(
                self._connection, expire_on_commit=False, join_transaction_mode="control_fully"
            )
            self._session.sync_session.connection()  # it joins the transaction now, so that ending it is seen
        return self._session

    def lent(self, tx: object) -> bool:
        known = (self._connection, self._connection.sync_connection, self._session, self.session)
        return tx is not None and any(tx is one for one in known)

    @property
    def session(self) -> Session | None:
        return None if self._session is None else self._session.sync_session


class ThreadLink:
    """A connection for sync handlers: all that is done with it happens in one thread, which is not the loop's."""

    def __init__(self, engine: sa.Engine, threads: Threads) -> None:
        self._engine = engine
        self._threads = threads
        self._connection: sa.Connection | None = None
        self._session: Session | None = None
        self.executor: OneThread | None = None

    async def connect(self, **options: object) -> None:
        executor = self.executor = self._threads.take()

        def connect() -> sa.Connection:
            return self._engine.connect().execution_options(**options)

        self._connection = await asyncio.get_running_loop().run_in_executor(executor, connect)

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        assert self._connection is not None
        return await asyncio.get_running_loop().run_in_executor(self.executor, work, self._connection)

    async def close(self, *, broken: bool) -> None:
        executor, self.executor = self.executor, None
        if executor is None:
            return

        def close() -> None:
            if self._session is not None:
                self._session.close()
            connection, self._connection = self._connection, None
            if connection is not None:
                if broken:
                    connection.invalidate()
                connection.close()

        try:
            await asyncio.get_running_loop().run_in_executor(executor, close)
        finally:
            self._threads.give_back(executor)

    def resource(self, wanted: type) -> object:
        if issubclass(wanted, sa.Connection):
            return self._connection
        if self._session is None:
            self._session = Session(self._connection, expire_on_commit=False, join_transaction_mode="control_fully")
            self._session.connection()
        return self._session

    def lent(self, tx: object) -> bool:
        return tx is not None and (tx is self._connection or tx is self._session)

    @property
    def session(self) -> Session | None:
        return self._session
