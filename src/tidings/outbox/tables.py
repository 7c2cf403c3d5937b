"""The tables that Tidings keeps in a user's database, for every database that SQLAlchemy speaks to.

`SCHEMA_VERSION` goes up with every change that an existing database needs; the step that brings it there joins
`UPGRADES`, and runs when a store of the newer version opens the database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateIndex, DropIndex

from tidings.errors import ConfigurationError
from tidings.ports import EVENT_MARK

SCHEMA_VERSION = 2

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
    # Of stream and key, None without a key: an index of these serves every database, however long a key is.
    sa.Column("key_hash", sa.BigInteger),
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

# Which rows of a key wait, and which of them hold it up: asked before a row is written, and before it is published.
by_key = sa.Index("tidings_outbox_key", outbox.c.key_hash, outbox.c.retry_at)

# The few that wait for a person, so that counting them costs nothing however many rows wait.
by_parked = sa.Index(
    "tidings_outbox_parked",
    outbox.c.parked,
    sqlite_where=outbox.c.parked == sa.true(),
    postgresql_where=outbox.c.parked == sa.true(),
)

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

_MARIADB_CLOCK: Final = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1e6"  # no time zone comes in

CLOCKS: Final[Mapping[str, str]] = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
    **dict.fromkeys(_MYSQL, _MARIADB_CLOCK),
}
"""The time of each kind of database in Unix seconds: the one clock that all processes share, wherever they run."""


def key_hash(stream: str, key: str | None) -> int | None:
    """What rows of one key have in common. Two keys that share it by chance wait for each other now and then."""
    if key is None:
        return None
    digest = blake2b(f"{stream}\0{key}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


@dataclass(frozen=True)
class Upgrade:
    """A step from one version to the next: statements, and what they cannot say."""

    statements: Callable[[], Sequence[sa.Executable]]
    then: Callable[[sa.Connection], None] = lambda connection: None
    needs: str = ""
    """What has to be so before the statements alone, without `then`, are run by hand."""

    def run(self, connection: sa.Connection) -> None:
        for statement in self.statements():
            connection.execute(statement)
        self.then(connection)


def _to_2() -> Sequence[sa.Executable]:
    """Ids of events are marked in the inbox, and every row of the outbox is found by its key."""
    as_it_was = sa.Table(outbox.name, sa.MetaData(), sa.Column("stream", _TEXT))
    ids = inbox.update().where(inbox.c.key == inbox.c.event_id)
    return (
        sa.text(f"ALTER TABLE {outbox.name} ADD COLUMN key_hash BIGINT"),
        DropIndex(sa.Index("tidings_outbox_held", as_it_was.c.stream)),
        CreateIndex(by_key),
        CreateIndex(by_parked),
        ids.values(key=sa.literal(EVENT_MARK, sa.Text) + inbox.c.key),
    )


def _fill_hashes(connection: sa.Connection) -> None:
    found = connection.execute(sa.select(outbox.c.id, outbox.c.stream, outbox.c.key).where(outbox.c.key.is_not(None)))
    for id, stream, key in found.all():
        connection.execute(outbox.update().where(outbox.c.id == id).values(key_hash=key_hash(stream, key)))


UPGRADES: Final[Mapping[int, Upgrade]] = {
    1: Upgrade(
        _to_2, _fill_hashes, needs="the table tidings_outbox is to be empty: stop what writes, let the relay end"
    ),
}
"""From each older version the step to the next one."""


def found_version(connection: sa.Connection) -> int:
    """The version of the tables in this database, 0 where there are none."""
    if not sa.inspect(connection).has_table(schema.name):
        return 0
    return int(connection.scalar(sa.select(sa.func.max(schema.c.version))) or 0)


def made_at(connection: sa.Connection) -> float | None:
    """When the tables in this database were made, which tells it from others."""
    found: float | None = connection.scalar(sa.select(schema.c.made_at).order_by(schema.c.version).limit(1))
    return found


def demand(connection: sa.Connection, where: str) -> None:
    """See that the tables are there as this Tidings makes them, for who is to make nothing.

    Args:
        connection: one that may read.
        where: the database, for people.

    Raises:
        ConfigurationError: they are not.
    """
    version = found_version(connection)
    if version == 0:
        raise ConfigurationError(f"{where} has no tables tidings_*. Is its name right? tidings db init makes them")
    if version < SCHEMA_VERSION:
        raise ConfigurationError(
            f"{where}: the tables tidings_* are of version {version}, this Tidings' of {SCHEMA_VERSION}."
            " tidings db init upgrades them"
        )
    refuse_newer(version)


def refuse_newer(version: int) -> None:
    """Raises ConfigurationError: the tables are of a newer Tidings than this one."""
    if version > SCHEMA_VERSION:
        raise ConfigurationError(
            f"the tables tidings_* are of version {version}, made by a newer Tidings; this one knows version"
            f" {SCHEMA_VERSION}. Upgrade this service, or give it a database of its own"
        )


def ensure(connection: sa.Connection) -> None:
    """Create or upgrade the tables, under a lock that keeps everybody else from doing the same.

    Raises:
        ConfigurationError: the tables are of a newer Tidings than this one.
    """
    version = found_version(connection)
    refuse_newer(version)
    if version == SCHEMA_VERSION:
        return
    if version == 0:
        # Some may be there: made by the user's own migrations, or by a process that died between two of them, where
        # the database commits each.
        metadata.create_all(connection)
        if connection.scalar(sa.select(relay.c.name).where(relay.c.name == RELAY)) is None:
            connection.execute(relay.insert().values(name=RELAY, owner="", expires_at=0.0))
    else:
        for step in range(version, SCHEMA_VERSION):
            UPGRADES[step].run(connection)
    connection.execute(schema.insert().values(version=SCHEMA_VERSION, made_at=time.time()))
