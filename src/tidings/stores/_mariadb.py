"""What is particular to MariaDB: how to connect, begin, insert keys, and what its errors mean."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from tidings.delivery import Message
from tidings.errors import ConfigurationError, Contention, EventTooLarge, MisuseError, StoreUnavailable, WorldError
from tidings.outbox import tables
from tidings.stores import _passwords
from tidings.stores._database import BEGIN, Found, Pair, Read, Row, installed, pool_error, pool_options, same_home
from tidings.stores._mariadb_errors import CONTENTION, DEADLOCK, READ_ONLY, UNAVAILABLE
from tidings.stores._patience import Patience

log = logging.getLogger("tidings.store")

CHUNK: Final = 1000
"""Rows in one statement."""

LOCK: Final = "tidings_tables"
INSTALL: Final = "Install it with: pip install 'tidings[mariadb]'"
OLDEST: Final = (10, 5)
"""INSERT … RETURNING came with it."""
LEAST_PACKET: Final = 4 * 1024 * 1024
TOKEN: Final = 8
"""Bytes behind a digest that say which claim inserted the row."""
CLAIM_TRIES: Final = 3
STOP_WITHIN: Final = 2.0

IDLE: Final = (
    "idle_transaction_timeout",
    "idle_write_transaction_timeout",
    "idle_readonly_transaction_timeout",
    "wait_timeout",
)
"""Settings after which the server ends a session that waits inside a transaction."""

IN_TRANSACTION: Final = 1
AUTOCOMMIT: Final = 2
NO_BACKSLASH_ESCAPES: Final = 512
"""Flags of the server's answers."""

# After these the answer says truly whether a transaction is open. Others may commit before they do what they say, and
# an answer with rows (ANALYZE TABLE) does not tell.
PLAIN: Final = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|REPLACE|SAVEPOINT|RELEASE|ROLLBACK|WITH|VALUES)\b", re.I)


