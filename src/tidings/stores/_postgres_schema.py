"""What is looked up and made when a PostgreSQL store opens: the server, the way to it, the tables."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import sqlalchemy as sa
from asyncpg.pool import PoolConnectionProxy
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateTable

from tidings.errors import ConfigurationError
from tidings.outbox import tables
from tidings.stores._postgres_connections import Connections, Lent, driver_of
from tidings.stores._postgres_sql import ONLY_TIDINGS_COMMITS

log = logging.getLogger("tidings.store")

OLDEST = 13
LOCK = 0x7469_6469_6E67_7300  # "tidings"
"""The advisory lock of whoever makes the tables. It ends with its transaction, so a proxy may stand between."""

metadata = sa.MetaData()

open_transactions = sa.Table(
    "tidings_open",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("commits", sa.Integer, nullable=False),
    # What it must not keep over a crash need not be in the log. Its rows live for the time of one transaction.
    prefixes=["UNLOGGED"],
    postgresql_with={"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "2000"},
)
"""Transactions that are lent to handlers. No row of it can ever be committed."""

_FORBID = (
    f"ALTER TABLE tidings_open ADD CONSTRAINT {ONLY_TIDINGS_COMMITS} FOREIGN KEY (commits)"
    " REFERENCES tidings_schema (version) DEFERRABLE INITIALLY DEFERRED"
)


class Seen(NamedTuple):
    """What is to be known of a server before it is used."""

    pooled: bool
    """A proxy stands between, and may give each transaction another session."""
    prepares: bool
    """The driver keeps prepared statements from one transaction to the next."""
    tables: bool
    """They are there, as this Tidings makes them."""
    synchronous_commit: str
    """What a claim sets, so that what is acknowledged after it is on disk."""


async def look(connection: Lent) -> Seen:
    """See what the server is.

    Raises:
        ConfigurationError: it is too old.
    """
    async with connection.transaction():
        if (version := connection.get_server_version()).major < OLDEST:
            raise ConfigurationError(f"PostgreSQL {version.major} is too old: Tidings needs {OLDEST} or newer")
        row = await connection.fetchrow(
            "SELECT pg_backend_pid(), to_regclass('tidings_schema') IS NOT NULL AND to_regclass('tidings_open') IS"
            " NOT NULL, current_setting('synchronous_commit'), current_setting('fsync')"
        )
        assert row is not None
        pid, present, durable, fsync = row
        if fsync != "on":
            log.warning("PostgreSQL runs with fsync=off: a loss of power can take back what was acknowledged")
        if present:
            present = await connection.fetchval("SELECT max(version) FROM tidings_schema") == tables.SCHEMA_VERSION
    driver: Any = driver_of(connection)
    return Seen(
        pooled=pid != connection.get_server_pid(),  # a proxy tells one of its own making
        prepares=bool(driver._stmt_cache.get_max_size()),
        tables=bool(present),
        synchronous_commit="on" if durable == "off" else durable,
    )


async def ensure_tables(connections: Connections) -> None:
    """Create or upgrade the tables; several processes may do so at once.

    Through SQLAlchemy, which knows them, on a connection that is used for nothing else afterwards.
    """
    connection = await connections.take()
    try:
        # Whoever has waited for the lock is to see what was made meanwhile, whatever level is the database's default.
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=_gives(connection),
            poolclass=NullPool,
            isolation_level="READ COMMITTED",
        )
        async with engine.begin() as work:
            await work.run_sync(_ensure)
    finally:
        await connections.give_back(connection, broken=True)


def _gives(connection: Lent) -> Any:
    async def create(*args: object, **options: object) -> object:
        driver: Any = connection if isinstance(connection, PoolConnectionProxy) else driver_of(connection)
        return driver

    return create


def _ensure(connection: sa.Connection) -> None:
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
    tables.ensure(connection)
    if not sa.inspect(connection).has_table(open_transactions.name):
        metadata.create_all(connection)
        connection.execute(sa.text(_FORBID))


async def identity(connection: Lent) -> tuple[str, float]:
    """The database's name, and when its tables were made."""
    row = await connection.fetchrow("SELECT current_database(), min(made_at) FROM tidings_schema")
    assert row is not None
    return str(row[0]), float(row[1])


def open_table_sql() -> list[str]:
    """The statements that make what this store has beside the tables of all."""
    dialect: sa.Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped
    create = CreateTable(open_transactions).compile(dialect=dialect)
    text = "\n".join(line.replace("\t", "    ").rstrip() for line in str(create).strip().splitlines())
    return [f"{text};", f"{_FORBID};"]
