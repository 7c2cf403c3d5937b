"""`db`, `relay` and `outbox`: the tables, and what waits in them, from the command line."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.cli.shell import Shell, await_

STORE = "sqlite:///shop.db"

PAYING = """
from tidings import Service
from shop.events import OrderPlaced

paying = Service("paying", publishes=[OrderPlaced])
"""

EMIT = """
import asyncio
from tidings.delivery import Message
from tidings.stores.sqlalchemy import SqlAlchemyStore

async def main():
    store = SqlAlchemyStore("sqlite:///shop.db")
    await store.open()
    async with store.transaction() as db:
        for id in ("e1", "e2"):
            await store.emit(db, [Message(id=id, stream="order", type="order.placed", key="k", body=b"{}")])
    await store.close()

asyncio.run(main())
"""


def rows(shell: Shell, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(shell.folder / "shop.db", timeout=5)) as connection:
        return connection.execute(statement).fetchall()


def change(shell: Shell, statement: str) -> None:
    with closing(sqlite3.connect(shell.folder / "shop.db", timeout=5)) as connection, connection:
        connection.executescript(statement)


def emit(shell: Shell) -> None:
    subprocess.run([sys.executable, "-c", EMIT], cwd=shell.folder, check=True, timeout=60)


def park(shell: Shell) -> None:
    emit(shell)
    change(
        shell,
        "UPDATE tidings_outbox SET parked = 1, retry_at = 1e18, error = 'EventTooLarge: 2 MiB' WHERE message_id = 'e1'",
    )


# ── db ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_init_makes_the_tables_and_may_be_repeated(shell: Shell) -> None:
    for _ in range(2):
        done = shell.run("db", "init", STORE)
        assert (done.status, done.out) == (0, f"{STORE} has the tables of version 2\n"), done
    assert rows(shell, "SELECT version FROM tidings_schema") == [(2,)]
    assert shell.run("db", "init", "--json", TIDINGS_STORE=STORE).records == [{"store": STORE, "version": 2}]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("init",), "no store is named"),
        (("init", "memory:"), "memory: has no tables"),
        (("init", "sqlite:////no/such/folder/shop.db"), "there is no folder /no/such/folder"),
        (("init", "oracle://scott:tiger@host/db"), "there is no store oracle:"),
        (("sql", "oracle"), "sqlite, postgresql, mariadb"),
        (("sql", "sqlite", "--from", "7"), "the versions 1 to 2"),
    ],
)
def test_what_cannot_be_is_said_in_one_line_without_a_secret(
    shell: Shell, arguments: tuple[str, ...], says: str
) -> None:
    done = shell.run("db", *arguments)
    assert done.status in (3, 4), done
    assert says in done.err
    assert done.err.count("\n") == 1
    assert "tiger" not in done.err
    assert done.out == ""


def test_the_printed_statements_make_what_a_store_would(shell: Shell) -> None:
    done = shell.run("db", "sql", "sqlite")
    assert done.status == 0, done
    change(shell, done.out)
    before = rows(shell, "SELECT name, sql FROM sqlite_master ORDER BY name")
    assert shell.run("db", "init", STORE).status == 0
    assert rows(shell, "SELECT name, sql FROM sqlite_master ORDER BY name") == before
    assert shell.run("db", "init", "sqlite:///other.db").status == 0
    with closing(sqlite3.connect(shell.folder / "other.db")) as other:
        names = other.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall()
    assert [name for name, _ in before] == [name for (name,) in names]


def test_a_url_says_the_database_and_its_password_is_not_printed(shell: Shell) -> None:
    plain = shell.run("db", "sql", "postgresql+asyncpg://me:secret@host/shop")
    own = shell.run("db", "sql", "postgresql://me:secret@host/shop", "--json")
    assert (plain.status, own.status) == (0, 0)
    assert "secret" not in plain.out + own.out
    assert "tidings_open" not in plain.out
    assert any("tidings_open" in record["sql"] for record in own.records), "the store through asyncpg has one more"


# ── relay ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.server
def test_relay_publishes_what_waits_and_runs_no_handler(served: Shell) -> None:
    served.write("shop/paying.py", PAYING)
    assert served.run("db", "init", STORE).status == 0
    emit(served)
    relay = served.start("relay", "shop.paying:paying", "--store", STORE).until("is ready")
    await_(lambda: rows(served, "SELECT count(*) FROM tidings_outbox") == [(0,)])
    assert relay.stop() == 0
    assert len(served.run("tail", "order", "--json").records) == 2
    assert served.applied() == []


@pytest.mark.server
def test_relay_makes_no_file_of_a_mistyped_name(served: Shell) -> None:
    served.write("shop/paying.py", PAYING)
    assert served.run("db", "sql", "sqlite:///ship.db").status == 0
    done = served.run("relay", "shop.paying:paying", "--store", "sqlite:///ship.db")
    assert not (served.folder / "ship.db").exists()
    assert (done.status, "there is no file" in done.err, "ship.db" in done.err) == (3, True, True), done


@pytest.mark.server
def test_relay_says_that_there_is_no_outbox(served: Shell) -> None:
    done = served.run("relay", "shop.stock:stock")
    assert (done.status, "has no outbox to relay" in done.err) == (3, True), done


# ── outbox ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_parked_events_are_listed_released_and_discarded(shell: Shell) -> None:
    park(shell)
    listed = shell.run("outbox", "list", "--store", STORE)
    assert listed.status == 0, listed
    assert "EventTooLarge: 2 MiB" in listed.out
    assert "2 events wait to be published, 1 of them parked" in listed.out
    (record,) = shell.run("outbox", "list", "--json", TIDINGS_STORE=STORE).records
    assert (record["event_id"], record["key"], record["error"]) == ("e1", "k", "EventTooLarge: 2 MiB")

    number = str(record["id"])
    assert shell.run("outbox", "release", number, "--store", STORE).out == f"{number} released\n"
    assert rows(shell, "SELECT parked, retry_at FROM tidings_outbox WHERE message_id = 'e1'") == [(0, 0.0)]
    again = shell.run("outbox", "discard", number, "--store", STORE, "--json")
    assert (again.status, again.records) == (1, [{"id": record["id"], "changed": False}])

    change(shell, "UPDATE tidings_outbox SET parked = 1 WHERE message_id = 'e1'")
    assert shell.run("outbox", "discard", number, "--store", STORE).status == 0
    assert rows(shell, "SELECT message_id FROM tidings_outbox") == [("e2",)]


@pytest.mark.parametrize("command", [("outbox", "list"), ("outbox", "release", "1"), ("outbox", "discard", "1")])
def test_an_outbox_is_looked_for_and_never_made(shell: Shell, command: tuple[str, ...]) -> None:
    emit(shell)  # the database that was meant
    before = sorted(path.name for path in shell.folder.iterdir())
    done = shell.run(*command, "--store", "sqlite:///ship.db")
    assert (done.status, "there is no file" in done.err, "ship.db" in done.err) == (3, True, True), done
    assert sorted(path.name for path in shell.folder.iterdir()) == before

    with closing(sqlite3.connect(shell.folder / "ship.db")) as other, other:
        other.execute("CREATE TABLE yours (id)")
    as_it_was = (shell.folder / "ship.db").read_bytes()
    done = shell.run(*command, "--store", "sqlite:///ship.db")
    assert (done.status, "has no tables tidings_*" in done.err) == (3, True), done
    assert (shell.folder / "ship.db").read_bytes() == as_it_was


def test_an_outbox_of_an_older_version_is_not_upgraded_by_looking_at_it(shell: Shell) -> None:
    emit(shell)
    change(shell, "UPDATE tidings_schema SET version = 1")
    done = shell.run("outbox", "list", "--store", STORE)
    assert (done.status, "are of version 1" in done.err, "tidings db init" in done.err) == (3, True, True), done
    change(shell, "UPDATE tidings_schema SET version = 99")
    done = shell.run("outbox", "list", "--store", STORE)
    assert (done.status, "made by a newer Tidings" in done.err) == (3, True), done


def test_an_outbox_on_a_server_is_looked_for_and_never_made(shell: Shell, postgres_url: str, mariadb_url: str) -> None:
    through = postgres_url.replace("postgresql://", "postgresql+psycopg://", 1)
    for url in (postgres_url, through, mariadb_url):
        done = shell.run("outbox", "list", "--store", url)
        assert (done.status, "has no tables tidings_*" in done.err) == (3, True), done
    for url in (postgres_url, mariadb_url):
        done = shell.run("outbox", "list", "--store", url)
        assert (done.status, "has no tables tidings_*" in done.err) == (3, True), "it made them the time before"
        assert shell.run("db", "init", url).status == 0
    for url in (postgres_url, through, mariadb_url):
        done = shell.run("outbox", "list", "--store", url)
        assert (done.status, "0 events wait" in done.out) == (0, True), done


def test_an_outbox_is_asked_for_where_there_can_be_one(shell: Shell) -> None:
    done = shell.run("outbox", "list", "--store", "memory:")
    assert (done.status, "memory: has no outbox" in done.err) == (3, True), done
    done = shell.run("outbox", "release", "--store", STORE)
    assert done.status == 2, done
    assert not Path(shell.folder / "shop.db").exists()
    assert json.loads(shell.run("outbox", "list", "--json").err)["status"] == 3
