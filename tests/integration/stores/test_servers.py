"""Databases with a server: locks, deadlocks, lost answers, servers that die or hang. Real ones, each healed again."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from tests.integration.stores.conftest import EVERY
from tests.integration.stores.handling import handle
from tests.integration.stores.ledger import (
    INSERT,
    applied,
    create,
    eventually,
    holding,
    in_thread,
    key,
    message,
    notes,
    query,
    sync_url_of,
    waiting,
)
from tests.proxy import Proxy
from tidings.errors import ConfigurationError, Contention, MisuseError, StoreUnavailable
from tidings.outbox import tables
from tidings.ports import State
from tidings.stores.sqlalchemy import SqlAlchemyStore
from tools.services.mariadb import MariaDB
from tools.services.pgbouncer import PgBouncer
from tools.services.postgres import Postgres
from tools.services.program import Program

T = TypeVar("T")

SERVERS = [one for one in EVERY if "sqlite" not in one.values]


@pytest.fixture(params=SERVERS)
def where(request: pytest.FixtureRequest, path: Path) -> str:
    from tests.integration.stores.ledger import clean

    url = str(request.getfixturevalue(request.param))
    clean(url)
    return url


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, server_folder: Path) -> Iterator[Program]:
    """A server of the test's own, to be killed and paused."""
    kinds: dict[str, type[Postgres] | type[MariaDB]] = {"postgresql": Postgres, "mariadb": MariaDB}
    with kinds[request.param](server_folder) as one:
        yield one


def url_to(server: Program) -> str:
    return server.url.replace("postgresql:", "postgresql+asyncpg:")


@contextmanager
def impatient(store: SqlAlchemyStore, seconds: float = 0.6) -> Iterator[None]:
    """It does not wait long for answers that will not come; for those that will it has the time that they take."""
    assert store._desk is not None
    database = store._desk.database
    patience, database.answers_within = database.answers_within, seconds
    yield
    database.answers_within = patience


async def opened(url: str, **options: Any) -> SqlAlchemyStore:
    store = SqlAlchemyStore(url, **{"lock_timeout": 1.0, "poll": 0.05, "lease": 1.0, **options})
    await store.open()
    create(url)
    return store


# ---- locks --------------------------------------------------------------------------------------------------------


async def test_who_waits_for_a_key_of_an_open_claim_learns_what_became_of_it(where: str) -> None:
    """Traps 130 and 131."""
    stores = [await opened(where, lock_timeout=10) for _ in range(3)]

    async def claim(store: SqlAlchemyStore) -> State:
        async with store.claim([key("a")], resource=None, sync=False) as claim:
            return claim.states[0].state

    with pytest.raises(LookupError):
        async with stores[0].claim([key("a"), key("b")], resource=None, sync=False):
            waiters = [asyncio.create_task(claim(store)) for store in stores[1:]]
            await asyncio.sleep(0.3)
            assert not any(task.done() for task in waiters)
            raise LookupError
    assert sorted(state.value for state in await asyncio.gather(*waiters)) == ["done", "new"]
    for store in stores:
        await store.close()


@pytest.mark.parametrize("sync", [False, True])
async def test_a_lock_that_is_not_given_up_in_time_is_contention_and_heals(
    store: SqlAlchemyStore, where: str, sync: bool
) -> None:
    with holding(where, "INSERT INTO tidings_inbox VALUES ('stock.reserve', 'a', 'e', '', 0)"):
        with pytest.raises(Contention, match="kept rows locked"):
            await handle(store, "a", sync=sync)
        assert (await store.outbox_backlog()).waiting == 0  # reading is not held up
        assert await handle(store, "b", sync=sync) is State.NEW  # and neither are others
    assert await handle(store, "a", sync=sync) is State.NEW
    assert notes(where) == ["b", "a"]


