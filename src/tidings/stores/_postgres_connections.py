"""Connections to PostgreSQL: Tidings' own, kept from claim to claim, or those of a user's pool."""

from __future__ import annotations

import asyncio
import logging
import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from tidings import points
from tidings.errors import MisuseError, StoreUnavailable, TransactionEnded
from tidings.stores._passwords import password_of, split_text

log = logging.getLogger("tidings.store")

if TYPE_CHECKING:  # they take a parameter in the stubs only
    Connection = asyncpg.Connection[asyncpg.Record]
    Proxy = PoolConnectionProxy[asyncpg.Record]
else:
    Connection, Proxy = asyncpg.Connection, PoolConnectionProxy

Lent = Connection | Proxy
"""What a handler gets: a connection of Tidings' own, or one of the user's pool."""

CLOSE_LIMIT: Final = 5.0
"""Seconds that a connection has to say good-bye."""

# ROLLBACK TO goes back to a savepoint, which is anybody's right.
ENDS: Final = re.compile(
    r"\s*(COMMIT|END|ABORT|BEGIN|(START|PREPARE)\s+TRANSACTION|ROLLBACK(?!\s+((WORK|TRANSACTION)\s+)?TO\b))\b",
    re.IGNORECASE,
)
REMEDY: Final = (
    "Return from the handler to commit, raise to roll back, and use `async with db.transaction()` to undo a part"
)


class Borrower(Protocol):
    """The transaction that lends a connection to handlers."""

    trouble: Exception | None
    touched: bool
    """Something was asked of the connection since it was lent to the handler that has it now."""


inside: ContextVar[Borrower | None] = ContextVar("tidings_postgres_transaction", default=None)
"""The transaction in which this task works."""


class _Nobody:
    trouble: Exception | None = None
    touched = True


NOBODY: Final[Borrower] = _Nobody()
"""Whom an idle connection is lent to."""


class GuardedConnection(Connection):
    """The driver's connection, which works for whom it is lent to and for no one else.

    Whoever keeps it and comes back after the end of the transaction would write into somebody else's.
    """

    borrower: Borrower | None = None
    """None while Tidings itself works with it."""

    def _check_open(self) -> None:
        super()._check_open()  # type: ignore[misc]  # the stubs leave it out; every call but COPY passes here
        borrower = self.borrower
        if borrower is None:
            return
        if borrower is not inside.get():
            raise MisuseError(
                "this connection was lent to a transaction that is over. Use it only inside the handler or block it is"
                " for"
            )
        borrower.touched = True
        if not self.is_in_transaction():
            borrower.trouble = borrower.trouble or ended()
            raise borrower.trouble

    async def _copy_in(self, *args: Any) -> str:
        self._check_open()
        return await super()._copy_in(*args)  # type: ignore[misc, no-any-return]  # the stubs leave it out

    async def _copy_out(self, *args: Any) -> str:
        self._check_open()
        return await super()._copy_out(*args)  # type: ignore[misc, no-any-return]  # the stubs leave it out

    def lend(self, borrower: Borrower | None) -> None:
        """Let it work for somebody, or for Tidings itself.

        What an earlier borrower kept of it, a prepared statement or a cursor, would send past `_check_open`, so it
        works no more: as where the driver gives a connection back to a pool.
        """
        self.borrower = borrower
        self._pool_release_ctr += 1  # type: ignore[attr-defined]  # the stubs leave it out

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:
        borrower = self.borrower
        if borrower is not None and not args and ENDS.match(query):
            borrower.trouble = TransactionEnded(f"a handler may not say {query.strip()[:40]!r}. {REMEDY}")
            raise borrower.trouble
        if points.reached is None or borrower is None:
            return await super().execute(query, *args, timeout=timeout)
        points.at(points.BEFORE_STATEMENT)
        status = await super().execute(query, *args, timeout=timeout)
        points.at(points.AFTER_STATEMENT)
        return status

    async def executemany(self, command: str, args: Any, *, timeout: float | None = None) -> None:
        if points.reached is None or self.borrower is None:
            await super().executemany(command, args, timeout=timeout)
            return
        points.at(points.BEFORE_STATEMENT)
        await super().executemany(command, args, timeout=timeout)
        points.at(points.AFTER_STATEMENT)

    async def close(self, *, timeout: float | None = None) -> None:
        self._refuse_to_end()
        await super().close(timeout=timeout)

    def terminate(self) -> None:
        self._refuse_to_end()
        super().terminate()

    def _refuse_to_end(self) -> None:
        borrower = self.borrower
        if borrower is not None and borrower is not NOBODY:
            borrower.trouble = MisuseError(f"a handler may not close the connection it was lent. {REMEDY}")
            raise borrower.trouble


def ended() -> TransactionEnded:
    """What is said of a transaction that is not the one that was begun."""
    return TransactionEnded(f"a handler ended the transaction that its connection is part of. {REMEDY}")


