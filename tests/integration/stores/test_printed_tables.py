"""What `tidings db sql` prints makes tables that a store takes as its own, on every database."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.integration.stores.ledger import Where, key, query, sync_url_of, url_of
from tidings.errors import ConfigurationError
from tidings.outbox import ddl, tables
from tidings.ports import State
from tidings.stores import schema_sql
from tidings.stores.postgres import PostgresStore
from tidings.stores.sqlalchemy import SqlAlchemyStore


def shape(where: Where) -> dict[str, Any]:
    """Columns and indexes of all tables."""
    engine = sa.create_engine(sync_url_of(where), poolclass=sa.NullPool)
    found: dict[str, Any] = {}
    with engine.connect() as connection:
        inspector = sa.inspect(connection)
        for name in sorted(tables.metadata.tables):
            columns = [(one["name"], str(one["type"]), one["nullable"]) for one in inspector.get_columns(name)]
            indexes = sorted((str(one["name"]), tuple(one["column_names"])) for one in inspector.get_indexes(name))
            found[name] = (columns, inspector.get_pk_constraint(name)["constrained_columns"], indexes)
    engine.dispose()
    return found


def execute(where: Where, statements: list[str]) -> None:
    for statement in statements:
        query(where, statement)


async def use(where: Where) -> None:
    store = SqlAlchemyStore(url_of(where))
    await store.open()
    try:
        async with store.claim([key("@a")], resource=None, sync=False) as claim:
            assert [one.state for one in claim.states] == [State.NEW]
    finally:
        await store.close()


async def test_a_store_takes_the_printed_tables_as_its_own(empty: Where, tmp_path: Path) -> None:
    dialect = "sqlite" if isinstance(empty, Path) else empty.partition(":")[0].partition("+")[0]
    execute(empty, ddl.create(dialect))
    printed = shape(empty)
    await use(empty)
    assert query(empty, "SELECT version FROM tidings_schema") == [(tables.SCHEMA_VERSION,)]
    assert query(empty, "SELECT count(*) FROM tidings_relay") == [(1,)]
    for name in tables.metadata.tables:
        query(empty, f"DROP TABLE {name}")
    await use(empty)
    assert shape(empty) == printed


async def test_the_store_through_asyncpg_takes_its_own_too(postgres_url: str) -> None:
    where = postgres_url.replace("postgresql:", "postgresql+asyncpg:")
    execute(where, schema_sql("postgresql"))
    store = PostgresStore(postgres_url)
    await store.open()
    try:
        async with store.claim([key("@a")], resource=None, sync=False) as claim:
            assert [one.state for one in claim.states] == [State.NEW]
    finally:
        await store.close()
    assert query(where, "SELECT count(*) FROM tidings_schema") == [(1,)]


def test_the_printed_steps_bring_old_tables_to_the_present_version(tmp_path: Path) -> None:
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    execute(new, ddl.create("sqlite"))
    with closing(sqlite3.connect(old)) as connection:
        connection.executescript(
            """
            CREATE TABLE tidings_inbox (handler TEXT, key TEXT, event_id TEXT, PRIMARY KEY (handler, key));
            CREATE TABLE tidings_outbox (id INTEGER PRIMARY KEY, stream TEXT, key TEXT, retry_at DOUBLE, parked INT);
            CREATE INDEX tidings_outbox_held ON tidings_outbox (stream, key) WHERE retry_at > 0;
            CREATE TABLE tidings_schema (version INTEGER PRIMARY KEY, made_at DOUBLE NOT NULL);
            INSERT INTO tidings_inbox VALUES ('h', 'e1', 'e1'), ('h', 'order_id:e2', 'e2');
            """
        )
    execute(old, ddl.upgrade("sqlite", 1))
    indexes = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND name LIKE 'tidings%' ORDER BY name"
    assert query(old, indexes) == query(new, indexes)
    assert query(old, "SELECT key FROM tidings_inbox ORDER BY key") == [("@e1",), ("order_id:e2",)]
    assert query(old, "SELECT version FROM tidings_schema") == [(2,)]
    with pytest.raises(ConfigurationError, match="versions 1 to 2"):
        ddl.upgrade("sqlite", 0)
    assert ddl.upgrade("sqlite", 2) == []