async def test_a_lock_timeout_inside_a_handler_is_contention_and_takes_all_of_it_back(
    store: SqlAlchemyStore, where: str
) -> None:
    """MariaDB takes only the statement back by itself."""
    query(where, "INSERT INTO ledger (note) VALUES ('hot')")
    with holding(where, "UPDATE ledger SET note = 'held'"):
        with pytest.raises(Exception) as caught:  # the driver's own
            async with store.claim([key("a")], resource=AsyncConnection, sync=False) as claim:
                db: Any = claim.resource(AsyncConnection)
                await db.execute(INSERT, {"note": "a"})
                await db.execute(sa.text("UPDATE ledger SET note = 'mine' WHERE note = 'hot'"))
    assert isinstance(store.translate(caught.value), Contention)
    assert notes(where) == ["hot"]
    assert applied(where) == []


async def test_a_lock_timeout_that_a_handler_passes_over_commits_nothing(store: SqlAlchemyStore, where: str) -> None:
    query(where, "INSERT INTO ledger (note) VALUES ('hot')")
    with holding(where, "UPDATE ledger SET note = 'held'"):
        with pytest.raises(Contention):
            async with store.claim([key("a")], resource=AsyncConnection, sync=False) as claim:
                db: Any = claim.resource(AsyncConnection)
                await db.execute(INSERT, {"note": "a"})
                with pytest.raises(sa.exc.DBAPIError):
                    await db.execute(sa.text("UPDATE ledger SET note = 'mine' WHERE note = 'hot'"))
    assert notes(where) == ["hot"]
    assert applied(where) == []


async def test_of_a_deadlock_one_goes_on_and_the_other_is_contention(where: str) -> None:
    store = await opened(where, lock_timeout=10)
    query(where, "INSERT INTO ledger (note) VALUES ('x'), ('y')")
    both = asyncio.Barrier(2)

    async def work(name: str, first: str, second: str) -> None:
        async with store.claim([key(name)], resource=AsyncConnection, sync=False) as claim:
            db: Any = claim.resource(AsyncConnection)
            update = sa.text("UPDATE ledger SET note = :new WHERE note = :old")
            await db.execute(update, {"old": first, "new": f"{first}{name}"})
            await both.wait()
            await db.execute(update, {"old": second, "new": f"{second}{name}"})

    query(where, "CREATE INDEX notes_of ON ledger (note(20))" if "mariadb" in where else "SELECT 1")
    async with asyncio.timeout(20):
        results = await asyncio.gather(work("1", "x", "y"), work("2", "y", "x"), return_exceptions=True)
    await store.close()
    (lost,) = [error for error in results if error is not None]
    assert isinstance(lost, Exception)
    assert isinstance(store.translate(lost), Contention)
    assert len(applied(where)) == 1
    query(where, "DROP TABLE ledger")


@pytest.mark.parametrize("sync", [False, True])
async def test_cancelled_inside_a_statement_it_leaves_no_lock_and_nothing_running(
    store: SqlAlchemyStore, where: str, sync: bool
) -> None:
    slow = "SELECT BENCHMARK(200000000, MD5('x'))" if "mariadb" in where else "SELECT pg_sleep(60)"
    kind = sa.Connection if sync else AsyncConnection

    async def work() -> None:
        async with store.claim([key("a")], resource=kind, sync=sync) as claim:
            db: Any = claim.resource(kind)
            if sync:
                await in_thread(claim, lambda: db.execute(INSERT, {"note": "a"}))
                await in_thread(claim, lambda: db.execute(sa.text(slow)))
            else:
                await db.execute(INSERT, {"note": "a"})
                await db.execute(sa.text(slow))

    running = "SELECT count(*) FROM " + (
        "information_schema.processlist WHERE info LIKE 'SELECT BENCHMARK%'"
        if "mariadb" in where
        else "pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
    )
    running = running.replace("%", "%%")
    task = asyncio.create_task(work())
    await eventually(lambda: query(where, running) == [(1,)])
    task.cancel()
    async with asyncio.timeout(15):
        await asyncio.wait({task})
    assert task.cancelled()
    await eventually(lambda: query(where, running) == [(0,)])
    assert await handle(store, "a", sync=sync) is State.NEW
    assert notes(where) == ["a"]


# ---- answers that are lost ----------------------------------------------------------------------------------------