def driver_of(connection: Lent) -> Connection:
    """The driver's connection, also where a pool put its proxy before it."""
    found: Any = connection
    driver: Connection = found._con if isinstance(connection, PoolConnectionProxy) else found
    return driver


def gone(connection: Lent) -> bool:
    """Whether it is closed, as far as the driver knows; a pool has taken it back then."""
    driver: Connection | None = driver_of(connection)
    return driver is None or driver.is_closed()


def over(connection: Lent) -> None:
    """Tell the driver that its transaction was ended by a statement, and not through its `Transaction`."""
    driver: Any = driver_of(connection)
    driver._top_xact = None


class Connections(Protocol):
    """Where connections come from."""

    async def take(self) -> Lent:
        """Borrow one.

        Raises:
            StoreUnavailable: none became free in time.
            Exception: the driver's, when it cannot connect.
        """

    async def give_back(self, connection: Lent, *, broken: bool) -> None:
        """Give it back, not inside a transaction; or throw it away. Raises nothing."""

    async def listener(self) -> Lent | None:
        """A connection that is kept to listen with; None where there is none to spare."""

    async def close(self) -> None: ...


class OwnConnections:
    """Opened when needed, and kept. Nothing resets one between two claims: that would be a round trip more for each.

    So whatever a handler sets for its session (and not with SET LOCAL) stays set.
    """

    def __init__(self, url: str, *, connect_timeout: float) -> None:
        self._url, path = split_text(url)
        self._password = None if path is None else password_of(path)
        self._connect_timeout = connect_timeout
        self.statement_cache_size: int | None = None
        """None leaves the driver's own; 0 is what a proxy needs that pools by transaction."""
        self._idle: list[GuardedConnection] = []
        self._all: set[Connection] = set()
        self._closed = False

    async def take(self) -> Lent:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                connection.borrower = None
                return connection
            self._all.discard(connection)
        return await self.connect(GuardedConnection)

    async def connect(self, kind: Any = asyncpg.Connection) -> Connection:
        options: dict[str, Any] = {}
        if self.statement_cache_size is not None:
            options["statement_cache_size"] = self.statement_cache_size
        if "application_name" not in self._url:
            options["server_settings"] = {"application_name": "tidings"}
        if self._password is not None:
            options["password"] = self._password()
        connection: Connection = await asyncpg.connect(
            self._url, timeout=self._connect_timeout, connection_class=kind, **options
        )
        self._all.add(connection)
        return connection

    async def give_back(self, connection: Lent, *, broken: bool) -> None:
        assert not isinstance(connection, PoolConnectionProxy)
        if type(connection) is GuardedConnection:  # isinstance says yes to every connection of the driver's
            connection.borrower = NOBODY
            if not (broken or self._closed or connection.is_closed()):
                self._idle.append(connection)
                return
        self._all.discard(connection)
        if broken:
            connection.terminate()
        elif not connection.is_closed():
            await _close(connection)

    async def listener(self) -> Lent | None:
        return await self.connect()

    async def close(self) -> None:
        self._closed = True
        while self._idle:
            connection = self._idle.pop()
            self._all.discard(connection)
            await _close(connection)
        while self._all:  # lent, and not given back in time
            self._all.pop().terminate()


class PoolConnections:
    """Those of a live pool, which is never closed here, and resets each connection that comes back as it does."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], *, acquire_timeout: float) -> None:
        self._pool = pool
        self._timeout = acquire_timeout

    async def take(self) -> Lent:
        try:
            return await self._pool.acquire(timeout=self._timeout)
        except TimeoutError:
            raise StoreUnavailable(
                f"no connection of the pool became free in {self._timeout:g} s. It has {self._pool.get_max_size()}:"
                " each lane of a handler holds one while it works. Raise its max_size"
            ) from None

    async def give_back(self, connection: Lent, *, broken: bool) -> None:
        assert isinstance(connection, PoolConnectionProxy)
        if driver_of(connection) is None:  # it was closed, and with that came back by itself
            return
        try:
            if broken and not driver_of(connection).is_closed():
                connection.terminate()
            await self._pool.release(connection, timeout=CLOSE_LIMIT)
        except Exception as error:
            log.warning("a connection could not be given back to its pool: %s", error)

    async def listener(self) -> Lent | None:
        # It is kept for good; from a small pool that would take what handlers need.
        return await self.take() if self._pool.get_max_size() >= 4 else None

    async def close(self) -> None:
        """The pool belongs to whoever made it."""


async def _close(connection: Connection) -> None:
    try:
        async with asyncio.timeout(CLOSE_LIMIT):
            await connection.close()
    except Exception as error:
        log.debug("a connection could not be closed, and is cut: %s", error)
        connection.terminate()