class Mariadb:
    """One MariaDB database. Connections stand in autocommit, and each transaction is begun in words.

    So what commits by itself (a statement that changes tables) leaves no transaction behind, which is seen.
    """

    dialects: tuple[str, ...] = ("mysql", "mariadb")
    utf8 = True
    one_writer = False
    aborts = False
    survives_cancel = False  # the driver closes a connection whose statement was cancelled
    commits_by_cancel = False
    replaced = False

    def __init__(self, url: sa.URL, *, lock_timeout: float, answers_within: float) -> None:
        if not installed("aiomysql", "pymysql"):
            raise ConfigurationError(f"{url.drivername}: the driver aiomysql is not installed. {INSTALL}")
        _check_drivers()
        self._url = url
        self._wait = max(1, math.ceil(lock_timeout))
        self._pool = pool_options(answers_within)
        self.answers_within: float | None = answers_within + self._wait
        self._most = 0
        self._home: float | None = None

    def __str__(self) -> str:
        return f"the MariaDB database {self._url.database} on {self._url.host or 'this host'}"

    # ------------------------------------------------------------------ connecting

    def async_engine(self) -> AsyncEngine:
        return _passwords.async_engine(self._url.set(drivername="mariadb+aiomysql"), **self._pool)

    def sync_engine(self) -> sa.Engine | None:
        return _passwords.sync_engine(self._url.set(drivername="mariadb+pymysql"), **self._pool)

    def check_sync(self) -> None:
        """The driver comes with the one for asyncio."""

    def prepare(self, engine: sa.Engine, *, ours: bool) -> None:
        limits = f"innodb_lock_wait_timeout = {self._wait}, lock_wait_timeout = {self._wait}"
        strict = "sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')"

        def connected(connection: sa.Connection) -> None:
            if "tidings" not in connection.info:
                _ask(connection, f"SET SESSION {limits}, {strict}, tx_isolation = 'READ-COMMITTED'")
                connection.info["tidings"] = True

        def begin(connection: sa.Connection) -> None:
            if not connection.get_execution_options().get(BEGIN, True):
                return
            if not ours:  # its owner's own transactions stay as they were: `reusable` puts this back
                if "tidings" not in connection.info:
                    row = _ask(connection, "SELECT @@innodb_lock_wait_timeout, @@lock_wait_timeout, @@sql_mode")
                    connection.info["tidings"] = (
                        f"SET SESSION innodb_lock_wait_timeout = {int(row[0])}, lock_wait_timeout = {int(row[1])},"
                        f" sql_mode = '{row[2]}'"
                    )
                connection.exec_driver_sql(f"SET SESSION {limits}, {strict}")
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            connection.exec_driver_sql("START TRANSACTION")
            if trouble := self._spoils(connection):
                raise StoreUnavailable(trouble)

        if ours:
            event.listen(engine, "engine_connect", connected)
        event.listen(engine, "begin", begin)

    def demand(self) -> None:
        """A server makes no database by itself."""

    def set_up(self, connection: sa.Connection) -> None:
        reading = connection.execution_options(**{BEGIN: ""})
        dialect: Any = connection.dialect
        version = reading.exec_driver_sql("SELECT version()").scalar() or ""
        packet, charset = reading.exec_driver_sql("SELECT @@max_allowed_packet, @@character_set_client").one()
        if not dialect.is_mariadb or dialect.server_version_info[:2] < OLDEST:
            raise ConfigurationError(f"{self} is of version {version}. Tidings needs MariaDB 10.5 or newer")
        if packet < LEAST_PACKET:
            raise ConfigurationError(
                f"{self} takes {packet} bytes at once (max_allowed_packet): too few for large events. Set it to 16M"
            )
        if charset != "utf8mb4":
            raise ConfigurationError(f"{self}: the connection has charset {charset}. Leave it out of the URL: utf8mb4")
        if trouble := self._spoils(connection):
            raise ConfigurationError(trouble)
        # A byte may become two on its way, and the rest of the row has its place.
        self._most = (packet - 64 * 1024) // 2
        if tables.found_version(reading) != tables.SCHEMA_VERSION:
            self._create(reading)
        self._home = tables.made_at(reading)
        reading.rollback()

    def _spoils(self, connection: sa.Connection) -> str:
        """Why bytes do not arrive as they are: aiomysql escapes them with backslashes, whatever the mode.

        A digest that comes back as another one is somebody else's, so that new events would count as applied.
        """
        driver = self.driver_of(connection)
        if connection.dialect.driver != "aiomysql" or not driver.server_status & NO_BACKSLASH_ESCAPES:
            return ""
        return (
            f"{self} is in the mode NO_BACKSLASH_ESCAPES, in which the driver aiomysql spoils bytes. Take it out of the"
            " server's sql_mode, or set another for these connections: add"
            " ?init_command=SET%20sql_mode%3D%27STRICT_TRANS_TABLES%27 to the URL"
        )

    def _create(self, connection: sa.Connection) -> None:
        """Each statement that makes a table commits by itself, so the lock is one of the connection's."""
        got = connection.exec_driver_sql(f"SELECT GET_LOCK(CONCAT(DATABASE(), '.{LOCK}'), {self._wait})").scalar()
        if got != 1:
            raise Contention(f"{self}: another process has been creating the tables for more than {self._wait} s")
        try:
            tables.ensure(connection)
        finally:
            connection.exec_driver_sql(f"SELECT RELEASE_LOCK(CONCAT(DATABASE(), '.{LOCK}'))")

    def check(self) -> None:
        """A server says itself when it is gone."""

    # ------------------------------------------------------------------ transactions

    def lock(self, connection: sa.Connection) -> None:
        """Rows are locked by their writers."""

    def roll_back(self, connection: sa.Connection) -> None:
        connection.connection.rollback()

    def driver_of(self, connection: sa.Connection) -> Any:
        return connection.connection.driver_connection

    def in_transaction(self, driver: Any) -> bool:
        return not _closed(driver) and bool(driver.server_status & IN_TRANSACTION)

    def lost(self, driver: Any) -> bool:
        return _closed(driver)

    def patience(self, connection: sa.Connection) -> Patience | None:
        found = connection.exec_driver_sql(f"SELECT {', '.join(f'@@{name}' for name in IDLE)}").one()
        limits = [(name, float(seconds)) for name, seconds in zip(IDLE, found, strict=True) if seconds]
        return min(limits, key=lambda limit: limit[1], default=None)

    def unsure_after(self, statement: str) -> bool:
        return not PLAIN.match(statement)

    def whole(self, connection: sa.Connection) -> bool:
        return int(_ask(connection, "SELECT @@in_transaction")[0]) == 1

    def reusable(self, connection: sa.Connection) -> bool:
        driver = self.driver_of(connection)
        if _closed(driver) or self.in_transaction(driver) or not driver.server_status & AUTOCOMMIT:
            return False
        restore = connection.info.get("tidings")
        if isinstance(restore, str):
            try:
                _ask(connection, restore)
            except Exception as error:
                log.debug("%s: the connection's settings could not be put back: %s", self, error)
                return False
        return True

    def interrupt(self, driver: Any) -> None:
        """It takes another connection; see `stop`."""

    async def stop(self, driver: Any) -> None:
        import pymysql

        def kill() -> None:
            arguments = _passwords.connect_arguments(self._url.set(drivername="mariadb+pymysql"))
            arguments |= dict.fromkeys(("connect_timeout", "read_timeout", "write_timeout"), STOP_WITHIN)
            with pymysql.connect(**arguments) as one, one.cursor() as cursor:
                cursor.execute(f"KILL CONNECTION {int(driver.server_thread_id[0])}")

        try:
            async with asyncio.timeout(2 * STOP_WITHIN):
                await asyncio.to_thread(kill)
        except Exception as error:
            log.debug("%s: a statement could not be stopped: %s", self, error)

    async def take_away(self, driver: Any, read: Read, *, in_thread: bool) -> None:
        await self.stop(driver)
        self.cut(driver)

    def cut(self, driver: Any) -> None:
        with suppress(Exception):  # it was closed meanwhile
            if hasattr(driver, "_sock"):
                with socket.socket(fileno=os.dup(driver._sock.fileno())) as one:
                    one.shutdown(socket.SHUT_RDWR)
            else:
                driver.close()

    # ------------------------------------------------------------------ the inbox and the outbox

    def claim_keys(self, connection: sa.Connection, rows: Sequence[Row]) -> tuple[set[Pair], Found]:
        """One statement says what was new and what the others are.

        A key that is there is locked and left as it is, and comes back with the token of the claim that inserted it.
        INSERT IGNORE would pass over every other error, too; and after a plain INSERT that fails, all that waited hold
        a shared lock and stand in each other's way.
        """
        for left in reversed(range(CLAIM_TRIES)):
            try:
                return self._claim_keys(connection, rows)
            except sa.exc.DBAPIError as error:
                # Those who wait for a key whose owner rolls back may deadlock. Nothing is done yet: begin anew.
                if not left or _code(error.orig) != DEADLOCK:
                    raise
                if connection.connection.driver_connection is not None:
                    connection.exec_driver_sql("ROLLBACK")
                    if isinstance(connection.info.get("tidings"), str):
                        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                    connection.exec_driver_sql("START TRANSACTION")
        raise AssertionError("not reached")

    def _claim_keys(self, connection: sa.Connection, rows: Sequence[Row]) -> tuple[set[Pair], Found]:
        now, token = time.time(), os.urandom(TOKEN)
        new: set[Pair] = set()
        known: Found = {}
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            parameters = tuple(chain.from_iterable((*row[:3], row[3] + token, now) for row in chunk))
            for handler, key, event_id, digest in connection.exec_driver_sql(_insert(len(chunk)), parameters):
                if digest.endswith(token):
                    new.add((handler, key))
                else:
                    known[handler, key] = event_id, digest[:-TOKEN]
        return new, known

    def find_keys(self, connection: sa.Connection, keys: Iterable[Pair]) -> Found:
        wanted = list(keys)
        found: Found = {}
        for start in range(0, len(wanted), CHUNK):
            chunk = wanted[start : start + CHUNK]
            rows = connection.exec_driver_sql(_find(len(chunk)), tuple(chain.from_iterable(chunk)))
            found.update({(handler, key): (event_id, digest[:-TOKEN]) for handler, key, event_id, digest in rows})
        return found

    def delete_keys(self, connection: sa.Connection, keys: Sequence[Pair]) -> None:
        connection.exec_driver_sql("DELETE FROM tidings_inbox WHERE handler = %s AND `key` = %s", list(keys))

    def fits(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if self._most and len(message.body) > self._most:
                raise EventTooLarge(
                    f"event {message.id} has {len(message.body)} bytes, and {self} takes at most {self._most}. Raise"
                    " its max_allowed_packet"
                )

    def will_commit(self, connection: sa.Connection) -> bool:
        status = self.driver_of(connection).server_status
        return bool(status & IN_TRANSACTION) or not status & AUTOCOMMIT

    def same_database(self, connection: sa.Connection) -> bool:
        if trouble := self._spoils(connection):
            raise StoreUnavailable(trouble)
        return same_home(connection, self._home)

    # ------------------------------------------------------------------ errors

    def world(self, error: BaseException) -> WorldError | None:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        code = _code(cause)
        if code in CONTENTION:
            return Contention(f"{self}: {CONTENTION[code].format(self._wait)} ({code})")
        meaning = UNAVAILABLE.get(code)
        if meaning is None and (isinstance(cause, OSError) or (code == 0 and type(cause).__name__ == "InterfaceError")):
            meaning = "it cannot be reached, or closed the connection"
        if meaning is not None:
            return StoreUnavailable(f"{self}: {meaning} ({' '.join(str(cause).split())[:300]})")
        return pool_error(self, error)

    def of_handler(self, error: BaseException) -> WorldError | None:
        # A lost connection of the handler's own, to something else, says nothing of the store.
        if not isinstance(error, (sa.exc.SQLAlchemyError, MisuseError)):
            return None
        return self.world(error)

    def misled(self, error: BaseException) -> bool:
        return _code(error) in READ_ONLY

    def ends_all(self, error: BaseException) -> bool:
        """A deadlock has rolled all back, a lock that was waited for too long only its statement: all alike here."""
        return isinstance(self.world(error), Contention)


def _check_drivers() -> None:
    """Raises ConfigurationError: two releases do not fit, which they say only when the first bytes are sent."""
    from aiomysql import connection  # type: ignore[import-untyped]  # aiomysql has no types

    if not callable(getattr(connection, "escape_bytes_prefixed", str)):
        raise ConfigurationError(
            "this aiomysql cannot send bytes with this PyMySQL, which is too new for it. Install an older one with:"
            " pip install 'pymysql<1.2'"
        )


def _code(error: object) -> int:
    """MariaDB's number of an error, 0 where it has none."""
    arguments = getattr(error, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) and not isinstance(error, OSError) else 0


def _closed(driver: Any) -> bool:
    return bool(driver.closed if hasattr(driver, "closed") else not driver.open)


def _ask(connection: sa.Connection, words: str) -> tuple[Any, ...]:
    """Ask on the driver's connection, beside all hooks."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(words)
        return tuple(cursor.fetchone() or ()) if cursor.description else ()
    finally:
        cursor.close()


@cache
def _insert(rows: int) -> str:
    values = ", ".join(["(%s, %s, %s, %s, %s)"] * rows)
    return (
        f"INSERT INTO tidings_inbox (handler, `key`, event_id, digest, applied_at) VALUES {values}"
        " ON DUPLICATE KEY UPDATE handler = handler RETURNING handler, `key`, event_id, digest"
    )


@cache
def _find(rows: int) -> str:
    values = ", ".join(["(%s, %s)"] * rows)
    return f"SELECT handler, `key`, event_id, digest FROM tidings_inbox WHERE (handler, `key`) IN ({values})"