@pytest.fixture
async def proxied(where: str) -> AsyncIterator[tuple[Proxy, SqlAlchemyStore]]:
    url = sa.make_url(where)
    proxy = await Proxy(url.port or 0).start()
    through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
    store = SqlAlchemyStore(through, lock_timeout=0.5)
    await store.open()
    create(where)
    async with store.claim([], resource=None, sync=True):
        pass  # drivers say COMMIT on their own when they first connect
    try:
        with impatient(store, 3.0):  # what is looked up after a lost answer has to come in that time
            yield proxy, store
    finally:
        await store.close()
        await proxy.stop()


def commit_on(where: str) -> bytes:
    """How the statement travels; not READ COMMITTED."""
    return b"\x03COMMIT" if "mariadb" in where else b"COMMIT\0"


@pytest.mark.parametrize("cuts", [True, False], ids=["cut", "silence"])
@pytest.mark.parametrize("sync", [False, True])
async def test_P3_P4_a_commit_whose_answer_was_lost_is_looked_up_and_counts(
    proxied: tuple[Proxy, SqlAlchemyStore], where: str, sync: bool, cuts: bool
) -> None:
    proxy, store = proxied
    proxy.unanswered, proxy.cuts = commit_on(where), cuts
    assert await handle(store, "a", sync=sync) is State.NEW
    assert proxy.lost >= 1
    assert await handle(store, "a", sync=sync) is State.DONE
    assert notes(where) == applied(where) == waiting(where) == ["a"]


@pytest.mark.parametrize("sync", [False, True])
async def test_P3_P4_a_commit_that_was_lost_itself_is_looked_up_and_does_not_count(
    proxied: tuple[Proxy, SqlAlchemyStore], where: str, sync: bool
) -> None:
    proxy, store = proxied
    proxy.lose, proxy.cuts = commit_on(where), True
    with pytest.raises(StoreUnavailable):
        await handle(store, "a", sync=sync)
    assert proxy.lost == 1
    proxy.lose = b""
    await eventually(lambda: notes(where) == applied(where) == waiting(where) == [])
    assert await handle(store, "a", sync=sync) is State.NEW
    assert notes(where) == applied(where) == waiting(where) == ["a"]


async def test_a_transaction_outside_handlers_says_that_its_outcome_is_not_known(
    proxied: tuple[Proxy, SqlAlchemyStore], where: str
) -> None:
    proxy, store = proxied
    proxy.unanswered, proxy.cuts = commit_on(where), True
    with pytest.raises(StoreUnavailable, match="committed is not known"):
        async with store.transaction() as db:
            await db.execute(INSERT, {"note": "a"})
    assert notes(where) == ["a"]


async def test_an_answer_to_a_claim_that_never_comes_is_given_up(
    proxied: tuple[Proxy, SqlAlchemyStore], where: str
) -> None:
    proxy, store = proxied
    proxy.unanswered = b"INSERT INTO tidings_inbox"
    with pytest.raises(StoreUnavailable, match="did not answer"):
        await handle(store, "a")
    assert await handle(store, "a") is State.NEW
    assert notes(where) == applied(where) == ["a"]


# ---- servers that die or hang -------------------------------------------------------------------------------------


async def test_P3_P4_a_server_that_is_killed_in_the_middle_loses_nothing_and_heals(server: Program) -> None:
    url = url_to(server)
    store = await opened(url)
    assert await handle(store, "before") is State.NEW
    assert await handle(store, "before, in a thread", sync=True) is State.NEW
    with pytest.raises(Exception) as caught:  # the driver's own
        async with store.claim([key("a")], resource=AsyncConnection, sync=False) as claim:
            db: Any = claim.resource(AsyncConnection)
            await db.execute(INSERT, {"note": "a"})
            server.stop()
            await db.execute(INSERT, {"note": "a"})
    assert isinstance(store.translate(caught.value), StoreUnavailable)
    for sync in (False, True):
        with pytest.raises(StoreUnavailable):
            await handle(store, "a", sync=sync)
    with pytest.raises(StoreUnavailable):
        await store.outbox_backlog()
    server.start()
    states = [await _at_last(store, "a", sync=sync) for sync in (False, True)]
    await store.close()
    assert states == [State.NEW, State.DONE]
    assert notes(url) == ["before", "before, in a thread", "a"]
    assert applied(url) == waiting(url)[2:] + waiting(url)[:2]


