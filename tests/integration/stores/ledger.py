"""The oracle: a table without a unique key, so that whatever is applied twice is seen twice."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tidings.delivery import Message
from tidings.ports import Claim, Key

T = TypeVar("T")

CREATE = "CREATE TABLE IF NOT EXISTS ledger (id INTEGER PRIMARY KEY, note TEXT NOT NULL CHECK (note <> 'bad'))"
INSERT = sa.text("INSERT INTO ledger (note) VALUES (:note)")


class Base(DeclarativeBase):
    pass


class Entry(Base):
    __tablename__ = "ledger"

    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]


def query(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """Read with a connection that has nothing to do with the store."""
    with closing(sqlite3.connect(path, timeout=5)) as connection:
        return connection.execute(statement).fetchall()


def notes(path: Path) -> list[str]:
    return [note for (note,) in query(path, "SELECT note FROM ledger ORDER BY id")]


def applied(path: Path) -> list[str]:
    return [key for (key,) in query(path, "SELECT key FROM tidings_inbox ORDER BY key")]


def waiting(path: Path) -> list[str]:
    return [id for (id,) in query(path, "SELECT message_id FROM tidings_outbox ORDER BY id")]


def key(name: str, event_id: str = "e", position: str = "stock.reserve") -> Key:
    return Key(position, name, event_id, event_id.encode())


def message(id: str, key: str | None = "k", **more: Any) -> Message:
    return Message(id=id, stream="stock", type="stock.reserved", key=key, body=b"{}", **more)


async def in_thread(claim: Claim, work: Callable[[], T]) -> T:
    """Run a sync handler where its claim says."""
    return await asyncio.get_running_loop().run_in_executor(claim.executor, work)


async def eventually(condition: Callable[[], object], limit: float = 20) -> None:
    """Wait until it holds; a test that waits in vain fails here."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + limit
    while not condition():
        assert loop.time() < ends, "waited in vain"
        await asyncio.sleep(0.01)
