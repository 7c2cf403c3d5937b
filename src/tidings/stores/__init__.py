"""Stores, found by URL scheme: what remembers which keys were applied."""

from __future__ import annotations

from typing import Any, cast

from tidings.errors import ConfigurationError
from tidings.ports import Store

KNOWN = "sqlite:///file.db, sqlite+aiosqlite:///file.db, memory:"

NOT_BUILT = {
    "postgresql": "PostgreSQL",
    "postgres": "PostgreSQL",
    "mysql": "MariaDB",
    "mariadb": "MariaDB",
    "redis": "Redis",
    "rediss": "Redis",
}


def store_from(spec: object) -> Store:
    """The store that a URL or a live `AsyncEngine` stands for; a store is returned as it is.

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
    raise ConfigurationError(f"a store is named by a URL or a SQLAlchemy AsyncEngine, not by {type(spec).__name__}")


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
    if database in NOT_BUILT:
        raise ConfigurationError(f"a store on {NOT_BUILT[database]} ({scheme}:) is not built yet. There are: {KNOWN}")
    if database == "sqlite":
        raise ConfigurationError(f"{scheme}: the driver for SQLite is aiosqlite. Write sqlite:///file.db")
    named = f"there is no store {scheme}:" if scheme else "a store is named by a URL, and this is none"
    raise ConfigurationError(f"{named}. There are: {KNOWN}")