async def _at_last(store: SqlAlchemyStore, name: str, *, sync: bool) -> State:
    """Each pooled connection may find out by itself that its server is another one."""
    for _ in range(5):
        try:
            return await handle(store, name, sync=sync)
        except StoreUnavailable:
            await asyncio.sleep(0.05)
    return await handle(store, name, sync=sync)


@pytest.mark.parametrize("sync", [False, True])
async def test_a_server_that_hangs_is_given_up_in_time_and_heals(server: Program, sync: bool) -> None:
    url = url_to(server)
    store = await opened(url)
    assert await handle(store, "before", sync=sync) is State.NEW
    server.pause()
    began = time.monotonic()
    with impatient(store), pytest.raises(StoreUnavailable, match="did not answer"):
        await handle(store, "a", sync=sync)
    assert time.monotonic() - began < 60, "a limit there is"
    server.resume()
    assert await _at_last(store, "a", sync=sync) in (State.NEW, State.DONE)
    await store.close()
    assert notes(url) == applied(url)[::-1] == ["before", "a"]


# ---- servers that refuse ------------------------------------------------------------------------------------------


async def test_a_server_that_cannot_be_reached_is_named_without_the_password(where: str) -> None:
    url = sa.make_url(where).set(port=1, password="s3cret").render_as_string(hide_password=False)
    with pytest.raises(StoreUnavailable, match="cannot be reached") as caught:
        await SqlAlchemyStore(url).open()
    assert "s3cret" not in str(caught.value)


async def test_a_wrong_password_and_a_missing_database_are_named(where: str) -> None:
    for url, words in (
        (sa.make_url(where).set(password="s3cret"), "login was refused"),
        (sa.make_url(where).set(database="nowhere"), "no such database"),
    ):
        with pytest.raises(StoreUnavailable, match=words) as caught:
            await SqlAlchemyStore(url).open()
        assert "s3cret" not in str(caught.value)


