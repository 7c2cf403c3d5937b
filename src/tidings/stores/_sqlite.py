"""What is particular to SQLite: how to connect, begin, insert keys, and what its errors mean."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Final, cast

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tidings.delivery import Message
from tidings.errors import ConfigurationError, Contention, StoreUnavailable, WorldError
from tidings.outbox import tables
from tidings.stores._database import BEGIN, Found, Pair, Read, Row, pool_error
from tidings.stores._passwords import OPTION
from tidings.stores._patience import Patience
from tidings.threads import OneThread

log = logging.getLogger("tidings.store")

CHUNK: Final = 1000
"""Rows in one statement: five parameters each, far below SQLite's limit of 32,766."""

TAKE_AWAY_WITHIN: Final = 5.0
"""Seconds that a statement has to end which was interrupted, so that its transaction can be rolled back."""

IMMEDIATE: Final = "BEGIN IMMEDIATE"


class Sqlite:
    """One SQLite database file.

    One writer at a time is all that SQLite has, so every transaction that may write says so when it begins: a plain
    BEGIN that reads first and writes later fails at once, whatever the timeout, when another has written meanwhile.
    """

    dialects: tuple[str, ...] = ("sqlite",)
    utf8 = False
    one_writer = True
    answers_within: float | None = None
    aborts = False
    survives_cancel = True
    commits_by_cancel = False

    def __init__(self, url: sa.URL, *, lock_timeout: float) -> None:
        if OPTION in url.query:
            raise ConfigurationError(f"{OPTION}= is for a database server: who may read a SQLite file may use it")
        self._url = url
        self._lock_timeout = lock_timeout
        self.path = Path(_file_of(url)).absolute()
        self._inode: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"the SQLite database {self.path}"

    # ------------------------------------------------------------------ connecting

    def async_engine(self) -> AsyncEngine:
        url = self._url.set(drivername="sqlite+aiosqlite")
        # AUTOCOMMIT leaves BEGIN to us (the driver would write a deferred one, and only before an INSERT); COMMIT and
        # ROLLBACK still reach the database. A connection is never given back inside a transaction, so the pool's own
        # rollback would be one more hop to the driver's thread for nothing.
        return create_async_engine(url, isolation_level="AUTOCOMMIT", pool_reset_on_return=None)

    def sync_engine(self) -> sa.Engine:
        url = self._url.set(drivername="sqlite+pysqlite")
        return sa.create_engine(url, isolation_level="AUTOCOMMIT", pool_reset_on_return=None)

    def check_sync(self) -> None:
        """The driver comes with Python."""

    def prepare(self, engine: sa.Engine, *, ours: bool) -> None:
        """Set each new connection up as the promises need it, and begin transactions as writers do."""
        pragmas = ["PRAGMA synchronous=FULL", f"PRAGMA busy_timeout={int(self._lock_timeout * 1000)}"]
        if ours:
            pragmas.append("PRAGMA foreign_keys=ON")

        def connected(connection: sa.Connection) -> None:
            if "tidings" not in connection.info:
                cursor = connection.connection.cursor()
                for pragma in pragmas:
                    cursor.execute(pragma)
                cursor.close()
                connection.info["tidings"] = True

        def begin(connection: sa.Connection) -> None:
            how = connection.get_execution_options().get(BEGIN, IMMEDIATE)
            if how:
                connection.exec_driver_sql(how)

        event.listen(engine, "engine_connect", connected)
        event.listen(engine, "begin", begin)

    def demand(self) -> None:
        if self._find() is None:
            raise ConfigurationError(f"there is no file {self.path}. Is its name right? tidings db init makes it")

    def set_up(self, connection: sa.Connection) -> None:
        """Check the server and create what is missing; several processes may do so at once.

        Raises:
            ConfigurationError: this SQLite is too old, or the file cannot have a write-ahead log.
        """
        if sqlite3.sqlite_version_info < (3, 35):
            raise ConfigurationError(
                f"SQLite {sqlite3.sqlite_version} is too old: Tidings needs 3.35 or newer, which every Python built"
                " since 2021 brings"
            )
        # On the driver's connection, because a live engine may have hooks that begin; and it cannot be switched then.
        cursor = connection.connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        (mode,) = cursor.fetchone() or ("unknown",)
        cursor.close()
        if mode != "wal":
            raise ConfigurationError(f"{self} has journal mode {mode} and cannot be switched to WAL, which is needed")
        how = connection.get_execution_options().get(BEGIN, IMMEDIATE)
        reading = connection.execution_options(**{BEGIN: ""})
        current = tables.found_version(reading) == tables.SCHEMA_VERSION
        if self.in_transaction(self.driver_of(connection)):
            # A live engine has hooks that begin, such as SQLAlchemy's documentation gives; they follow ours.
            connection.engine.update_execution_options(**{BEGIN: ""})
            how = ""
        connection.rollback()
        if not current:
            with connection.execution_options(**{BEGIN: how}).begin():
                tables.ensure(connection)
        self._inode = self._find()

    # ------------------------------------------------------------------ the file

    def check(self) -> None:
        """See that the file is still the one that was opened: SQLite would go on writing into a deleted one.

        Raises:
            StoreUnavailable: it was removed or replaced.
        """
        found = self._find()
        if found != self._inode:
            was = "removed" if found is None else "replaced"
            raise StoreUnavailable(f"{self} was {was} while it was in use. Nothing more is written until it is back")

    @property
    def replaced(self) -> bool:
        found = self._find()
        return found is not None and found != self._inode

    def _find(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    # ------------------------------------------------------------------ the inbox

    def claim_keys(self, connection: sa.Connection, rows: Sequence[Row]) -> tuple[set[Pair], Found]:
        now = time.time()
        new: set[Pair] = set()
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            parameters = tuple(chain.from_iterable((*row, now) for row in chunk))
            found = connection.exec_driver_sql(_insert_statement(len(chunk)), parameters)
            new.update((handler, key) for handler, key in found)
        return new, self.find_keys(connection, [row[:2] for row in rows if row[:2] not in new])

    def find_keys(self, connection: sa.Connection, keys: Iterable[Pair]) -> Found:
        wanted = list(keys)
        found: Found = {}
        for start in range(0, len(wanted), CHUNK):
            chunk = wanted[start : start + CHUNK]
            rows = connection.exec_driver_sql(_find_statement(len(chunk)), tuple(chain.from_iterable(chunk)))
            found.update({(handler, key): (event_id, digest) for handler, key, event_id, digest in rows})
        return found

    def delete_keys(self, connection: sa.Connection, keys: Sequence[Pair]) -> None:
        connection.exec_driver_sql("DELETE FROM tidings_inbox WHERE handler = ? AND key = ?", list(keys))

    # ------------------------------------------------------------------ transactions and errors

    def lock(self, connection: sa.Connection) -> None:
        """Become the writer, where the transaction did not begin as one: by a first statement that writes nothing."""
        if not connection.get_execution_options().get(BEGIN, IMMEDIATE):
            connection.exec_driver_sql("DELETE FROM tidings_relay WHERE 0")

    def roll_back(self, connection: sa.Connection) -> None:
        connection.connection.rollback()

    def driver_of(self, connection: sa.Connection) -> sqlite3.Connection:
        """SQLite's own connection, also where aiosqlite stands before it.

        Only to ask about its transaction and to interrupt it, which every thread may do.
        """
        driver: Any = connection.connection.driver_connection
        return cast(sqlite3.Connection, driver if isinstance(driver, sqlite3.Connection) else driver._conn)

    def in_transaction(self, driver: sqlite3.Connection) -> bool:
        try:
            return driver.in_transaction
        except sqlite3.ProgrammingError:  # it is closed
            return False

    def lost(self, driver: sqlite3.Connection) -> bool:
        return False  # there is no server that could hang up

    def patience(self, connection: sa.Connection) -> Patience | None:
        return None

    def unsure_after(self, statement: str) -> bool:
        return False

    def whole(self, connection: sa.Connection) -> bool:
        return self.in_transaction(self.driver_of(connection))

    def reusable(self, connection: sa.Connection) -> bool:
        return not self.in_transaction(self.driver_of(connection))

    def interrupt(self, driver: sqlite3.Connection) -> None:
        try:
            driver.interrupt()
        except sqlite3.ProgrammingError:
            pass  # it was closed meanwhile

    async def stop(self, driver: sqlite3.Connection) -> None:
        self.interrupt(driver)

    async def take_away(self, driver: sqlite3.Connection, read: Read, *, in_thread: bool) -> None:
        """There is no server that could, and the connection is not closed while another thread may be in it."""
        if not in_thread:
            return  # the thread that it belongs to is nobody's, and free

        def roll_back() -> None:
            self.interrupt(driver)
            driver.execute("PRAGMA query_only=1")  # or what is written next would be committed at once
            driver.rollback()

        thread = OneThread("tidings-store")
        try:
            async with asyncio.timeout(TAKE_AWAY_WITHIN):
                await asyncio.get_running_loop().run_in_executor(thread, roll_back)
        except Exception as error:
            log.warning("%s: a transaction could not be taken from a handler that did not end: %s", self, error)

    def cut(self, driver: sqlite3.Connection) -> None:
        """There is no server: it is the handler itself that goes on, and its file is not taken away from it."""

    def fits(self, messages: Sequence[Message]) -> None:
        """A row may be as large as an event."""

    def will_commit(self, connection: sa.Connection) -> bool:
        """Whether what is written now waits for a commit: false where each statement commits by itself."""
        driver = self.driver_of(connection)
        # With an isolation level the driver begins before the next INSERT.
        return driver.in_transaction or driver.isolation_level is not None

    def same_database(self, connection: sa.Connection) -> bool:
        """Whether a user's connection leads to this database, as far as its URL tells."""
        url = connection.engine.url
        try:
            return Path(_file_of(url)).resolve() == self.path.resolve()
        except ConfigurationError:  # in memory, or made by the user's own function
            return False

    def world(self, error: BaseException) -> WorldError | None:
        """What an error of the database means, when it is not the statement's own fault."""
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        if not isinstance(cause, sqlite3.Error):
            return pool_error(self, error)
        name: str = getattr(cause, "sqlite_errorname", None) or ""
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
            return Contention(f"{self} is locked by another writer, for more than {self._lock_timeout:g} s")
        for code, meaning in UNAVAILABLE.items():
            if name.startswith(code):
                return StoreUnavailable(f"{self}: {self._explain(code) or meaning} ({cause})")
        if not name and str(cause).lower() in ("connection closed", "no active connection"):
            return StoreUnavailable(f"{self}: the connection was closed")
        return None

    def of_handler(self, error: BaseException) -> WorldError | None:
        """A lock error is the handler's own: its transaction holds the only lock there is, so the error comes from a
        second connection of the handler's, which waits for the first and would do so each time.
        """
        known = self.world(error)
        return None if isinstance(known, Contention) else known

    def misled(self, error: BaseException) -> bool:
        return False

    def ends_all(self, error: BaseException) -> bool:
        return False

    def _explain(self, code: str) -> str:
        if code != "SQLITE_CANTOPEN":
            return ""
        if self.path.is_dir():
            return "it cannot be opened: it is a folder. Name a file"
        if not self.path.parent.is_dir():
            return f"it cannot be opened: there is no folder {self.path.parent}. Make it"
        return "it cannot be opened. May this user read and write the file and its folder?"


UNAVAILABLE: Final = {
    "SQLITE_CANTOPEN": "it cannot be opened",
    "SQLITE_READONLY": "it may only be read. May this user write the file and its folder?",
    "SQLITE_FULL": "there is no room left. Make room on the disk, or raise the database's page limit",
    "SQLITE_IOERR": "the disk does not work as it should",
    "SQLITE_NOTADB": "the file is no SQLite database. Name another",
    "SQLITE_CORRUPT": "the file is damaged. Restore it from a backup",
    "SQLITE_PERM": "access is denied",
    "SQLITE_NOLFS": "the file is too large for this file system",
    "SQLITE_NOMEM": "there is not enough memory",
}


def _file_of(url: sa.URL) -> str:
    """The file that a URL names, also in SQLite's own form (``file:x.db?mode=ro&uri=true``)."""
    name = url.database or ""
    query: dict[str, Any] = dict(url.query)
    if name in ("", ":memory:", "file::memory:") or query.get("mode") == "memory":
        raise ConfigurationError(
            "a SQLite database in memory keeps nothing and cannot be shared by connections. Name a file"
            " (sqlite:///service.db), or in tests use memory:"
        )
    return name.removeprefix("file:") if name.startswith("file:") else name


@lru_cache(maxsize=1024)
def _insert_statement(rows: int) -> str:
    values = ", ".join(["(?, ?, ?, ?, ?)"] * rows)
    return (
        "INSERT INTO tidings_inbox (handler, key, event_id, digest, applied_at)"
        f" VALUES {values} ON CONFLICT DO NOTHING RETURNING handler, key"
    )


@lru_cache(maxsize=1024)
def _find_statement(rows: int) -> str:
    values = ", ".join(["(?, ?)"] * rows)
    return f"SELECT handler, key, event_id, digest FROM tidings_inbox WHERE (handler, key) IN (VALUES {values})"
