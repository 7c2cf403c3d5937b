"""The tables that Tidings keeps in a user's database, for every database that SQLAlchemy speaks to.

`SCHEMA_VERSION` goes up with every change that an existing database needs; the step that brings it there joins
`UPGRADES`, and runs when a store of the newer version opens the database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from tidings.errors import ConfigurationError

SCHEMA_VERSION = 1

UPGRADES: Mapping[int, Callable[[sa.Connection], None]] = {}
"""From each older version the step to the next one. None yet: version 1 is the first."""

metadata = sa.MetaData()

_MYSQL: Final = ("mysql", "mariadb")
"""What SQLAlchemy calls MariaDB, by the URL that was given."""

# MariaDB: a key has a length, 3072 bytes for all of it; texts and bodies above 64 KiB have types of their own.
_HANDLER = sa.Text().with_variant(mysql.VARCHAR(400), *_MYSQL)
_KEY = sa.Text().with_variant(mysql.VARCHAR(256), *_MYSQL)
_TEXT = sa.Text().with_variant(mysql.MEDIUMTEXT(), *_MYSQL)
_DIGEST = sa.LargeBinary().with_variant(mysql.VARBINARY(255), *_MYSQL)
_BODY = sa.LargeBinary().with_variant(mysql.LONGBLOB(), *_MYSQL)

# Byte for byte, and without padding: by MariaDB's own collations 'a' is 'A', and by most binary ones 'a' is 'a '.
_OPTIONS: Final[Mapping[str, Any]] = {
    f"{name}_{option}": value
    for name in _MYSQL
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_nopad_bin"))
}

inbox = sa.Table(
    "tidings_inbox",
    metadata,
    sa.Column("handler", _HANDLER, primary_key=True),
    sa.Column("key", _KEY, primary_key=True),
    sa.Column("event_id", _TEXT, nullable=False),
    sa.Column("digest", _DIGEST, nullable=False),
    sa.Column("applied_at", sa.Double, nullable=False),
    # The primary key is the table: one tree to write instead of two.
    sqlite_with_rowid=False,
    **_OPTIONS,
)
"""The keys that were applied, each written by the transaction that holds its effect."""

outbox = sa.Table(
    "tidings_outbox",
    metadata,
    # SQLite gives out increasing numbers by itself only to a column of exactly this type.
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("message_id", _TEXT, nullable=False),
    sa.Column("stream", _TEXT, nullable=False),
    sa.Column("type", _TEXT, nullable=False),
    sa.Column("key", _TEXT),
    sa.Column("route", _TEXT, nullable=False),
    sa.Column("position", _TEXT, nullable=False),
    sa.Column("due", sa.Double),
    sa.Column("headers", _TEXT, nullable=False),
    sa.Column("body", _BODY, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("error", _TEXT),
    sa.Column("retry_at", sa.Double, nullable=False, server_default="0"),
    sa.Column("parked", sa.Boolean, nullable=False, server_default=sa.false()),
    # A number is never given out twice, also not after the table was emptied.
    sqlite_autoincrement=True,
    **_OPTIONS,
)
"""Events that wait to be published. A row goes when the broker has stored it."""

# The few rows that hold up their key, so that finding them costs nothing however many rows wait.
sa.Index(
    "tidings_outbox_held",
    outbox.c.stream,
    outbox.c.key,
    sqlite_where=outbox.c.retry_at > 0,
    postgresql_where=outbox.c.retry_at > 0,
).ddl_if(dialect=("sqlite", "postgresql"))  # type: ignore[arg-type]  # several may be named, its documentation says
# The same for MariaDB, which has no index of a part of the rows, and none of a whole text.
sa.Index("tidings_outbox_held", outbox.c.retry_at).ddl_if(dialect=_MYSQL)  # type: ignore[arg-type]

relay = sa.Table(
    "tidings_relay",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("owner", _TEXT, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    **_OPTIONS,
)
"""Which process publishes the outbox just now: one row, a lease."""

schema = sa.Table(
    "tidings_schema",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("made_at", sa.Double, nullable=False),
    **_OPTIONS,
)
"""The versions this database has been through; the highest is the present one."""

RELAY = "outbox"


def found_version(connection: sa.Connection) -> int:
    """The version of the tables in this database, 0 where there are none."""
    if not sa.inspect(connection).has_table(schema.name):
        return 0
    return int(connection.scalar(sa.select(sa.func.max(schema.c.version))) or 0)


def ensure(connection: sa.Connection) -> None:
    """Create or upgrade the tables, under a lock that keeps everybody else from doing the same.

    Raises:
        ConfigurationError: the tables are of a newer Tidings than this one.
    """
    version = found_version(connection)
    if version > SCHEMA_VERSION:
        raise ConfigurationError(
            f"the tables tidings_* are of version {version}, made by a newer Tidings; this one knows version"
            f" {SCHEMA_VERSION}. Upgrade this service, or give it a database of its own"
        )
    if version == SCHEMA_VERSION:
        return
    if version == 0:
        # Some may be there: made by the user's own migrations, or by a process that died between two of them, where
        # the database commits each.
        metadata.create_all(connection)
        if connection.scalar(sa.select(relay.c.name).where(relay.c.name == RELAY)) is None:
            connection.execute(relay.insert().values(name=RELAY, owner="", expires_at=0.0))
    for step in range(max(version, 1), SCHEMA_VERSION):
        UPGRADES[step](connection)
    connection.execute(schema.insert().values(version=SCHEMA_VERSION, made_at=time.time()))
