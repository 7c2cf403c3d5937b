"""What an error of PostgreSQL or its driver means: somebody's lock, a database that is away, or the statement's own."""

from __future__ import annotations

from typing import Final

import asyncpg

from tidings.errors import Contention, StoreUnavailable, WorldError

CONTENTION: Final = {
    "40001": "the transaction could not be serialized with others",
    "40P01": "a deadlock with another transaction was ended",
    "55P03": "a lock stayed with another transaction for longer than lock_timeout",
}

UNAVAILABLE: Final = {
    "08": "the connection was lost",
    "25006": "it may only be read: a standby, or default_transaction_read_only is on. Name the primary",
    "28": "this user is not let in. Check user and password in the store's URL or password_file, and pg_hba.conf",
    "3D000": "there is no such database. Create it, or name another in the store's URL",
    "53100": "its disk is full. Make room",
    "53200": "the server is out of memory",
    "53300": "it has too many connections. Raise max_connections, or lower the number of lanes, processes or pools",
    "53": "the server is out of a resource",
    "57P01": "the connection was ended by an administrator, or the server is being stopped",
    "57P02": "the server crashed and recovers",
    "57P03": "the server is starting or being stopped",
    "57P04": "the database was dropped",
    "57P05": "the server ended a connection that was idle for too long",
    "58": "the disk or the system below it does not work as it should",
    "XX001": "its data is damaged. Restore it from a backup",
    "XX002": "an index is damaged. Rebuild it",
}

CLOSED: Final = ("connection is closed", "connection was closed", "pool is clos", "connection has been released")
KEPT: Final = "the underlying connection has been released"
"""How the driver refuses a statement or a cursor that outlived what its connection was lent for."""


def world(error: BaseException, where: str) -> WorldError | None:
    """What an error means for whoever wants to go on, or None: it is the statement's own fault.

    Args:
        error: of the driver; anything else means nothing here.
        where: the database, in words.
    """
    if isinstance(error, asyncpg.InvalidCachedStatementError | asyncpg.OutdatedSchemaCacheError):
        return Contention(f"{where}: a table was altered under a prepared statement ({_one_line(error)})")
    if isinstance(error, asyncpg.PostgresError):
        code = error.sqlstate or ""
        if meaning := CONTENTION.get(code):
            return Contention(f"{where}: {meaning} ({_one_line(error)})")
        for length in (5, 2):
            if meaning := UNAVAILABLE.get(code[:length]):
                return StoreUnavailable(f"{where}: {meaning} ({_one_line(error)})")
    elif isinstance(error, asyncpg.InterfaceError) and not kept(error) and any(words in str(error) for words in CLOSED):
        return StoreUnavailable(f"{where}: the connection was lost ({_one_line(error)})")
    return None


def kept(error: BaseException) -> bool:
    """Whether a handler used a statement or a cursor that it has from an earlier event."""
    return isinstance(error, asyncpg.InterfaceError) and KEPT in str(error)


def own_error(error: BaseException, where: str) -> WorldError | None:
    """The same for a statement of Tidings' own, where no error is a handler's."""
    if (known := world(error, where)) is not None:
        return known
    if isinstance(error, TimeoutError):
        return StoreUnavailable(f"{where} does not answer")
    if isinstance(error, OSError):
        return StoreUnavailable(f"{where} cannot be reached ({_one_line(error)})")
    if isinstance(error, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
        return StoreUnavailable(
            f"{where}: {_one_line(error)}. Are its tables tidings_* as Tidings made them? They are made when a service"
            " starts"
        )
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return StoreUnavailable(f"{where}: {_one_line(error)}. Grant this user the tables tidings_*")
    if isinstance(error, asyncpg.InternalClientError):
        # The server has ended an idle connection, which its last words say already and its end does not yet.
        return StoreUnavailable(f"{where}: the connection is in no state to be used ({_one_line(error)})")
    if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError):
        return StoreUnavailable(f"{where}: {_one_line(error)}")
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
