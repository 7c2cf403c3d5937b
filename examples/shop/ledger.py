"""The ledger: each handler writes a row for each effect, through its own connection, into a table without a unique key.

So an effect that was applied twice is two rows, and one that was lost is none.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tidings import Delivery

_CREATE = """CREATE TABLE IF NOT EXISTS ledger (
    handler TEXT NOT NULL, event_id TEXT NOT NULL, key TEXT, attempt INTEGER NOT NULL, worker INTEGER NOT NULL,
    at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ')))"""

_INSERT = text("INSERT INTO ledger (handler, event_id, key, attempt, worker) VALUES (:h, :e, :k, :a, :w)")


def create(database: Path) -> None:
    """Make the table; `database` may exist."""
    with sqlite3.connect(database, timeout=10) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(_CREATE)
    connection.close()


async def write(db: AsyncConnection, handler: str, delivery: Delivery) -> None:
    """The effect of a handler: one row."""
    row = {"h": handler, "e": delivery.event_id, "k": delivery.key, "a": delivery.attempt, "w": os.getpid()}
    await db.execute(_INSERT, row)


def effects(database: Path, handler: str) -> Counter[str]:
    """How often the effect of each key was applied by one handler."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)
    try:
        rows = connection.execute("SELECT key, count(*) FROM ledger WHERE handler = ? GROUP BY key", (handler,))
        return Counter(dict(rows.fetchall()))
    finally:
        connection.close()


def out_of_attempts(database: Path, handler: str) -> int:
    """How many effects needed more than one attempt."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)
    try:
        row = connection.execute("SELECT count(*) FROM ledger WHERE handler = ? AND attempt > 1", (handler,)).fetchone()
        return int(row[0])
    finally:
        connection.close()
