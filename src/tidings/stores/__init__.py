"""Stores, found by URL scheme: what remembers which keys were applied."""

from __future__ import annotations

from typing import Any, Final, Literal, cast

from tidings.errors import ConfigurationError
from tidings.ports import Store

KNOWN: Final = (
    "postgresql://user@host/name, sqlite:///file.db, redis://host:6379/0, memory:, and through SQLAlchemy"
    " postgresql+asyncpg://user@host/name, postgresql+psycopg://user@host/name, mariadb+aiomysql://user@host/name"
)

THROUGH_SQLALCHEMY: Final = ("postgresql+asyncpg", "postgresql+psycopg", "mariadb+aiomysql", "mysql+aiomysql")

POSTGRES_DRIVERS: Final = (
    "asyncpg or psycopg. Write postgresql+asyncpg://user@host/name, of which handlers get SQLAlchemy's AsyncConnection,"
    " or postgresql://user@host/name, of which they get asyncpg.Connection"
)
DRIVERS: Final = {
    "postgresql": POSTGRES_DRIVERS,
    "postgres": POSTGRES_DRIVERS,
    "mysql": "aiomysql. Write mariadb+aiomysql://user@host/name",
    "mariadb": "aiomysql. Write mariadb+aiomysql://user@host/name",
    "sqlite": "aiosqlite. Write sqlite:///file.db",
}


Missing = Literal["make", "make-tables", "refuse"]
"""What a SQL store that opens does about what is not there: make file and tables, only tables, or neither."""


def store_from(spec: object, *, missing: Missing = "make") -> Store:
    """The store that a URL or a live object stands for; a store is itself.

    Live objects are an `asyncpg.Pool`, a SQLAlchemy `AsyncEngine` and a `redis.asyncio.Redis`. Libraries are imported
    only for the store that is used.

    Args:
        spec: the URL or the object.
        missing: who only looks, or works on what others wrote, makes nothing: a mistyped name would become a database.
            Of a live object it says nothing.

    Raises:
        ConfigurationError: nothing is known by this name, or its library is not installed.
    """
    if isinstance(spec, str):
        return _by_url(spec, missing)
    if callable(getattr(spec, "claim", None)):
        return cast(Store, spec)
    kinds = {(kind.__module__, kind.__name__) for kind in type(spec).__mro__}
    if ("asyncpg.pool", "Pool") in kinds:
        return _postgres(spec)
    if any(module.startswith("sqlalchemy.") and name == "AsyncEngine" for module, name in kinds):
        return _sqlalchemy(spec)
    if any(module.rpartition(".")[0] == "redis.asyncio" and name == "Redis" for module, name in kinds):
        return _redis(spec)
    raise ConfigurationError(
        "a store is named by a URL, an asyncpg.Pool, a SQLAlchemy AsyncEngine or a redis.asyncio.Redis, not by"
        f" {type(spec).__module__}.{type(spec).__name__}"
    )


def _by_url(url: str, missing: Missing) -> Store:
    # A URL may hold a password, so no message shows more of it than its scheme.
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower() if colon else ""
    if scheme == "memory":
        from tidings.stores.memory import MemoryStore

        return MemoryStore()
    if scheme in ("postgresql", "postgres"):
        return _postgres(url, missing)
    if scheme in ("sqlite", "sqlite+aiosqlite"):
        if not rest.startswith("///"):
            raise ConfigurationError(f"{scheme}: name a file after three slashes, such as sqlite:///file.db")
        return _sqlalchemy(f"{scheme}:{rest}", missing)
    if scheme in THROUGH_SQLALCHEMY:
        return _sqlalchemy(url, missing)
    if scheme in ("redis", "rediss"):
        return _redis(url)
    if driver := DRIVERS.get(scheme.partition("+")[0]):
        raise ConfigurationError(f"{scheme}: the driver for this database is {driver}. There are: {KNOWN}")
    named = f"there is no store {scheme}:" if scheme else "a store is named by a URL, and this is none"
    raise ConfigurationError(f"{named}. There are: {KNOWN}")


def _postgres(where: Any, missing: Missing = "make") -> Store:
    try:
        from tidings.stores.postgres import PostgresStore
    except ModuleNotFoundError as error:
        raise _missing(error, "asyncpg", "PostgreSQL needs asyncpg", "postgres") from None
    return PostgresStore(where, create=missing != "refuse")


def _redis(where: Any) -> Store:
    try:
        from tidings.stores.redis import RedisStore
    except ModuleNotFoundError as error:
        raise _missing(error, "redis", "Redis needs redis-py", "redis") from None
    return RedisStore(where)


def _sqlalchemy(where: Any, missing: Missing = "make") -> Store:
    from tidings.stores.sqlalchemy import SqlAlchemyStore

    return SqlAlchemyStore(where, create=missing != "refuse", create_file=missing == "make")


def _missing(error: ModuleNotFoundError, library: str, need: str, extra: str) -> Exception:
    """A library that is installed only by those who want its store; another one that is missing stays as it is."""
    if (error.name or "").partition(".")[0] != library:
        return error
    return ConfigurationError(f"a store on {need}. Install it: pip install 'tidings[{extra}]'")


_DIALECT_OF: Final = {
    "sqlite": "sqlite",
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "mariadb": "mariadb",
    "mysql": "mariadb",
}


def has_tables(url: str) -> bool:
    """Whether a store of this URL keeps tables of Tidings' own in a SQL database."""
    return _database_of(url) in _DIALECT_OF


def schema_sql(target: str, since: int | None = None) -> list[str]:
    """The statements that make the tables, or with `since` those that bring them from that version to the present one.

    Args:
        target: sqlite, postgresql or mariadb, or the URL of a store.

    Raises:
        ConfigurationError: it is none of these, or the version is not known.
    """
    from tidings.outbox import ddl

    dialect = _DIALECT_OF.get(_database_of(target))
    if dialect is None:
        raise ConfigurationError(f"there are no tables for that. There are: {', '.join(ddl.DIALECTS)}")
    made = ddl.create(dialect) if since is None else ddl.upgrade(dialect, since)
    # Through SQLAlchemy a store needs no more; without a driver nobody says which it is to be.
    if since is None and dialect == "postgresql" and "+" not in target.partition(":")[0]:
        try:
            from tidings.stores._postgres_schema import open_table_sql
        except ModuleNotFoundError as error:
            raise _missing(error, "asyncpg", "the store postgresql: needs asyncpg", "postgres") from None
        made += open_table_sql()
    return made


def _database_of(target: str) -> str:
    """What a URL's scheme says before its driver; the URL itself may hold a password and is never shown."""
    return target.partition(":")[0].partition("+")[0].lower()
