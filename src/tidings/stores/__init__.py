"""Stores, found by URL scheme: what remembers which keys were applied."""

from __future__ import annotations

from typing import Any, cast

from tidings.errors import ConfigurationError
from tidings.ports import Store

KNOWN = (
    "sqlite:///file.db, postgresql+asyncpg://user@host/name, postgresql+psycopg://user@host/name,"
    " mariadb+aiomysql://user@host/name, redis://host:6379/0, memory:"
)

THROUGH_SQLALCHEMY = ("postgresql+asyncpg", "postgresql+psycopg", "mariadb+aiomysql", "mysql+aiomysql")

DRIVERS = {
    "postgresql": "asyncpg or psycopg. Write postgresql+asyncpg://user@host/name",
    "mysql": "aiomysql. Write mariadb+aiomysql://user@host/name",
    "mariadb": "aiomysql. Write mariadb+aiomysql://user@host/name",
    "sqlite": "aiosqlite. Write sqlite:///file.db",
}

NOT_BUILT = {
    "postgresql": "PostgreSQL",
    "postgres": "PostgreSQL",
}


def store_from(spec: object) -> Store:
    """The store that a URL, a live `AsyncEngine` or a live `redis.asyncio.Redis` stands for; a store is itself.

    Libraries are imported only for the store that is used.

    Raises:
        ConfigurationError: nothing is known by this name, or the store is not built yet.
    """
    if isinstance(spec, str):
        return _by_url(spec)
    if callable(getattr(spec, "claim", None)):
        return cast(Store, spec)
    if type(spec).__name__ == "AsyncEngine" and type(spec).__module__.startswith("sqlalchemy."):
        from tidings.stores.sqlalchemy import SqlAlchemyStore

        return SqlAlchemyStore(cast(Any, spec))
    if _is_redis_client(spec):
        return _redis_store(spec)
    raise ConfigurationError(
        "a store is named by a URL, a SQLAlchemy AsyncEngine or a redis.asyncio.Redis, not by"
        f" {type(spec).__module__}.{type(spec).__name__}"
    )


def _is_redis_client(spec: object) -> bool:
    names = {(kind.__module__.rpartition(".")[0], kind.__name__) for kind in type(spec).__mro__}
    return ("redis.asyncio", "Redis") in names


def _redis_store(where: Any) -> Store:
    try:
        from tidings.stores.redis import RedisStore
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "redis":
            raise
        raise ConfigurationError("a store on Redis needs redis-py. Install it: pip install 'tidings[redis]'") from None
    return RedisStore(where)


def _by_url(url: str) -> Store:
    # A URL may hold a password, so no message shows more of it than its scheme.
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower() if colon else ""
    database = scheme.partition("+")[0]
    if scheme == "memory":
        from tidings.stores.memory import MemoryStore

        return MemoryStore()
    if scheme in ("sqlite", "sqlite+aiosqlite"):
        from tidings.stores.sqlalchemy import SqlAlchemyStore

        if not rest.startswith("///"):
            raise ConfigurationError(f"{scheme}: name a file after three slashes, such as sqlite:///file.db")
        return SqlAlchemyStore(f"{scheme}:{rest}")
    if scheme in ("redis", "rediss"):
        return _redis_store(url)
    if scheme in THROUGH_SQLALCHEMY:
        from tidings.stores.sqlalchemy import SqlAlchemyStore

        return SqlAlchemyStore(url)
    if database in DRIVERS and scheme not in NOT_BUILT:
        raise ConfigurationError(f"{scheme}: the driver for this database is {DRIVERS[database]}. There are: {KNOWN}")
    if database in NOT_BUILT:
        raise ConfigurationError(f"a store on {NOT_BUILT[database]} ({scheme}:) is not built yet. There are: {KNOWN}")
    named = f"there is no store {scheme}:" if scheme else "a store is named by a URL, and this is none"
    raise ConfigurationError(f"{named}. There are: {KNOWN}")
