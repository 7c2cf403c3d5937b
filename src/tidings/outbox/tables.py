"""The tables that Tidings keeps in a user's database, for every database that SQLAlchemy speaks to.

`SCHEMA_VERSION` goes up with every change that an existing database needs; the step that brings it there joins
`UPGRADES`, and runs when a store of the newer version opens the database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import sqlalchemy as sa

from tidings.errors import ConfigurationError

SCHEMA_VERSION = 1

UPGRADES: Mapping[int, Callable[[sa.Connection], None]] = {}
"""From each older version the step to the next one. None yet: version 1 is the first."""

metadata = sa.MetaData()

inbox = sa.Table(
    "tidings_inbox",
    metadata,
    sa.Column("handler", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("event_id", sa.Text, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("applied_at", sa.Double, nullable=False),
    # The primary key is the table: one tree to write instead of two.
    sqlite_with_rowid=False,
)
"""The keys that were applied, each written by the transaction that holds its effect."""

outbox = sa.Table(
    "tidings_outbox",
    metadata,
    # SQLite gives out increasing numbers by itself only to a column of exactly this type.
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("message_id", sa.Text, nullable=False),
    sa.Column("stream", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("route", sa.Text, nullable=False),
    sa.Column("position", sa.Text, nullable=False),
    sa.Column("due", sa.Double),
    sa.Column("headers", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("error", sa.Text),
    sa.Column("retry_at", sa.Double, nullable=False, server_default="0"),
    sa.Column("parked", sa.Boolean, nullable=False, server_default=sa.false()),
    # A number is never given out twice, also not after the table was emptied.
    sqlite_autoincrement=True,
)
"""Events that wait to be published. A row goes when the broker has stored it."""

# The few rows that hold up their key, so that finding them costs nothing however many rows wait.
sa.Index(
    "tidings_outbox_held",
    outbox.c.stream,
    outbox.c.key,
    sqlite_where=outbox.c.retry_at > 0,
    postgresql_where=outbox.c.retry_at > 0,
)

relay = sa.Table(
    "tidings_relay",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
)
"""Which process publishes the outbox just now: one row, a lease."""

schema = sa.Table(
    "tidings_schema",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("made_at", sa.Double, nullable=False),
)
"""The versions this database has been through; the highest is the present one."""

RELAY = "outbox"


def found_version(connection: sa.Connection) -> int:
    """The version of the tables in this database, 0 where there are none."""
    if not sa.inspect(connection).has_table(schema.name):
        return 0
    return int(connection.scalar(sa.select(sa.func.max(schema.c.version))) or 0)


def ensure(connection: sa.Connection) -> None:
    """Create or upgrade the tables, inside a transaction that keeps everybody else from doing the same.

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
        metadata.create_all(connection)
        connection.execute(relay.insert().values(name=RELAY, owner="", expires_at=0.0))
    for step in range(max(version, 1), SCHEMA_VERSION):
        UPGRADES[step](connection)
    connection.execute(schema.insert().values(version=SCHEMA_VERSION, made_at=time.time()))
