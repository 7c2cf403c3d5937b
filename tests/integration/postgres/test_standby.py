"""A server that commits only together with a standby, and the standby is away: nothing is done before it is back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from tests.integration.postgres.ledger import applied, eventually, in_transaction, key, notes, query, run
from tests.integration.stores.ledger import in_thread
from tidings.errors import Contention, StoreUnavailable
from tidings.ports import State
from tidings.stores.postgres import PostgresStore
from tidings.stores.sqlalchemy import SqlAlchemyStore
from tools.services.postgres import Postgres

WITHIN = 3.0
"""What a server has for an answer: longer than a busy machine keeps one from it."""


@pytest.fixture
def server(server_folder: Path) -> Iterator[Postgres]:
    with Postgres(server_folder) as server:
        yield server


def standby(server: Postgres, *, away: bool) -> None:
    word = "SET synchronous_standby_names = 'elsewhere'" if away else "RESET synchronous_standby_names"
    run(server.url, f"ALTER SYSTEM {word}")
    run(server.url, "SELECT pg_reload_conf()")


def wait_for_it(server: Postgres) -> int:
    return int(query(server.url, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")[0][0])


def until_a_commit_waits(server: Postgres) -> None:
    """A setting is heard of sooner or later, by the one who decides in silence: so commits are tried until one waits.

    It is ended then, which tells its client that it stands, and only there.
    """
    for _ in range(100):
        with psycopg.connect(server.url, autocommit=True, connect_timeout=10) as trying:
            pid = trying.info.backend_pid
            with ThreadPoolExecutor(1) as thread:
                commit = thread.submit(trying.execute, "CREATE TABLE IF NOT EXISTS tried (n int); DROP TABLE tried")
                while not commit.done():
                    if waits := query(server.url, "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"):
                        assert waits == [(pid,)]
                        run(server.url, f"SELECT pg_terminate_backend({pid}, 20000)")
                        with suppress(psycopg.Error):
                            commit.result(20)
                        return
                    time.sleep(0.01)
                commit.result()
    raise AssertionError("no commit waited for the standby")


def store_of(server: Postgres, kind: str) -> PostgresStore | SqlAlchemyStore:
    if kind == "postgres":
        return PostgresStore(server.url, answer_timeout=WITHIN, lock_timeout=0.1)
    url = server.url.replace("postgresql:", f"postgresql+{kind}:")
    return SqlAlchemyStore(url, answers_within=WITHIN, lock_timeout=0.1)


@pytest.mark.parametrize(
    ("kind", "sync"), [("postgres", False), ("asyncpg", False), ("psycopg", False), ("psycopg", True)]
)
@pytest.mark.proves("P3", "P4", store="postgres")
async def test_P3_P4_a_commit_that_waits_for_a_standby_is_not_taken_for_done_and_is_applied_once(
    server: Postgres, kind: str, sync: bool
) -> None:
    """Were it cancelled, it would end at once, as done, on a server that may be lost with it."""
    store = store_of(server, kind)
    await store.open()
    run(server.url, "CREATE TABLE ledger (id serial, note text)")

    async def claim(name: str) -> State:
        async with store.claim([key(name)], resource=None, sync=sync) as claim:
            if sync:
                await in_thread(claim, lambda: None)
            return claim.states[0].state

    try:
        assert await claim("before") is State.NEW
        standby(server, away=True)
        await asyncio.to_thread(until_a_commit_waits, server)
        with pytest.raises(StoreUnavailable):
            await claim("a")
        await asyncio.sleep(0.5)  # a cancellation on its way would have come
        assert wait_for_it(server) == 1
        assert applied(server.url) == ["before"]
        with pytest.raises((Contention, StoreUnavailable)):
            await claim("a")
        standby(server, away=False)
        await eventually(lambda: applied(server.url) == ["a", "before"])
        assert await claim("a") is State.DONE
        await eventually(lambda: in_transaction(server.url) == 0)
    finally:
        await store.close()
    assert notes(server.url) == []
