"""Behind PgBouncer, which gives each transaction any session it has."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import asyncpg
import pytest

from tests.integration.postgres.conftest import Opens
from tests.integration.postgres.ledger import CREATE, INSERT, applied, eventually, key, message, notes, query, run
from tests.integration.postgres.test_claims import NEW, PG, apply, done
from tests.integration.postgres.test_outbox import relaying
from tests.servers import folder_for
from tidings.errors import ConfigurationError
from tidings.stores.postgres import PostgresStore, Statements
from tools.services.pgbouncer import PgBouncer
from tools.services.postgres import Postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with folder_for("postgres-behind") as folder, Postgres(folder) as server:
        run(server.url, CREATE)
        yield server


@pytest.fixture(scope="module")
def bouncer(server: Postgres) -> Iterator[PgBouncer]:
    with folder_for("pgbouncer") as folder, PgBouncer(folder, server, "default_pool_size = 3") as bouncer:
        yield bouncer


@pytest.fixture
async def store(opens: Opens, bouncer: PgBouncer) -> PostgresStore:
    store: PostgresStore = await opens(bouncer.url)
    run(bouncer.url, "TRUNCATE ledger, tidings_inbox, tidings_outbox")
    return store


@pytest.mark.proves(store="postgres")
async def test_P4_claims_of_many_tasks_hold_over_shared_sessions(store: PostgresStore, server: Postgres) -> None:
    async def one(number: int) -> None:
        name = str(number % 40)  # each key is asked for twice
        async with store.claim([key(name)], resource=PG, sync=False) as claim:
            if claim.states[0] == NEW:
                db = claim.resource(PG)
                assert isinstance(db, asyncpg.Connection)
                await db.execute(INSERT, name)
                await db.fetchval("SELECT $1::int + 1", number)
                await claim.emit([message(name)])

    for start in range(0, 80, 8):
        await asyncio.gather(*(one(number) for number in range(start, start + 8)))
    assert sorted(notes(server.url), key=int) == [str(number) for number in range(40)]
    assert len(applied(server.url)) == 40
    async with relaying(store) as published:
        await eventually(lambda: len(published.got) == 40)
    async with store.claim([key("s")], resource=Statements, sync=False) as claim:
        statements = claim.resource(Statements)
        assert isinstance(statements, Statements)
        for number in range(5):
            statements.execute(INSERT, f"queued {number}")
    assert len(notes(server.url)) == 45


async def test_no_setting_stays_behind_in_a_shared_session(store: PostgresStore, server: Postgres) -> None:
    for _ in range(4):
        await apply(store, "a", "a")
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(store.outbox_backlog())
    async with store.transaction() as db:
        await db.execute("COMMENT ON TABLE ledger IS 'seen'")
    shown = query(server.url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database IS NOT NULL")
    assert shown == [(0,)]


async def test_it_says_once_that_it_polls_and_that_it_prepares_nothing(
    opens: Opens, bouncer: PgBouncer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        store = await opens(bouncer.url)
        async with relaying(store) as published:
            async with store.transaction() as db:
                await store.emit(db, [message("1")])
            await eventually(lambda: "1" in published.ids)
    told = [record.getMessage() for record in caplog.records if "behind a proxy" in record.getMessage()]
    assert len(told) == 2
    assert "not prepared" in told[0]
    assert "polling" in told[1]
    assert "tidings:" not in "".join(told)


async def test_a_pool_that_prepares_statements_is_refused_with_the_remedy(bouncer: PgBouncer) -> None:
    async with asyncpg.create_pool(bouncer.url, min_size=1, max_size=3) as pool:
        with pytest.raises(ConfigurationError, match="statement_cache_size=0"):
            await PostgresStore(pool).open()
    async with asyncpg.create_pool(bouncer.url, min_size=1, max_size=3, statement_cache_size=0) as pool:
        store = PostgresStore(pool)
        await store.open()
        await apply(store, "pool", "pool")
        assert await apply(store, "pool", "pool") == done()
