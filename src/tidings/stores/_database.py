"""What a store needs of one kind of database: how to connect, begin, claim keys and end, and what errors mean.

Each kind is a class in a file of its own; nothing else in `stores` says its name. All methods that take a connection
are plain functions of it, called where the connection belongs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Protocol

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from tidings.delivery import Message
from tidings.errors import StoreUnavailable, WorldError
from tidings.outbox import tables
from tidings.stores._patience import Patience

Row = tuple[str, str, str, bytes]
"""Handler, key, event id and digest, as the inbox keeps them."""

Pair = tuple[str, str]
"""Handler and key."""

Found = dict[Pair, tuple[str, bytes]]
"""Event id and digest of what was applied, by handler and key."""

Read = Callable[[Callable[[sa.Connection], Any]], Awaitable[Any]]
"""Does something with another connection, outside of a transaction."""

BEGIN: Final = "tidings_begin"
"""The execution option that says how a transaction begins; empty for reading, which needs none."""


class Database(Protocol):
    """One database. Its text names it for people, without a secret."""

    dialects: tuple[str, ...]
    """What SQLAlchemy calls it."""
    utf8: bool
    """It keeps valid UTF-8 without NUL as text, and nothing else."""
    one_writer: bool
    """Only one transaction can write at a time, so that those of one process do best to queue."""
    answers_within: float | None
    """How long, in seconds, a step of Tidings' own may take; None where nothing but the disk is waited for."""

    # ---- connecting

    def async_engine(self) -> AsyncEngine: ...

    def sync_engine(self) -> sa.Engine | None:
        """For sync handlers; None where its driver is not installed."""

    def check_sync(self) -> None:
        """Raises ConfigurationError: the driver for sync handlers is not installed."""

    def prepare(self, engine: sa.Engine, *, ours: bool) -> None:
        """Make each connection, and each beginning and end of a transaction, what the promises need."""

    def demand(self) -> None:
        """Raises ConfigurationError: to connect would make the database, which is not there."""

    def set_up(self, connection: sa.Connection) -> None:
        """Check the server and create what is missing; several processes may do so at once.

        Raises:
            ConfigurationError: the database cannot be used as it is.
        """

    def check(self) -> None:
        """Raises StoreUnavailable: the database is not the one any more that was opened."""

    @property
    def replaced(self) -> bool:
        """Whether another stands in its place, so that opening it anew helps."""

    # ---- transactions

    aborts: bool
    """After an error the database refuses everything until a savepoint, or all, is rolled back."""
    survives_cancel: bool
    """A connection whose statement was cancelled can still be told to roll back."""

    commits_by_cancel: bool
    """A COMMIT that waits for a standby, and is cancelled or stopped, ends at once, as done, and without the standby.

    What is acknowledged then is lost with this server. So such a one is left alone, on a connection that is cut: it
    ends when the standby is back, and keeps its keys until then.
    """

    def lock(self, connection: sa.Connection) -> None:
        """Become the writer, where one must and did not by beginning."""

    def roll_back(self, connection: sa.Connection) -> None:
        """Roll back, whatever SQLAlchemy thinks of the transaction."""

    def driver_of(self, connection: sa.Connection) -> Any:
        """The driver's own connection, for the questions below."""

    def in_transaction(self, driver: Any) -> bool:
        """Whether the database, by its last answer, is inside a transaction. Asks nothing, works in every thread."""

    def lost(self, driver: Any) -> bool:
        """Whether the connection is closed or broken, as far as the driver knows."""

    def patience(self, connection: sa.Connection) -> Patience | None:
        """How long the server lets a transaction take, or wait, before it ends the session; None where it does not."""

    def unsure_after(self, statement: str) -> bool:
        """Whether the answer to a statement does not tell if the transaction still stands."""

    def whole(self, connection: sa.Connection) -> bool:
        """Ask the database whether the transaction still stands and can be committed."""

    def reusable(self, connection: sa.Connection) -> bool:
        """Tidy a connection up for the pool. False: something is left on it, and it is to be thrown away."""

    def interrupt(self, driver: Any) -> None:
        """Stop at once a statement that runs, where the driver can; from any thread."""

    async def stop(self, driver: Any) -> None:
        """Ask the server to stop what runs on this connection, whoever waits for it. Has a limit; raises nothing."""

    def cut(self, driver: Any) -> None:
        """Close a connection under whoever waits for its answer, because the server will not give one."""

    async def take_away(self, driver: Any, read: Read, *, in_thread: bool) -> None:
        """End a transaction that a handler does not give back, from another connection: `read` does something on one.

        `in_thread`: the connection belongs to the handler's thread. Has a limit; raises nothing.
        """

    # ---- the inbox and the outbox

    def claim_keys(self, connection: sa.Connection, rows: Sequence[Row]) -> tuple[set[Pair], Found]:
        """Insert what is not there yet; what was new, and what was applied before. Rows come sorted."""

    def find_keys(self, connection: sa.Connection, keys: Iterable[Pair]) -> Found:
        """Which events were applied under these keys."""

    def delete_keys(self, connection: sa.Connection, keys: Sequence[Pair]) -> None:
        """Take keys back that were inserted in this transaction."""

    def fits(self, messages: Sequence[Message]) -> None:
        """Raises EventTooLarge: the database does not take a row of this size."""

    def will_commit(self, connection: sa.Connection) -> bool:
        """Whether what is written now waits for a commit: false where each statement commits by itself."""

    def same_database(self, connection: sa.Connection) -> bool:
        """Whether a user's connection leads to this database."""

    # ---- errors

    def world(self, error: BaseException) -> WorldError | None:
        """What an error means, when it is not the statement's own fault."""

    def of_handler(self, error: BaseException) -> WorldError | None:
        """The same for an error inside a handler."""

    def misled(self, error: BaseException) -> bool:
        """Whether the server that refused is none that can be written, so that another may stand at its address now."""

    def ends_all(self, error: BaseException) -> bool:
        """Whether nothing may be committed after this error, even if whoever caused it passes over it."""


