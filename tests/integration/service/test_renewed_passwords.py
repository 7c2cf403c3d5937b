"""A database's password is changed while a service works: its file is read again, and no event pays for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psycopg
import pymysql
import pytest
import sqlalchemy as sa
from redis import Redis
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.integration.shop import Placed
from tests.unit.parts import until
from tidings import ConfigurationError, Retry, Service
from tidings.stores import store_from
from tidings.testing import MemoryBroker

FIRST, SECOND = "first-hunter2", "second/hunter2 with spaces"


class Account:
    """A user of a server whose password can be changed, and whose connections can be ended."""

    def __init__(self, url: str, change: Callable[[str], None]) -> None:
        self.url, self.change = url, change


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Account]:
    name = "renew" + urlsplit(postgres_url).path.strip("/").replace("-", "")
    with psycopg.connect(postgres_url, autocommit=True, connect_timeout=10) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{FIRST}'".encode())
        admin.execute(f"GRANT ALL ON SCHEMA public TO {name}".encode())
        admin.execute(f'GRANT ALL ON DATABASE "{urlsplit(postgres_url).path.strip("/")}" TO {name}'.encode())

        def change(password: str) -> None:
            admin.execute(f"ALTER ROLE {name} PASSWORD '{password}'".encode())
            admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", [name])

        parts = urlsplit(postgres_url)
        yield Account(f"{parts.scheme}://{name}@{parts.hostname}:{parts.port}{parts.path}", change)
        admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", [name])
        admin.execute(f"DROP OWNED BY {name}".encode())
        admin.execute(f"DROP ROLE {name}".encode())


@pytest.fixture
def mariadb(mariadb_url: str) -> Iterator[Account]:
    parts = urlsplit(mariadb_url)
    name = "renew" + parts.path.strip("/").replace("-", "")
    admin = pymysql.connect(
        host=parts.hostname or "", port=parts.port or 0, user=parts.username or "", password=parts.password or ""
    )
    with admin, admin.cursor() as cursor:

        def change(password: str) -> None:
            cursor.execute(f"ALTER USER {name} IDENTIFIED BY '{password}'")
            cursor.execute(f"KILL USER {name}")

        cursor.execute(f"CREATE USER {name} IDENTIFIED BY '{FIRST}'")
        cursor.execute(f"GRANT ALL ON `{parts.path.strip('/')}`.* TO {name}")
        yield Account(f"{parts.scheme}://{name}@{parts.hostname}:{parts.port}{parts.path}", change)
        cursor.execute(f"DROP USER {name}")


@pytest.fixture
def redis(redis_url: str) -> Iterator[Account]:
    rights = ["~tidings:*", "+ping", "+select", "+evalsha", "+eval", "+time", "+get", "+set", "+del", "+pexpire"]
    with Redis.from_url(redis_url) as admin:

        def change(password: str) -> None:
            admin.execute_command("ACL", "SETUSER", "renew", "resetpass", f">{password}")
            admin.execute_command("CLIENT", "KILL", "USER", "renew")

        more = ["+persist", "+info", "+config|get"]
        admin.execute_command("ACL", "SETUSER", "renew", "on", f">{FIRST}", *rights, *more)
        yield Account(redis_url.replace("redis://", "redis://renew@"), change)
        admin.execute_command("ACL", "DELUSER", "renew")


async def by_asyncpg(event: Placed, db: asyncpg.Connection) -> None:
    await db.execute("INSERT INTO ledger VALUES ($1)", event.number)


async def by_connection(event: Placed, db: AsyncConnection) -> None:
    await db.execute(sa.text("INSERT INTO ledger VALUES (:n)"), {"n": event.number})


def in_a_thread(event: Placed, db: sa.Connection) -> None:
    db.execute(sa.text("INSERT INTO ledger VALUES (:n)"), {"n": event.number})


async def without_a_connection(event: Placed) -> None:
    NOTED.append(event.number)


NOTED: list[int] = []
REFUSED = ("is not right", "is not let in", "login was refused", "authentication failed")
"""One of these is how each store says that its password is wrong."""

CASES = [
    pytest.param(server, scheme, handler, id=f"{scheme}-{handler.__name__}", marks=pytest.mark.proves(store=store))
    for server, store, scheme, handler in [
        ("postgres", "postgres", "postgresql", by_asyncpg),
        ("postgres", "postgres", "postgresql+asyncpg", by_connection),
        ("postgres", "postgres", "postgresql+psycopg", by_connection),
        ("postgres", "postgres", "postgresql+asyncpg", in_a_thread),
        ("mariadb", "mariadb", "mariadb+aiomysql", by_connection),
        ("mariadb", "mariadb", "mariadb+aiomysql", in_a_thread),
        ("redis", "redis", "redis", without_a_connection),
    ]
]


@pytest.mark.proves("P10", broker="memory")
@pytest.mark.parametrize(("server", "scheme", "handler"), CASES)
async def test_P4_P10_a_password_that_is_changed_is_read_again_and_no_event_fails_for_it(
    server: str,
    scheme: str,
    handler: Callable[..., Any],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    account: Account = request.getfixturevalue(server)
    NOTED.clear()
    secret = tmp_path / "a secret"
    secret.write_text(FIRST + "\n")
    url = f"{scheme}:{account.url.partition(':')[2]}?password_file={str(secret).replace(' ', '%20')}"
    broker = MemoryBroker()
    stock = Service("stock", store=url, publishes=[Placed])
    stock.on(Placed, name="reserve", retry=Retry(attempts=1))(handler)
    if server != "redis":
        _make_ledger(account, scheme)
    with caplog.at_level(logging.INFO):
        async with stock.running(broker=broker):
            (worker,) = stock.active.workers
            await stock.publish(Placed(order_id="a", number=1))
            await broker.idle(30)
            await asyncio.to_thread(account.change, SECOND)
            await stock.publish(Placed(order_id="a", number=2))
            await until(lambda: any(word in worker.trouble for word in REFUSED), 60)
            secret.unlink()
            await until(lambda: "there is no such file" in worker.trouble, 60)
            secret.write_text(SECOND)
            await until(lambda: not worker.trouble, 60)
            await broker.idle(30)
            await stock.publish(Placed(order_id="a", number=3))
            await broker.idle(30)
    assert not broker.dead_letters
    applied = NOTED if server == "redis" else _ledger(account, scheme, SECOND)
    assert sorted(applied) == [1, 2, 3]
    assert "hunter2" not in caplog.text


def _engine(account: Account, scheme: str, password: str) -> sa.Engine:
    driver = "mariadb+pymysql" if scheme.startswith("mariadb") else "postgresql+psycopg"
    return sa.create_engine(sa.make_url(account.url).set(drivername=driver, password=password))


def _make_ledger(account: Account, scheme: str) -> None:
    engine = _engine(account, scheme, FIRST)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE ledger (number INTEGER)"))
    engine.dispose()


def _ledger(account: Account, scheme: str, password: str) -> list[int]:
    engine = _engine(account, scheme, password)
    with engine.connect() as connection:
        found = [number for (number,) in connection.execute(sa.text("SELECT number FROM ledger"))]
    engine.dispose()
    return found


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me{}@127.0.0.1:1/shop",
        "postgresql+asyncpg://me{}@127.0.0.1:1/shop",
        "postgresql+psycopg://me{}@127.0.0.1:1/shop",
        "mariadb+aiomysql://me{}@127.0.0.1:1/shop",
        "redis://me{}@127.0.0.1:1",
    ],
)
async def test_a_password_file_that_is_not_there_or_beside_a_password_stops_the_start(url: str, tmp_path: Path) -> None:
    for there, given, said in ((False, "", "there is no such file"), (True, ":hunter2", "password")):
        path = tmp_path / "secret"
        if there:
            path.write_text("x")
        with pytest.raises(ConfigurationError, match=said) as error:
            await store_from(f"{url.format(given)}?password_file={path}").open()
        assert "hunter2" not in str(error.value)


def test_a_sqlite_file_has_no_password() -> None:
    with pytest.raises(ConfigurationError, match="for a database server"):
        store_from("sqlite:///shop.db?password_file=/x")
