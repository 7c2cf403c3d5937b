"""Fixtures: one server of each kind for the whole run, and an empty database in it for each test.

A URL in the environment takes a server's place: `TIDINGS_TEST_POSTGRES`, `TIDINGS_TEST_MARIADB` (both with the right to
create databases) and `TIDINGS_TEST_REDIS`. Tests that kill or pause their server start one of their own instead, with
`tools.services`.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pymysql
import pytest

from tools.services.mariadb import MariaDB
from tools.services.postgres import Postgres
from tools.services.redis import Redis


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL whose user may create databases."""
    if given := os.environ.get("TIDINGS_TEST_POSTGRES"):
        yield given
        return
    with folder_for("postgres") as folder, Postgres(folder) as server:
        yield server.url


@pytest.fixture(scope="session")
def mariadb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a MariaDB whose user may create databases, as SQLAlchemy writes it (`mariadb+aiomysql://…`)."""
    if given := os.environ.get("TIDINGS_TEST_MARIADB"):
        yield given
        return
    with MariaDB(tmp_path_factory.mktemp("mariadb")) as server:
        yield server.url


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis that keeps everything it was told (appendfsync always, noeviction)."""
    if given := os.environ.get("TIDINGS_TEST_REDIS"):
        yield given
        return
    with Redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """An empty PostgreSQL database: `postgresql://…`."""
    name = _name()
    with psycopg.connect(postgres_server, autocommit=True, connect_timeout=10) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    yield _database(postgres_server, name)
    with psycopg.connect(postgres_server, autocommit=True, connect_timeout=10) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@pytest.fixture
def mariadb_url(mariadb_server: str) -> Iterator[str]:
    """An empty MariaDB database: `mariadb+aiomysql://…`."""
    name = _name()
    _mariadb(mariadb_server, f"CREATE DATABASE `{name}`")
    yield _database(mariadb_server, name)
    _mariadb(mariadb_server, f"DROP DATABASE `{name}`")


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """A Redis for keys of the test's own: use a service name that no other test has."""
    return redis_server


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """A folder for a server that the test starts, and may kill, itself."""
    with folder_for("server") as folder:
        yield folder


@contextmanager
def folder_for(what: str) -> Iterator[Path]:
    """A folder of a server's own, and not among those of the tests.

    A second run of the tests closes those to all others, PostgreSQL's own user too: it panics then, in the first run.
    """
    with tempfile.TemporaryDirectory(prefix=f"tidings-{what}-") as folder:
        yield Path(folder)


def _name() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"


def _database(server: str, name: str) -> str:
    return urlunsplit(urlsplit(server)._replace(path=f"/{name}"))


def _mariadb(server: str, statement: str) -> None:
    url = urlsplit(server)
    connection = pymysql.connect(
        host=url.hostname or "127.0.0.1",
        port=url.port or 3306,
        user=url.username or "",
        password=url.password or "",
        connect_timeout=10,
    )
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)
