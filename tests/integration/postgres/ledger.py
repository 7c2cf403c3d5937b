"""The oracle on PostgreSQL: a table without a unique key, read over a connection that the store knows nothing of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from tidings.delivery import Message
from tidings.ports import Key

CREATE = "CREATE TABLE IF NOT EXISTS ledger (id bigserial, note text NOT NULL CHECK (note <> 'bad'))"
INSERT = "INSERT INTO ledger (note) VALUES ($1)"


@contextmanager
def connected(url: str, *, autocommit: bool = True) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    with psycopg.connect(url, autocommit=autocommit, connect_timeout=10) as connection:
        yield connection


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    with connected(url) as connection:
        return connection.execute(statement.encode()).fetchall()


def run(url: str, statement: str) -> None:
    with connected(url) as connection:
        connection.execute(statement.encode())


def notes(url: str) -> list[str]:
    return [note for (note,) in query(url, "SELECT note FROM ledger ORDER BY id")]


def applied(url: str) -> list[str]:
    return [key for (key,) in query(url, 'SELECT key FROM tidings_inbox ORDER BY key COLLATE "C"')]


def waiting(url: str) -> list[str]:
    return [id for (id,) in query(url, "SELECT message_id FROM tidings_outbox ORDER BY id")]


def in_transaction(url: str) -> int:
    """How many other sessions of this database are inside a transaction just now."""
    ((count,),) = query(
        url,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend' AND (state LIKE 'idle in%' OR state = 'active')",
    )
    return int(count)


def sessions(url: str) -> int:
    """How many other sessions this database has."""
    ((count,),) = query(
        url,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'",
    )
    return int(count)


def key(name: str, event_id: str = "e", position: str = "stock.reserve") -> Key:
    return Key(position, name, event_id, event_id.encode(errors="surrogatepass"))


def message(id: str, key: str | None = "k", **more: Any) -> Message:
    return Message(id=id, stream="stock", type="stock.reserved", key=key, body=b"{}", **more)


async def eventually(condition: Callable[[], object], limit: float = 20) -> None:
    """Wait until it holds; a test that waits in vain fails here."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + limit
    while not condition():
        assert loop.time() < ends, "waited in vain"
        await asyncio.sleep(0.02)


async def quietly(work: Awaitable[Any]) -> BaseException | None:
    """The error that it ends with."""
    try:
        await work
    except BaseException as error:
        return error
    return None
