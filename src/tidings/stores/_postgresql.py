"""What is particular to PostgreSQL: how to connect, begin, insert keys, and what its errors mean."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from tidings.delivery import Message
from tidings.errors import ConfigurationError, Contention, MisuseError, StoreUnavailable, WorldError
from tidings.outbox import tables
from tidings.stores import _passwords
from tidings.stores._database import BEGIN, Found, Pair, Read, Row, installed, pool_error, pool_options, same_home
from tidings.stores._patience import POSTGRES, Patience

LOCK: Final = 0x7469_6469_6E67_7301
"""The advisory lock under which tables are created: "tidings", and a number."""

INSTALL: Final = "Install it with: pip install 'tidings[sqlalchemy-postgres]'"

STOP_WITHIN: Final = 2.0
PROXY: Final = "tidings: a proxy stands between"

UNPREPARED: Final[dict[str, Any]] = {"prepare_threshold": None}
"""For psycopg: a proxy may give each transaction another session, in which nothing was prepared."""

LIBPQ: Final = frozenset({
    "application_name", "channel_binding", "client_encoding", "connect_timeout", "gssencmode", "host", "keepalives",
    "keepalives_count", "keepalives_idle", "keepalives_interval", "options", "passfile", "port", "require_auth",
    "service", "sslcert", "sslcrl", "sslkey", "sslmode", "sslpassword", "sslrootcert", "target_session_attrs",
    "tcp_user_timeout",
})  # fmt: skip
"""What may stand behind the question mark of a URL for psycopg; asyncpg has words of its own."""


class Postgresql:
    """One PostgreSQL database. Connections stand in AUTOCOMMIT, and transactions are begun and ended in words.

    So the isolation level and the bound on lock waits travel with BEGIN, and the answer to COMMIT is seen: after an
    error that somebody passed over it is ROLLBACK, and no driver says so.
    """

    dialects: tuple[str, ...] = ("postgresql",)
    utf8 = True
    one_writer = False
    aborts = True
    survives_cancel = True
    commits_by_cancel = True
    replaced = False

    def __init__(self, url: sa.URL, *, lock_timeout: float, answers_within: float) -> None:
        self._url = url
        self._async_driver = url.drivername.partition("+")[2].removesuffix("_async")
        if not installed(self._async_driver):
            raise ConfigurationError(f"{url.drivername}: the driver {self._async_driver} is not installed. {INSTALL}")
        self._lock_timeout = lock_timeout
        self._pool = pool_options(answers_within)
        self.answers_within: float | None = answers_within + lock_timeout
        milliseconds = max(1, int(lock_timeout * 1000))
        self._begin = f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {milliseconds}"
        self._home: float | None = None
        self._direct = False
        """It is known that no proxy stands between."""

    def __str__(self) -> str:
        return f"the PostgreSQL database {self._url.database} on {self._url.host or 'this host'}"

    # ------------------------------------------------------------------ connecting

    def async_engine(self) -> AsyncEngine:
        options = UNPREPARED if self._async_driver == "psycopg" else {}
        return _passwords.async_engine(self._url, **self._pool, connect_args=options)

    def sync_engine(self) -> sa.Engine | None:
        if not installed("psycopg"):
            return None
        query: Mapping[str, Any] = self._url.query
        if self._async_driver == "asyncpg":
            query = {name: value for name, value in query.items() if name in (*LIBPQ, _passwords.OPTION)}
            if "ssl" in self._url.query and "sslmode" not in query:
                query = {**query, "sslmode": self._url.query["ssl"]}
        url = self._url.set(drivername="postgresql+psycopg", query=query)
        return _passwords.sync_engine(
            url,
            **self._pool,
            connect_args=UNPREPARED,
        )

    def check_sync(self) -> None:
        if not installed("psycopg"):
            raise ConfigurationError(f"sync handlers on PostgreSQL need the driver psycopg. {INSTALL}")

    def prepare(self, engine: sa.Engine, *, ours: bool) -> None:
        def begin(connection: sa.Connection) -> None:
            if connection.get_execution_options().get(BEGIN, True):
                _say(connection, self._begin)

        def commit(connection: sa.Connection) -> None:
            if connection.get_execution_options().get(BEGIN, True) and _say(connection, "COMMIT") != "COMMIT":
                raise MisuseError(
                    "a handler passed over an error of the database, after which PostgreSQL commits nothing. Use"
                    " begin_nested() around what may fail"
                )

        def rollback(connection: sa.Connection) -> None:
            if connection.get_execution_options().get(BEGIN, True) and not connection.invalidated:
                _say(connection, "ROLLBACK")

        def connected(dbapi_connection: Any, record: object) -> None:
            if not self._direct:
                self._refuse_a_proxy(dbapi_connection)

        if ours and engine.dialect.driver == "asyncpg":
            # Before SQLAlchemy says its first word, which it prepares.
            event.listen(engine, "connect", connected, insert=True)
        event.listen(engine, "begin", begin)
        event.listen(engine, "commit", commit)
        event.listen(engine, "rollback", rollback)

    def demand(self) -> None:
        """A server makes no database by itself."""

    def set_up(self, connection: sa.Connection) -> None:
        if connection.dialect.driver == "asyncpg" and not self._direct:
            self._refuse_a_proxy(connection.connection.dbapi_connection)
        reading = connection.execution_options(**{BEGIN: ""})
        version = reading.exec_driver_sql("SHOW server_version_num").scalar()
        encoding = reading.exec_driver_sql("SHOW server_encoding").scalar()
        reading.rollback()
        if int(version or 0) < 120000:
            raise ConfigurationError(f"{self} is older than PostgreSQL 12, which is the oldest that Tidings uses")
        if encoding != "UTF8":
            raise ConfigurationError(f"{self} has the encoding {encoding}. Tidings needs one with UTF8")
        with connection.execution_options(**{BEGIN: "yes"}).begin():
            if tables.found_version(connection) != tables.SCHEMA_VERSION:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
                tables.ensure(connection)
            self._home = tables.made_at(connection)

    def _refuse_a_proxy(self, dbapi_connection: Any) -> None:
        """SQLAlchemy prepares every statement through asyncpg; behind a proxy the next may meet another session.

        A proxy tells a session's number of its own making. It is compared by the server, in a statement that is not
        prepared: what others left prepared in its session would make that fail.
        """
        try:
            dbapi_connection.run_async(
                lambda driver: driver.execute(
                    f"DO $$ BEGIN IF pg_backend_pid() <> {driver.get_server_pid():d} THEN"
                    f" RAISE EXCEPTION '{PROXY}'; END IF; END $$"
                )
            )
        except Exception as error:
            if PROXY not in str(error):
                raise
            raise ConfigurationError(
                f"{self} is behind a proxy (PgBouncer?), where statements get lost that SQLAlchemy prepares through"
                " asyncpg. Write postgresql+psycopg://…, which prepares none, or postgresql://… for the store on"
                " asyncpg alone; or connect to the server itself"
            ) from None
        self._direct = True

    def check(self) -> None:
        """A server says itself when it is gone."""

    # ------------------------------------------------------------------ transactions

    def lock(self, connection: sa.Connection) -> None:
        """Rows are locked by their writers."""

    def roll_back(self, connection: sa.Connection) -> None:
        _say(connection, "ROLLBACK")

    def driver_of(self, connection: sa.Connection) -> Any:
        return connection.connection.driver_connection

    def in_transaction(self, driver: Any) -> bool:
        if hasattr(driver, "is_in_transaction"):
            return not driver.is_closed() and bool(driver.is_in_transaction())
        return not driver.closed and driver.pgconn.transaction_status in (1, 2, 3)  # active, in one, in a failed one

    def lost(self, driver: Any) -> bool:
        return _closed(driver)

    def patience(self, connection: sa.Connection) -> Patience | None:
        found = connection.exec_driver_sql(POSTGRES).one_or_none()
        return None if found is None else (found[0], found[1])

    def unsure_after(self, statement: str) -> bool:
        return False

    def whole(self, connection: sa.Connection) -> bool:
        try:
            _say(connection, "SELECT 1")
        except Exception as error:
            if _sqlstate(error) != "25P02":
                raise
            return False
        return True

    def reusable(self, connection: sa.Connection) -> bool:
        driver = self.driver_of(connection)
        return not _closed(driver) and not self.in_transaction(driver)

    def interrupt(self, driver: Any) -> None:
        """The drivers for asyncio tell the server themselves when their task is cancelled."""

    async def stop(self, driver: Any) -> None:
        if hasattr(driver, "cancel_safe") and not asyncio.iscoroutinefunction(driver.cancel_safe):
            with suppress(Exception):  # it is closed, or the server does not answer; then it is cut off
                async with asyncio.timeout(STOP_WITHIN + 0.5):
                    await asyncio.to_thread(driver.cancel_safe, timeout=STOP_WITHIN)

    async def take_away(self, driver: Any, read: Read, *, in_thread: bool) -> None:
        # The server would not see that a connection was cut while it is at a statement of it.
        with suppress(Exception):  # it is closed, or the server does not answer
            number = driver.info.backend_pid if hasattr(driver, "info") else driver.get_server_pid()
            async with asyncio.timeout(STOP_WITHIN):
                await read(lambda connection: connection.exec_driver_sql(f"SELECT pg_terminate_backend({number})"))
        self.cut(driver)

    def cut(self, driver: Any) -> None:
        if hasattr(driver, "terminate"):
            driver.terminate()
            return
        with suppress(Exception):  # it was closed meanwhile
            with socket.socket(fileno=os.dup(driver.fileno())) as one:
                one.shutdown(socket.SHUT_RDWR)

    # ------------------------------------------------------------------ the inbox and the outbox

    def claim_keys(self, connection: sa.Connection, rows: Sequence[Row]) -> tuple[set[Pair], Found]:
        handlers, keys, event_ids, digests = (list(column) for column in zip(*rows, strict=True))
        found = connection.exec_driver_sql(
            _statement(
                "INSERT INTO tidings_inbox (handler, key, event_id, digest, applied_at)"
                " SELECT *, {}::float8 FROM unnest({}::text[], {}::text[], {}::text[], {}::bytea[])"
                " ON CONFLICT DO NOTHING RETURNING handler, key",
                self._numbered(connection),
            ),
            (time.time(), handlers, keys, event_ids, digests),
        )
        new = {(handler, key) for handler, key in found}
        missing = [row[:2] for row in rows if row[:2] not in new]
        return new, self.find_keys(connection, missing) if missing else {}

    def find_keys(self, connection: sa.Connection, keys: Iterable[Pair]) -> Found:
        wanted = list(keys)
        found = connection.exec_driver_sql(
            _statement(
                "SELECT handler, key, event_id, digest FROM tidings_inbox"
                " JOIN unnest({}::text[], {}::text[]) AS wanted (handler, key) USING (handler, key)",
                self._numbered(connection),
            ),
            ([handler for handler, _ in wanted], [key for _, key in wanted]),
        )
        return {(handler, key): (event_id, bytes(digest)) for handler, key, event_id, digest in found}

    def delete_keys(self, connection: sa.Connection, keys: Sequence[Pair]) -> None:
        connection.exec_driver_sql(
            _statement(
                "DELETE FROM tidings_inbox WHERE (handler, key) IN (SELECT * FROM unnest({}::text[], {}::text[]))",
                self._numbered(connection),
            ),
            ([handler for handler, _ in keys], [key for _, key in keys]),
        )

    @staticmethod
    def _numbered(connection: sa.Connection) -> bool:
        return connection.dialect.paramstyle == "numeric_dollar"

    def fits(self, messages: Sequence[Message]) -> None:
        """A row may be as large as an event."""

    def will_commit(self, connection: sa.Connection) -> bool:
        driver = self.driver_of(connection)
        if not self.in_transaction(driver):
            connection.exec_driver_sql("SELECT 1")  # SQLAlchemy begins with the first statement
        return self.in_transaction(driver)

    def same_database(self, connection: sa.Connection) -> bool:
        return same_home(connection, self._home)

    # ------------------------------------------------------------------ errors

    def world(self, error: BaseException) -> WorldError | None:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        state = _sqlstate(cause)
        if state in CONTENTION:
            return Contention(f"{self}: {CONTENTION[state].format(self._lock_timeout)} ({state})")
        meaning = UNAVAILABLE.get(state) or UNAVAILABLE.get(state[:2])
        if meaning is None and not state and cause is not None and _is_lost(cause):
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
        return _sqlstate(error) == READ_ONLY

    def ends_all(self, error: BaseException) -> bool:
        return False  # a savepoint may take a lock error back


CONTENTION: Final = {
    "40001": "other transactions changed the same rows",
    "40P01": "a deadlock with another transaction",
    "55P03": "others kept rows locked for more than {:g} s",
}

READ_ONLY: Final = "25006"

UNAVAILABLE: Final = {
    "08": "the connection was lost",
    READ_ONLY: "it may only be read just now: is it a standby, or set to read only?",
    "28": "the login was refused. Are user and password right, and does pg_hba.conf let this user in?",
    "3D": "there is no such database. Create it",
    "53100": "its disk is full",
    "53200": "it is out of memory",
    "53300": "it has too many connections. Make pools smaller, or raise max_connections",
    "53": "it is out of something that it needs",
    "57P01": "it was shut down, or an administrator ended the connection",
    "57P02": "one of its processes crashed, and it restarts",
    "57P03": "it is starting or stopping",
    "57P04": "the database was dropped",
    "57P05": "the connection was idle for too long",
    "25P03": "the transaction was idle for longer than idle_in_transaction_session_timeout allows",
    "58": "the operating system failed it",
    "XX001": "its data is damaged. Restore it from a backup",
    "XX002": "an index is damaged. Reindex it",
}


def _sqlstate(error: object) -> str:
    return str(getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "")


def _is_lost(error: BaseException) -> bool:
    """An error without a state of the server's: of the network, or of a driver whose connection is closed."""
    if isinstance(error, OSError):  # TimeoutError is one
        return True
    text = str(error).lower()
    kind = type(error).__name__
    return kind == "OperationalError" or (
        kind in ("InterfaceError", "InternalClientError", "ConnectionDoesNotExistError") and "clos" in text
    )


def _closed(driver: Any) -> bool:
    return bool(driver.is_closed() if hasattr(driver, "is_closed") else driver.closed)


def _say(connection: sa.Connection, words: str) -> str:
    """Send words as they are, in one round; the server's answer, such as COMMIT.

    Raises:
        Exception: the driver's own, or SQLAlchemy's where the connection is lost, so that its pool knows.
    """
    adapted: Any = connection.connection.dbapi_connection
    driver: Any = connection.connection.driver_connection
    try:
        if hasattr(adapted, "run_async"):
            answer = adapted.run_async(lambda driver: driver.execute(words))
        else:
            answer = driver.execute(words)
    except Exception:
        if _closed(driver):
            connection.exec_driver_sql("SELECT 1")
        raise
    return str(answer if isinstance(answer, str) else answer.statusmessage)


@cache
def _statement(words: str, numbered: bool) -> str:
    """With the driver's own marks for parameters."""
    marks = (f"${number}" for number in range(1, 10)) if numbered else ["%s"] * 9
    return words.format(*marks)