def own_error(database: Database, error: BaseException) -> WorldError | None:
    """What an error means for a statement of ours, where no error is the handler's."""
    known = database.world(error)
    if known is None and isinstance(error, sa.exc.DBAPIError):
        reason = " ".join(str(error.orig).split())
        return StoreUnavailable(f"{database}: {reason}. Are its tables tidings_* as Tidings made them?")
    return known


def pool_options(answers_within: float) -> dict[str, Any]:
    """How an engine of ours pools: that its pool is used up is said before the server is taken to be away."""
    return {"isolation_level": "AUTOCOMMIT", "pool_reset_on_return": None, "pool_timeout": answers_within / 2}


def pool_error(database: object, error: BaseException) -> WorldError | None:
    """The error of an engine whose pool is used up."""
    return _used_up(database) if isinstance(error, sa.exc.TimeoutError) else None


def used_up(database: object, engine: AsyncEngine) -> WorldError | None:
    """The same where we waited in vain: a live engine may let wait for longer than we do."""
    pool: Any = engine.pool
    if not isinstance(pool, sa.QueuePool) or (more := pool._max_overflow) < 0:
        return None
    return _used_up(database) if pool.checkedout() >= pool.size() + more else None


def _used_up(database: object) -> WorldError:
    return StoreUnavailable(f"{database}: no connection of the engine's pool became free. Make its pool larger")


def installed(*modules: str) -> bool:
    """Whether all of these can be imported."""
    try:
        return all(importlib.util.find_spec(module) is not None for module in modules)
    except ValueError:  # it is barred from being imported
        return False


def same_home(connection: sa.Connection, home: float | None) -> bool:
    """Whether a user's connection leads to the database whose tables were made at this time.

    The server is asked, once for each of its connections: one database has many addresses.
    """
    known = connection.info.get("tidings_home")
    if known is None:
        try:
            with connection.begin_nested():
                known = tables.made_at(connection)
        except sa.exc.DBAPIError:  # there are no such tables
            return False
        connection.info["tidings_home"] = known
    return known is not None and known == home
