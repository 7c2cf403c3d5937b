"""A database that dies, hangs, refuses or loses its answers: nothing is taken for done that is not, and it heals."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.integration.postgres.conftest import Opens
from tests.integration.postgres.ledger import (
    CREATE,
    INSERT,
    applied,
    connected,
    eventually,
    in_transaction,
    key,
    message,
    notes,
    query,
    quietly,
    run,
    waiting,
)
from tests.integration.postgres.test_claims import NEW, PG, apply, done
from tests.integration.postgres.test_outbox import relaying
from tests.proxy import Proxy
from tests.servers import folder_for
from tidings.errors import ConfigurationError, StoreUnavailable
from tidings.stores._postgres_outbox import PostgresOutbox
from tidings.stores.postgres import PostgresStore, Statements
from tools.services.postgres import Postgres

WITHIN = 3.0
"""What a server has for an answer: longer than a busy machine keeps one from it."""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """One to kill and pause."""
    with folder_for("postgres-faults") as folder, Postgres(folder) as server:
        run(server.url, CREATE)
        yield server


@pytest.fixture
async def mortal(server: Postgres, opens: Opens) -> PostgresStore:
    store: PostgresStore = await opens(server.url, answer_timeout=WITHIN)
    run(server.url, "TRUNCATE ledger, tidings_inbox, tidings_outbox")
    return store


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[Proxy]:
    proxy = await Proxy(int(url.rpartition(":")[2].partition("/")[0])).start()
    yield proxy
    await proxy.stop()


def through(proxy: Proxy, url: str) -> str:
    head, _, tail = url.rpartition(":")
    return f"{head}:{proxy.port}/{tail.partition('/')[2]}"


@pytest.mark.proves("P3", "P4", store="postgres")
async def test_P4_a_server_killed_inside_a_transaction_keeps_nothing_of_it(
    mortal: PostgresStore, server: Postgres
) -> None:
    async with relaying(mortal) as published:
        with pytest.raises(Exception) as caught:
            async with mortal.claim([key("a")], resource=PG, sync=False) as claim:
                db: Any = claim.resource(PG)
                await db.execute(INSERT, "a")
                await claim.emit([message("m")])
                server.stop(signal.SIGKILL)
                error = await quietly(db.execute(INSERT, "b"))
                assert isinstance(error, Exception)
                assert isinstance(mortal.translate(error), StoreUnavailable)
                raise error
        assert isinstance(caught.value, asyncpg.PostgresError | asyncpg.InterfaceError | OSError)
        with pytest.raises(StoreUnavailable, match=r"cannot be reached|the connection was lost"):
            await apply(mortal, "a", "a")
        server.start()
        assert notes(server.url) == applied(server.url) == waiting(server.url) == []
        async with mortal.claim([key("a")], resource=PG, sync=False) as claim:
            assert list(claim.states) == [NEW]
            await claim.emit([message("m")])
        await eventually(lambda: published.ids == ["m"])


async def test_a_server_that_hangs_is_given_up_after_a_while_and_used_again(
    mortal: PostgresStore, server: Postgres
) -> None:
    """Trap 158."""
    assert await apply(mortal, "a", "a") == NEW
    server.pause()
    try:
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await apply(mortal, "b", "b")
        with pytest.raises(StoreUnavailable):
            await mortal.outbox_backlog()
    finally:
        server.resume()
    assert await apply(mortal, "c", "c") == NEW
    await eventually(lambda: in_transaction(server.url) == 0)
    assert notes(server.url) == ["a", "c"]


async def test_P10_queued_statements_that_a_silent_server_does_not_answer_are_given_up_and_the_lane_goes_on(
    opens: Opens, url: str, proxy: Proxy
) -> None:
    store = await opens(through(proxy, url), answer_timeout=WITHIN)

    async def handle() -> None:
        async with store.claim([key("a")], resource=Statements, sync=False) as claim:
            statements: Any = claim.resource(Statements)
            statements.execute(INSERT, "a")
            proxy.freeze()

    handling = asyncio.create_task(handle())
    ended, _ = await asyncio.wait({handling}, timeout=20.0)
    proxy.cut()  # or what hangs would hang on, whatever cancels it
    assert ended, "its time is over"
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await handling
    await eventually(lambda: in_transaction(url) == 0)
    assert await apply(store, "a", "a") == NEW
    assert notes(url) == ["a"]


async def test_a_server_that_is_shut_down_is_unavailable_and_not_the_events_fault(
    mortal: PostgresStore, server: Postgres
) -> None:
    with pytest.raises(StoreUnavailable, match=r"administrator|lost"):
        async with mortal.claim([key("a")], resource=PG, sync=False) as claim:
            server.stop(signal.SIGINT)
            assert claim.states == (NEW,)
    server.start()
    assert await apply(mortal, "a", "a") == NEW


FAREWELL = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"


async def test_P3_a_connection_that_was_told_its_end_while_it_was_idle_is_lost_and_not_used_again(
    opens: Opens, proxy: Proxy, url: str
) -> None:
    store: PostgresStore = await opens(through(proxy, url))
    assert await apply(store, "a", "a") == NEW
    proxy.inject(b"E" + (len(FAREWELL) + 4).to_bytes(4, "big") + FAREWELL)
    await asyncio.sleep(0.1)  # until it is heard; the connection stands on
    with pytest.raises(StoreUnavailable, match="in no state to be used"):
        await apply(store, "b", "b")
    assert await apply(store, "c", "c") == NEW
    assert notes(url) == ["a", "c"]


async def test_a_session_that_is_terminated_takes_its_claim_back(store: PostgresStore, url: str) -> None:
    error: Any
    with pytest.raises(StoreUnavailable):
        async with store.claim([key("a")], resource=PG, sync=False) as claim:
            db: Any = claim.resource(PG)
            await db.execute(INSERT, "a")
            pid = await db.fetchval("SELECT pg_backend_pid()")
            run(url, f"SELECT pg_terminate_backend({pid}, 5000)")
            error = await quietly(db.execute(INSERT, "b"))
            raise store.translate(error) or error
    assert notes(url) == applied(url) == []
    assert await apply(store, "a", "a") == NEW


@pytest.mark.parametrize("cuts", [True, False], ids=["cut", "silent"])
@pytest.mark.parametrize("pool", [0, 3], ids=["url", "pool"])
@pytest.mark.proves("P3", "P4", store="postgres")
async def test_P4_a_commit_whose_answer_was_lost_is_looked_up(
    opens: Opens, url: str, proxy: Proxy, cuts: bool, pool: int
) -> None:
    store = await opens(through(proxy, url), pool=pool, answer_timeout=WITHIN)
    proxy.unanswered, proxy.cuts = b"; COMMIT", cuts
    assert await apply(store, "a", "a") == NEW  # no error: it took effect
    assert proxy.lost
    assert (notes(url), applied(url)) == (["a"], ["a"])
    assert await apply(store, "a", "twice") == done()

    proxy.unanswered, proxy.lost = b"; COMMIT", 0
    async with store.transaction() as db:
        await db.execute(INSERT, "b")
        await store.emit(db, [message("m")])
    assert proxy.lost
    assert (notes(url), waiting(url)) == (["a", "b"], ["m"])


@pytest.mark.parametrize("cuts", [True, False], ids=["cut", "silent"])
@pytest.mark.proves("P3", "P4", store="postgres")
async def test_P4_a_commit_that_never_arrived_is_not_taken_for_done(
    opens: Opens, url: str, proxy: Proxy, cuts: bool
) -> None:
    store = await opens(through(proxy, url), answer_timeout=WITHIN)
    proxy.lose, proxy.cuts = b"; COMMIT", cuts
    with pytest.raises(StoreUnavailable):
        await apply(store, "a", "a")
    with pytest.raises(StoreUnavailable):
        async with store.transaction() as db:
            await db.execute(INSERT, "b")
    proxy.lose = b""
    await eventually(lambda: in_transaction(url) == 0)
    assert notes(url) == applied(url) == []
    assert await apply(store, "a", "a") == NEW


async def test_a_commit_that_nobody_can_tell_of_is_not_taken_for_done(opens: Opens, url: str, proxy: Proxy) -> None:
    """It comes again then, and finds its key."""
    store = await opens(through(proxy, url), answer_timeout=WITHIN)
    proxy.swallow, proxy.cuts = b"COMMIT\0", True
    with pytest.raises(StoreUnavailable):
        await apply(store, "a", "a")
    with pytest.raises(StoreUnavailable, match="not known"):
        async with store.transaction() as db:
            await db.execute(INSERT, "b")
    proxy.swallow = b""
    assert await apply(store, "a", "twice") == done()
    assert notes(url) == ["a", "b"]


async def test_a_database_that_may_only_be_read_says_so(opens: Opens, url: str) -> None:
    store = await opens()
    name = url.rpartition("/")[2]
    run(url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    try:
        reading = await opens()
        with pytest.raises(StoreUnavailable, match="only be read"):
            await apply(reading, "a", "a")
    finally:
        with connected(url) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only'.encode())
    assert await apply(store, "a", "a") == NEW


@pytest.mark.parametrize("pool", [0, 3])
async def test_P10_a_server_that_may_only_be_read_since_a_failover_is_left_for_the_one_at_its_address(
    server: Postgres, opens: Opens, url: str, pool: int
) -> None:
    """Whoever connects in the middle of one comes to a standby, which answers and refuses for ever."""
    name = url.rpartition("/")[2]
    old = server.database(name)
    run(server.url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    run(server.url, f'CREATE DATABASE "{name}"')
    for one in (old, url):
        await opens(one)  # both have the tables
    run(server.url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    proxy = await Proxy(server.port).start()
    try:
        store = await opens(old.replace(f":{server.port}/", f":{proxy.port}/"), pool=pool)
        with pytest.raises(StoreUnavailable, match="only be read"):
            await apply(store, "a", "a")
        proxy.lead_to(urlsplit(url).port or 0)
        with suppress(StoreUnavailable):
            await apply(store, "a", "a")  # a pool may have a second connection to it
        assert await apply(store, "b", "b") == NEW
    finally:
        await proxy.stop()
    assert notes(url)[-1] == "b"


async def test_several_processes_make_the_tables_at_once_whatever_isolation_is_the_default(
    postgres_url: str,
) -> None:
    """With a snapshot from before it waited for the lock, each would make what another has made."""
    name = postgres_url.rpartition("/")[2]
    run(postgres_url, f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'repeatable read'")
    stores = [PostgresStore(postgres_url) for _ in range(6)]
    opened = await asyncio.gather(*(store.open() for store in stores), return_exceptions=True)
    for store in stores:
        await store.close()
    assert opened == [None] * len(stores)


async def test_the_relays_of_two_processes_never_meet_in_an_error_of_isolation(postgres_url: str, opens: Opens) -> None:
    name = postgres_url.rpartition("/")[2]
    run(postgres_url, f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'serializable'")
    outboxes = [PostgresOutbox((await opens(postgres_url))._desk) for _ in range(4)]
    for _ in range(10):
        taken = await asyncio.gather(*(one.lease(str(at), 0.0) for at, one in enumerate(outboxes)))
        assert any(taken)


async def test_a_full_disk_and_other_troubles_of_the_server_have_words_for_a_person(
    store: PostgresStore, url: str
) -> None:
    words = {"53100": "Make room", "53300": "max_connections", "57P03": "starting", "XX001": "backup", "28P01": "hba"}
    run(
        url,
        "CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'as told'"
        " USING ERRCODE = TG_ARGV[0]; END $$",
    )
    for code, wanted in words.items():
        run(
            url,
            "CREATE OR REPLACE TRIGGER fails BEFORE INSERT ON tidings_inbox FOR EACH ROW"
            f" EXECUTE FUNCTION fails('{code}')",
        )
        with pytest.raises(StoreUnavailable, match=wanted):
            await apply(store, "a", "a")
    assert notes(url) == []


async def test_tables_that_are_gone_are_named(store: PostgresStore, url: str) -> None:
    run(url, "DROP TABLE tidings_inbox")
    with pytest.raises(StoreUnavailable, match=r"tidings_inbox.*Are its tables"):
        await apply(store, "a", "a")


async def test_what_cannot_be_opened_says_why_without_the_password(url: str, tmp_path: Path) -> None:
    server = url.rpartition("/")[0]
    wrong = server.replace("tidings:tidings@", "tidings:s3cret@")
    for target, kind, words in (
        ("postgresql://bob:s3cret@127.0.0.1:1/shop", StoreUnavailable, "cannot be reached"),
        (f"{wrong}/shop", StoreUnavailable, "not let in"),
        (f"{server}/nowhere", StoreUnavailable, "no such database"),
        ("postgresql://bob:s3cret@host:port/shop", ConfigurationError, "URL"),
    ):
        with pytest.raises(kind, match=words) as caught:
            await PostgresStore(target).open()
        assert "s3cret" not in str(caught.value)


async def test_tables_of_a_newer_tidings_are_refused(opens: Opens, url: str) -> None:
    await opens()
    run(url, "INSERT INTO tidings_schema VALUES (99, 0)")
    with pytest.raises(ConfigurationError, match="newer Tidings"):
        await opens()


async def test_several_processes_may_make_the_tables_at_once(opens: Opens, url: str) -> None:
    await asyncio.gather(*(opens() for _ in range(6)))
    assert query(url, "SELECT count(*) FROM tidings_schema") == [(1,)]
    assert query(url, "SELECT count(*) FROM tidings_relay") == [(1,)]
