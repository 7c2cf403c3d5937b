"""`store_from`: the store that a URL stands for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from tidings.errors import ConfigurationError
from tidings.stores import store_from
from tidings.stores.memory import MemoryStore
from tidings.stores.sqlalchemy import SqlAlchemyStore


@pytest.mark.parametrize("url", ["sqlite:///x.db", "sqlite+aiosqlite:///x.db", "SQLite:////tmp/x.db"])
def test_a_sqlite_url_gives_the_sqlalchemy_store(url: str) -> None:
    assert isinstance(store_from(url), SqlAlchemyStore)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://bob:s3cret@db/shop",
        "postgresql+psycopg://bob:s3cret@db/shop",
        "mariadb+aiomysql://bob:s3cret@db/shop",
        "mysql+aiomysql://bob:s3cret@db/shop",
    ],
)
def test_a_url_of_a_database_and_its_driver_gives_the_sqlalchemy_store_and_shows_no_password(url: str) -> None:
    store = store_from(url)
    assert isinstance(store, SqlAlchemyStore)
    assert "s3cret" not in repr(store)
    assert "shop" in repr(store)


@pytest.mark.parametrize("url", ["postgresql+asyncpg://u@db/shop", "mariadb+aiomysql://u@db/shop"])
async def test_a_live_engine_of_another_database_is_taken(url: str) -> None:
    engine = create_async_engine(url)
    assert isinstance(store_from(engine), SqlAlchemyStore)
    await engine.dispose()


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("mysql+asyncmy://bob:s3cret@db/shop", r"mariadb\+aiomysql://"),
        ("mariadb://bob:s3cret@db/shop", r"mariadb\+aiomysql://"),
        ("postgresql+psycopg2://bob:s3cret@db/shop", r"Write postgresql\+asyncpg://.* AsyncConnection, or"),
    ],
)
def test_another_driver_is_refused_with_the_ones_that_are_known(url: str, remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=remedy) as caught:
        store_from(url)
    assert "s3cret" not in str(caught.value)


MISSING = """
import sys
sys.modules[sys.argv[2]] = None
from tidings.errors import ConfigurationError
from tidings.stores import store_from
from sqlalchemy import Connection
try:
    print(store_from(sys.argv[1]).gives(Connection, sync=True))
except ConfigurationError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("postgresql+asyncpg://u@db/shop", "asyncpg", "sqlalchemy-postgres"),
        ("postgresql+psycopg://u@db/shop", "psycopg", "sqlalchemy-postgres"),
        ("postgresql+asyncpg://u@db/shop", "psycopg", "sqlalchemy-postgres"),  # for the sync handler
        ("mariadb+aiomysql://u@db/shop", "aiomysql", "mariadb"),
    ],
)
def test_a_driver_that_is_missing_is_named_with_what_to_install(url: str, module: str, extra: str) -> None:
    command = [sys.executable, "-c", MISSING, url, module]
    done = subprocess.run(command, timeout=60, check=True, capture_output=True, text=True)
    assert module in done.stdout
    assert f"pip install 'tidings[{extra}]'" in done.stdout


def test_memory_gives_the_memory_store() -> None:
    assert isinstance(store_from("memory:"), MemoryStore)


async def test_a_live_engine_is_taken(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/x.db")
    assert isinstance(store_from(engine), SqlAlchemyStore)
    await engine.dispose()


def test_a_store_is_returned_as_it_is() -> None:
    store = MemoryStore()
    assert store_from(store) is store


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "PostgreSQL"])
def test_the_driver_of_postgresql_is_found_by_its_scheme_and_keeps_the_password_to_itself(scheme: str) -> None:
    store = store_from(f"{scheme}://bob:s3cret@db/shop")
    assert type(store).__name__ == "PostgresStore"
    assert "shop on db:5432" in repr(store)
    assert "s3cret" not in repr(store)


async def test_a_live_pool_of_asyncpg_is_found() -> None:
    import asyncpg

    assert type(store_from(asyncpg.create_pool("postgresql://nowhere/x"))).__name__ == "PostgresStore"


def test_without_its_library_a_store_says_what_to_install() -> None:
    code = """
import sys
sys.modules["asyncpg"] = None
from tidings.errors import ConfigurationError
from tidings.stores import store_from
try:
    store_from("postgresql://db/shop")
except ConfigurationError as error:
    sys.exit("pip install 'tidings[postgres]'" not in str(error))
sys.exit(2)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    "url", ["oracle://bob:s3cret@db", "shop.db", "", "bob:s3cret@db/shop", "sqlite+pysqlite:///x", "sqlite:x.db"]
)
def test_an_unknown_url_is_refused_with_what_is_known_and_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"sqlite:///file\.db") as caught:
        store_from(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("spec", [42, None, b"sqlite:///x.db"])
def test_what_is_no_url_and_no_engine_is_refused(spec: object) -> None:
    with pytest.raises(ConfigurationError, match="URL"):
        store_from(spec)


@pytest.mark.parametrize("url", ["sqlite:///", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="memory:"):
        store_from(url)


async def test_an_engine_of_another_database_is_refused(tmp_path: Path) -> None:
    from sqlalchemy import create_engine

    engine = create_engine(f"sqlite:///{tmp_path}/x.db")
    with pytest.raises(ConfigurationError, match="AsyncEngine"):
        store_from(engine)
    engine.dispose()


def test_no_library_is_imported_before_it_is_needed() -> None:
    names = ("sqlalchemy", "aiosqlite", "asyncpg")
    code = f"import sys, tidings.stores; sys.exit(any(name in sys.modules for name in {names}))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
