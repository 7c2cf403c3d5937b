"""Stores on real databases: SQLite files, PostgreSQL and MariaDB."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.stores.ledger import Where, clean, create, temporary, url_of
from tidings.stores.sqlalchemy import SqlAlchemyStore

EVERY = [
    pytest.param("sqlite", marks=pytest.mark.proves(store="sqlite")),
    pytest.param("postgresql", marks=pytest.mark.proves(store="postgres")),
    pytest.param("mariadb", marks=pytest.mark.proves(store="mariadb")),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A SQLite file, for tests of SQLite alone."""
    return tmp_path / "shop.db"


@pytest.fixture(scope="session")
def postgresql(postgres_server: str) -> Iterator[str]:
    """One database for the whole run, because making one for each test takes longer than the test."""
    with temporary(postgres_server.replace("postgresql:", "postgresql+asyncpg:")) as url:
        yield url


@pytest.fixture(scope="session")
def mariadb(mariadb_server: str) -> Iterator[str]:
    with temporary(mariadb_server) as url:
        yield url


@pytest.fixture(params=EVERY)
def where(request: pytest.FixtureRequest, path: Path) -> Where:
    """A database of each kind in turn, without rows."""
    if request.param == "sqlite":
        return path
    url = str(request.getfixturevalue(request.param))
    clean(url)
    return url


@pytest.fixture(params=EVERY)
def empty(request: pytest.FixtureRequest, path: Path) -> Iterator[Where]:
    """A new database of each kind in turn, without tables."""
    if request.param == "sqlite":
        yield path
        return
    with temporary(str(request.getfixturevalue(request.param))) as url:
        yield url


@pytest.fixture
async def store(where: Where) -> AsyncIterator[SqlAlchemyStore]:
    """An open store with a ledger table beside its own."""
    store = SqlAlchemyStore(url_of(where), lock_timeout=0.3, poll=0.05, lease=1.0)
    await store.open()
    create(where)
    try:
        yield store
    finally:
        await store.close()
