"""Which database a URL of SQLAlchemy's leads to."""

from __future__ import annotations

import sqlalchemy as sa

from tidings.errors import ConfigurationError
from tidings.stores._database import Database

KNOWN = (
    "sqlite:///file.db, postgresql+asyncpg://user@host/name, postgresql+psycopg://user@host/name,"
    " mariadb+aiomysql://user@host/name"
)


def database_for(url: sa.URL, *, lock_timeout: float, answers_within: float) -> Database:
    """The database of a URL; its libraries are imported only now.

    Raises:
        ConfigurationError: it is not known, or its driver is not installed.
    """
    name = url.drivername
    if name in ("sqlite", "sqlite+aiosqlite"):
        from tidings.stores._sqlite import Sqlite

        return Sqlite(url, lock_timeout=lock_timeout)
    if name in ("postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg_async"):
        from tidings.stores._postgresql import Postgresql

        return Postgresql(url, lock_timeout=lock_timeout, answers_within=answers_within)
    if name in ("mariadb+aiomysql", "mysql+aiomysql"):
        from tidings.stores._mariadb import Mariadb

        return Mariadb(url, lock_timeout=lock_timeout, answers_within=answers_within)
    raise ConfigurationError(f"{name}: there is no store for this database and driver. There are: {KNOWN}")
