"""The oracle: a table without a unique key, so that whatever is applied twice is seen twice."""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tidings.delivery import Message
from tidings.outbox import tables
from tidings.ports import Claim, Key

T = TypeVar("T")

CREATE = "CREATE TABLE IF NOT EXISTS ledger (id INTEGER PRIMARY KEY, note TEXT NOT NULL CHECK (note <> 'bad'))"
INSERT = sa.text("INSERT INTO ledger (note) VALUES (:note)")


class Base(DeclarativeBase):
    pass


class Entry(Base):
    __tablename__ = "ledger"
    __table_args__ = (sa.CheckConstraint("note <> 'bad'"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(sa.Text)


Where = Path | str
"""A database: the file of a SQLite one, or the URL of another."""


def url_of(where: Where) -> str:
    """As a store takes it."""
    return f"sqlite:///{where}" if isinstance(where, Path) else where


def live_url_of(where: Where) -> str:
    """As `create_async_engine` takes it."""
    return url_of(where).replace("sqlite:", "sqlite+aiosqlite:")


def sync_url_of(where: Where) -> str:
    """As `create_engine` takes it."""
    return url_of(where).replace("+asyncpg:", "+psycopg:").replace("+aiomysql:", "+pymysql:")


@lru_cache(maxsize=4)
def _engine(where: str) -> sa.Engine:
    return sa.create_engine(sync_url_of(where), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")


def query(where: Where, statement: str) -> list[tuple[Any, ...]]:
    """Ask with a connection that has nothing to do with the store; what it writes is committed."""
    if isinstance(where, Path):
        with closing(sqlite3.connect(where, timeout=5, isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()
    with _engine(where).connect() as other:
        result = other.exec_driver_sql(statement)
        return [tuple(row) for row in result] if result.returns_rows else []


@contextmanager
def temporary(server: str) -> Iterator[str]:
    """A database of this server's, gone afterwards."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    query(server, f"CREATE DATABASE {name}")
    yield sa.make_url(server).set(database=name).render_as_string(hide_password=False)
    query(server, f"DROP DATABASE {name}{' WITH (FORCE)' if server.startswith('postgresql') else ''}")


def clean(url: str) -> None:
    """No rows of an earlier test; and no tables either, where that test changed them."""
    engine = sa.create_engine(sync_url_of(url), poolclass=sa.NullPool)
    with engine.begin() as connection:
        present = set(sa.inspect(connection).get_table_names())
        if present == {"ledger", *tables.metadata.tables}:
            for name in ("ledger", "tidings_inbox", "tidings_outbox"):
                connection.exec_driver_sql(f"DELETE FROM {name}")
            connection.exec_driver_sql("UPDATE tidings_relay SET owner = ''")
            if connection.exec_driver_sql("SELECT version FROM tidings_schema").all() == [(tables.SCHEMA_VERSION,)]:
                return
        for name in present:
            connection.exec_driver_sql(f"DROP TABLE {name}")
    engine.dispose()


@contextmanager
def holding(where: Where, *statements: str) -> Iterator[None]:
    """Another transaction, open until the block ends, that has done this and holds its locks."""
    # With MariaDB's default a lock on some rows keeps new ones out, too.
    level = "SERIALIZABLE" if isinstance(where, Path) else "READ COMMITTED"
    engine = sa.create_engine(sync_url_of(where), poolclass=sa.NullPool, isolation_level=level)
    with engine.connect() as other:
        for statement in statements:
            other.exec_driver_sql(statement)
        yield
        other.rollback()
    engine.dispose()


def create(where: Where) -> None:
    """Make the ledger."""
    engine = sa.create_engine(sync_url_of(where), poolclass=sa.NullPool)
    Base.metadata.create_all(engine)
    engine.dispose()


def notes(where: Where) -> list[str]:
    return [note for (note,) in query(where, "SELECT note FROM ledger ORDER BY id")]


def applied(where: Where) -> list[str]:
    return [key for (key,) in query(where, "SELECT tidings_inbox.key FROM tidings_inbox ORDER BY 1")]


def waiting(where: Where) -> list[str]:
    return [id for (id,) in query(where, "SELECT message_id FROM tidings_outbox ORDER BY id")]


async def end_hold(where: Where, id: str) -> None:
    """Let the time be over in which an event is its own process' to publish."""
    ((until,),) = query(where, f"SELECT retry_at FROM tidings_outbox WHERE message_id = '{id}'")
    assert until > time.time(), "it was held"
    over = f"UPDATE tidings_outbox SET retry_at = {time.time() - 1} WHERE message_id = '{id}'"
    await asyncio.to_thread(query, where, over)  # it may have to wait for a transaction of this loop's


def key(name: str, event_id: str = "e", position: str = "stock.reserve") -> Key:
    return Key(position, name, event_id, event_id.encode())


def message(id: str, key: str | None = "k", body: bytes = b"{}", **more: Any) -> Message:
    return Message(id=id, stream="stock", type="stock.reserved", key=key, body=body, **more)


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