async def test_a_database_that_may_only_be_read_and_a_user_with_too_many_connections_are_named(server: Program) -> None:
    url = url_to(server)
    create(url)
    engine = sa.create_engine(sync_url_of(url))
    tables.metadata.create_all(engine)  # as migrations of the user's own do
    engine.dispose()
    limited = sa.make_url(url).set(username="app", password="app").render_as_string(hide_password=False)
    if "mariadb" in url:
        url = sa.make_url(url).set(username="root", password="").render_as_string(hide_password=False)
        query(url, "CREATE USER app IDENTIFIED BY 'app' WITH MAX_USER_CONNECTIONS 1")
        query(url, "GRANT SELECT, INSERT, UPDATE, DELETE ON *.* TO app")
        read_only = "SET GLOBAL read_only = 1"
    else:
        query(url, "CREATE ROLE app LOGIN PASSWORD 'app' CONNECTION LIMIT 1")
        query(url, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app")
        query(url, "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO app")
        read_only = "ALTER DATABASE postgres SET default_transaction_read_only = on"
    store = SqlAlchemyStore(limited)
    await store.open()  # a user who may not create tables does not need to, once they are there
    assert await _once_there_is_room(lambda: handle(store, "a")) is State.NEW
    with pytest.raises(StoreUnavailable, match=r"too many connections|limit of its own"):
        async with store.claim([key("b")], resource=None, sync=False):
            await asyncio.create_task(store.outbox_backlog())
    await store.close()
    query(url, read_only)
    await _once_there_is_room(store.open)
    with pytest.raises(StoreUnavailable, match="only be read"):
        await _once_there_is_room(lambda: handle(store, "b"))
    await store.close()
    assert notes(url) == ["a"]


async def _once_there_is_room(step: Callable[[], Awaitable[T]]) -> T:
    """A server counts a session for a moment after it was closed, MariaDB also when it does not list it any more."""
    for _ in range(200):
        try:
            return await step()
        except StoreUnavailable as error:
            if not re.search(r"too many connections|limit of its own", str(error)):
                raise
            await asyncio.sleep(0.05)
    return await step()


@pytest.mark.parametrize("kind", [AsyncConnection, sa.Connection])
async def test_P10_a_connection_that_was_closed_while_nobody_used_it_costs_nobody_a_transaction(
    where: str, kind: type
) -> None:
    """By a limit of the server's for idle ones, its restart, or somebody in between; a pool hears of it only in use."""
    store = await opened(where)
    sync = kind is sa.Connection
    for step in (store.outbox_backlog, lambda: handle(store, "a", sync=sync), lambda: _nothing(store, kind)):
        assert await handle(store, "before", sync=sync) in (State.NEW, State.DONE)
        if "mariadb" in where:
            its = f"db = '{sa.make_url(where).database}' AND id <> connection_id()"
            listed = f"SELECT id FROM information_schema.processlist WHERE {its}"
            for (number,) in query(where, listed):
                query(where, f"KILL {number}")
        else:
            others = "datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            listed = f"SELECT pid FROM pg_stat_activity WHERE {others}"
            query(where, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
        await eventually(partial(_empty, where, listed))
        await asyncio.sleep(0.1)
        await step()
    await store.close()
    assert notes(where) == ["before", "a"]


@pytest.mark.parametrize("sync", [False, True])
async def test_a_pool_that_is_used_up_is_told_from_a_server_that_is_away(where: str, sync: bool) -> None:
    store = await opened(where, answers_within=2)
    async with AsyncExitStack() as stack:
        with pytest.raises(StoreUnavailable, match="no connection of the engine's pool became free"):
            for number in range(16):
                await asyncio.create_task(
                    stack.enter_async_context(store.claim([key(str(number))], resource=None, sync=sync))
                )
        if not sync:
            with pytest.raises(StoreUnavailable, match="no connection of the engine's pool became free"):
                await store.outbox_backlog()
    await store.close()


async def test_a_live_engine_that_lets_wait_for_longer_than_a_server_may_take_is_told_from_one_that_is_away(
    where: str,
) -> None:
    """Requests of the user's have all of its connections, for as long as the pool lets wait."""
    engine = create_async_engine(where, pool_size=1, max_overflow=0, pool_timeout=30)
    store = SqlAlchemyStore(engine, lock_timeout=0.1)
    await store.open()
    async with engine.connect() as connection:
        await connection.exec_driver_sql("SELECT 1")
        with impatient(store), pytest.raises(StoreUnavailable, match="no connection of the engine's pool became free"):
            async with store.claim([key("a")], resource=None, sync=False):
                pass
        with impatient(store), pytest.raises(StoreUnavailable, match="no connection of the engine's pool became free"):
            await store.outbox_backlog()
    async with store.claim([key("a")], resource=None, sync=False):
        pass
    await store.close()
    await engine.dispose()


def _empty(where: str, statement: str) -> bool:
    return not query(where, statement)


async def _nothing(store: SqlAlchemyStore, kind: type) -> None:
    async with store.transaction(kind):
        pass


# ---- the user's engine, and the user's transactions ---------------------------------------------------------------


async def test_a_live_engine_is_used_and_stays_as_it_was(where: str) -> None:
    engine = create_async_engine(where, pool_size=1, max_overflow=0, pool_timeout=10)
    settings = (
        "SELECT @@autocommit, @@tx_isolation, @@innodb_lock_wait_timeout, @@lock_wait_timeout, @@sql_mode"
        if "mariadb" in where
        else "SELECT current_setting('lock_timeout'), current_setting('transaction_isolation')"
    )
    async with engine.connect() as connection:
        before = (await connection.exec_driver_sql(settings)).all()
    store = await opened(where)
    await store.close()
    store = SqlAlchemyStore(engine, lock_timeout=3)
    await store.open()
    for sync in (False, True):
        assert await handle(store, f"claimed {sync}", sync=sync) is State.NEW
    with pytest.raises(LookupError):
        async with store.claim([key("b")], resource=AsyncConnection, sync=False) as claim:
            db: Any = claim.resource(AsyncConnection)
            await db.execute(INSERT, {"note": "not"})
            raise LookupError
    async with engine.connect() as connection:
        assert (await connection.exec_driver_sql(settings)).all() == before
        await connection.execute(INSERT, {"note": "rolled back"})
    async with engine.begin() as connection:
        await connection.execute(INSERT, {"note": "their own"})
        await store.emit(connection, [message("their own")])
    await store.close()
    await engine.dispose()
    assert notes(where) == ["claimed False", "claimed True", "their own"]
    assert waiting(where) == ["claimed False", "claimed True", "their own"]


async def test_a_claim_reads_what_others_committed_meanwhile(store: SqlAlchemyStore, where: str) -> None:
    """READ COMMITTED on both, whatever the server's default is."""
    async with store.claim([key("a")], resource=AsyncConnection, sync=False) as claim:
        db: Any = claim.resource(AsyncConnection)
        count = sa.text("SELECT count(*) FROM ledger")
        assert await db.scalar(count) == 0
        query(where, "INSERT INTO ledger (note) VALUES ('x')")
        assert await db.scalar(count) == 1


async def test_P4_a_transaction_that_commits_late_is_not_skipped_by_the_relay(
    store: SqlAlchemyStore, where: str
) -> None:
    """Trap 138: its row has the lower number, and a relay that counts would be past it."""
    published: list[str] = []

    async def publish(messages: Any) -> list[None]:
        published.extend(message.id for message in messages)
        return [None] * len(messages)

    engine = create_async_engine(where)
    relay = asyncio.create_task(store.relay(publish))
    async with engine.begin() as late:
        await store.emit(late, [message("late", "other")])
        async with store.transaction() as db:
            await store.emit(db, [message("early")])
        await eventually(lambda: published == ["early"] and not waiting(where))
    await eventually(lambda: published == ["early", "late"] and not waiting(where))
    relay.cancel()
    await asyncio.wait({relay})
    await engine.dispose()


# ---- what only one of them does -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [SERVERS[0]], indirect=True)
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_an_error_that_was_passed_over_outside_a_savepoint_commits_nothing(where: str, driver: str) -> None:
    """PostgreSQL answers COMMIT with ROLLBACK then, and no driver says so."""
    store = await opened(where.replace("asyncpg", driver))
    with pytest.raises(MisuseError, match="passed over"):
        async with store.claim([key("a")], resource=AsyncConnection, sync=False) as claim:
            db: Any = claim.resource(AsyncConnection)
            await db.execute(INSERT, {"note": "a"})
            with pytest.raises(sa.exc.DBAPIError):
                await db.execute(INSERT, {"note": "bad"})
    with pytest.raises(MisuseError, match="passed over"):
        async with store.claim([key("b")], resource=AsyncConnection, sync=False) as claim:
            db = claim.resource(AsyncConnection)
            raw: Any = (await db.get_raw_connection()).driver_connection
            with pytest.raises(Exception, match="nowhere"):  # SQLAlchemy does not see this one
                await raw.execute("INSERT INTO nowhere VALUES (1)")
    assert await handle(store, "c") is State.NEW
    await store.close()
    assert notes(where) == applied(where) == ["c"]


@pytest.mark.parametrize("where", [SERVERS[1]], indirect=True)
@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE more (n INT)", "CREATE TABLE ledger (n INT)", "ANALYZE TABLE ledger", "LOCK TABLES ledger WRITE"],
)
@pytest.mark.parametrize("more", [False, True])
async def test_a_statement_that_commits_by_itself_is_seen(
    store: SqlAlchemyStore, where: str, statement: str, more: bool
) -> None:
    """MariaDB commits before it changes a table, also where it then fails to."""
    with pytest.raises(MisuseError, match="commit"):
        async with store.claim([key("a"), key("b")], resource=AsyncConnection, sync=False) as claim:
            db: Any = claim.resource(AsyncConnection)
            await db.execute(INSERT, {"note": "before"})
            try:
                await db.exec_driver_sql(statement)
            except sa.exc.DBAPIError:
                pass
            if more:
                await db.execute(INSERT, {"note": "would commit by itself"})
    assert notes(where) == ["before"]  # that is what MariaDB did, and it is not taken for a success
    assert await handle(store, "c") is State.NEW
    assert notes(where) == ["before", "c"]


@pytest.mark.parametrize("where", [SERVERS[1]], indirect=True)
async def test_an_event_that_does_not_fit_into_a_packet_is_the_events_fault(store: SqlAlchemyStore, where: str) -> None:
    from tidings.errors import EventTooLarge

    async with store.transaction() as db:
        await store.emit(db, [message("large", body=b"\\'\x00" * 1_500_000)])
        with pytest.raises(EventTooLarge, match="max_allowed_packet"):
            await store.emit(db, [message("too large", body=b"x" * 9_000_000)])
    assert waiting(where) == ["large"]


async def test_keys_that_differ_in_case_accents_or_trailing_spaces_are_different(store: SqlAlchemyStore) -> None:
    """Trap 131: by MariaDB's default collation all of these are one."""
    names = ["a", "A", "a ", "a  ", "á", "ä", "Ä", "\U0001f6d2", "\U0001f6d3", "ß", "ss"]
    async with store.claim([key(name) for name in names], resource=None, sync=False) as claim:
        assert {one.state for one in claim.states} == {State.NEW}
    async with store.claim([key("a  ", "second"), key("Á")], resource=None, sync=False) as claim:
        assert [one.state for one in claim.states] == [State.DONE, State.NEW]


@pytest.mark.parametrize("where", [SERVERS[0]], indirect=True)
async def test_through_a_proxy_that_pools_transactions_psycopg_works(where: str, server_folder: Path) -> None:
    """Each transaction may have another session, in which nothing was prepared."""
    url = sa.make_url(where)
    proxy = PgBouncer(server_folder, cast(Any, SimpleNamespace(port=url.port)), "default_pool_size = 3")
    with proxy:
        through = url.set(drivername="postgresql+psycopg", host="127.0.0.1", port=proxy.port)
        store = await opened(through.render_as_string(hide_password=False), poll=0.01)
        published: list[str] = []

        async def publish(messages: Any) -> list[None]:
            published.extend(message.id for message in messages)
            return [None] * len(messages)

        relay = asyncio.create_task(store.relay(publish))
        for number in range(12):
            await asyncio.gather(*(handle(store, f"{number} {sync}", sync=sync) for sync in (False, True)))
        await eventually(lambda: not waiting(where))
        relay.cancel()
        await asyncio.wait({relay})
        await store.close()
    assert len(notes(where)) == len(set(published)) == 24


@pytest.mark.parametrize("where", [SERVERS[0]], indirect=True)
async def test_through_a_proxy_asyncpg_is_refused_at_the_start_with_the_remedy(where: str, server_folder: Path) -> None:
    """Also where somebody left statements prepared in the session that it gives."""
    url = sa.make_url(where)
    with PgBouncer(server_folder, cast(Any, SimpleNamespace(port=url.port)), "default_pool_size = 1") as proxy:
        through = url.set(host="127.0.0.1", port=proxy.port)
        plain = through.set(drivername="postgresql").render_as_string(hide_password=False)
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=r"behind a proxy.*postgresql\+psycopg://") as caught:
                await SqlAlchemyStore(through).open()
            assert "tidings:tidings" not in str(caught.value)
            other = await asyncpg.connect(plain, timeout=10)
            await other.fetchval("SELECT 1 + $1::int", 1)  # now its name is taken there
            await other.close()
        # Whoever brings an engine of their own, which may be connected already.
        engine = create_async_engine(through, connect_args={"statement_cache_size": 0}, poolclass=sa.pool.StaticPool)
        others = "pid <> pg_backend_pid() AND datname = current_database()"
        query(where, f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}")
        async with engine.connect() as connection:
            await connection.exec_driver_sql("SELECT 1")
        with pytest.raises(ConfigurationError, match="behind a proxy"):
            await SqlAlchemyStore(engine).open()
        await engine.dispose()
