"""The tables as SQL, for people whose own migrations make them: the same that opening a store would do."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from tidings.errors import ConfigurationError
from tidings.outbox.tables import RELAY, SCHEMA_VERSION, UPGRADES, metadata, relay, schema

DIALECTS: Final = ("sqlite", "postgresql", "mariadb")

_NOW: Final = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch FROM clock_timestamp())",
    "mariadb": "unix_timestamp(now(6))",
}
"""Not a number that is written down: the time at which a database got its tables tells it from others."""


def create(dialect: str) -> list[str]:
    """The statements that make the tables in an empty database."""
    made = [_text(CreateTable(table), dialect) for table in metadata.sorted_tables]
    indexes = [index for table in metadata.sorted_tables for index in table.indexes]
    made += [_text(CreateIndex(index), dialect) for index in sorted(indexes, key=lambda index: str(index.name))]
    made.append(_text(relay.insert().values(name=RELAY, owner="", expires_at=0.0), dialect))
    return [*made, _reached(SCHEMA_VERSION, dialect)]


def upgrade(dialect: str, since: int) -> list[str]:
    """The statements that bring the tables from a version to the present one; a comment says what they need.

    Raises:
        ConfigurationError: there is no way from that version.
    """
    if not 1 <= since <= SCHEMA_VERSION:
        raise ConfigurationError(f"version {since}: the tables have had the versions 1 to {SCHEMA_VERSION}")
    made: list[str] = []
    for version in range(since, SCHEMA_VERSION):
        step = UPGRADES[version]
        needs = f": {step.needs}" if step.needs else ""
        made.append(f"-- from version {version} to {version + 1}{needs}")
        made += [_text(statement, dialect) for statement in step.statements()]
        made.append(_reached(version + 1, dialect))
    return made


def _reached(version: int, dialect: str) -> str:
    made_at: sa.ColumnClause[float] = sa.literal_column(_NOW[dialect])
    return _text(schema.insert().values(version=sa.literal(version, literal_execute=True), made_at=made_at), dialect)


def _text(statement: Any, dialect: str) -> str:
    text = str(statement.compile(dialect=_dialect(dialect), compile_kwargs={"literal_binds": True}))
    return "\n".join(line.rstrip() for line in text.strip().splitlines()).replace("\t", "    ") + ";"


def _dialect(name: str) -> sa.Dialect:
    made: dict[str, Any] = {
        "sqlite": sqlite.dialect,
        "postgresql": postgresql.dialect,
        "mariadb": mysql.dialect,
    }
    dialect: sa.Dialect = made[name]()
    if name == "mariadb":
        dialect.name = "mariadb"
    return dialect
