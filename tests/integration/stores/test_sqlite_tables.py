"""The tables as SQLite has them, also those of an older version."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.stores.ledger import Where, key, query
from tidings.outbox.tables import key_hash
from tidings.ports import State
from tidings.stores.sqlalchemy import SqlAlchemyStore

VERSION_1 = """
CREATE TABLE tidings_inbox (handler TEXT NOT NULL, key TEXT NOT NULL, event_id TEXT NOT NULL, digest BLOB NOT NULL,
    applied_at DOUBLE NOT NULL, PRIMARY KEY (handler, key)) WITHOUT ROWID;
CREATE TABLE tidings_outbox (id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, message_id TEXT NOT NULL,
    stream TEXT NOT NULL, type TEXT NOT NULL, key TEXT, route TEXT NOT NULL, position TEXT NOT NULL, due DOUBLE,
    headers TEXT NOT NULL, body BLOB NOT NULL, created_at DOUBLE NOT NULL, attempts INTEGER DEFAULT '0' NOT NULL,
    error TEXT, retry_at DOUBLE DEFAULT '0' NOT NULL, parked BOOLEAN DEFAULT 0 NOT NULL);
CREATE INDEX tidings_outbox_held ON tidings_outbox (stream, "key") WHERE retry_at > 0;
CREATE TABLE tidings_relay (name VARCHAR(64) NOT NULL PRIMARY KEY, owner TEXT NOT NULL, expires_at DOUBLE NOT NULL);
CREATE TABLE tidings_schema (version INTEGER NOT NULL PRIMARY KEY, made_at DOUBLE NOT NULL);
INSERT INTO tidings_outbox (message_id, stream, type, key, route, position, headers, body, created_at)
    VALUES ('m', 'stock', 'stock.reserved', 'k', 'event', '', '{}', x'00', 0);
INSERT INTO tidings_relay VALUES ('outbox', '', 0);
INSERT INTO tidings_schema VALUES (1, 0);
INSERT INTO tidings_inbox VALUES ('stock.reserve', 'e1', 'e1', x'00', 1);
INSERT INTO tidings_inbox VALUES ('stock.reserve', 'order_id:7', 'e2', x'00', 1);
"""


@pytest.fixture
def where(path: Path) -> Where:
    return path


async def test_the_tables_are_what_the_reference_says(store: SqlAlchemyStore, path: Path) -> None:
    tables = query(path, "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'tidings%' ORDER BY name")
    assert [name for (name,) in tables] == ["tidings_inbox", "tidings_outbox", "tidings_relay", "tidings_schema"]
    assert query(path, "SELECT version FROM tidings_schema") == [(2,)]
    ((inbox,),) = query(path, "SELECT sql FROM sqlite_master WHERE name = 'tidings_inbox'")
    assert "WITHOUT ROWID" in inbox
    assert [(name, place) for _, name, _, _, _, place in query(path, "PRAGMA table_info(tidings_inbox)")] == [
        ("handler", 1),
        ("key", 2),
        ("event_id", 0),
        ("digest", 0),
        ("applied_at", 0),
    ]


async def test_tables_of_version_1_are_upgraded_and_know_what_was_applied(path: Path) -> None:
    """An event that was applied before the upgrade and comes again after it is a duplicate."""
    with closing(sqlite3.connect(path)) as old:
        old.executescript(VERSION_1)
    store = SqlAlchemyStore(f"sqlite:///{path}")
    await store.open()
    try:
        async with store.claim(
            [key("@e1", "e1"), key("order_id:7", "e2"), key("@e3", "e3")], resource=None, sync=False
        ) as claim:
            assert [one.state for one in claim.states] == [State.DONE, State.DONE, State.NEW]
        assert query(path, "SELECT key_hash FROM tidings_outbox") == [(key_hash("stock", "k"),)]
        assert query(path, "SELECT version FROM tidings_schema ORDER BY version") == [(1,), (2,)]
        indexes = query(path, "SELECT name FROM sqlite_master WHERE type = 'index' AND name LIKE 'tidings%' ORDER BY 1")
        assert indexes == [("tidings_outbox_key",), ("tidings_outbox_parked",)]
    finally:
        await store.close()
