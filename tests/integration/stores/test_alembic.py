"""What the documentation shows of Alembic, run by Alembic on real databases."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.stores.conftest import EVERY
from tests.integration.stores.handling import handle
from tests.integration.stores.ledger import Where, create, notes, query, sync_url_of, url_of
from tests.unit.test_docs import ROOT, blocks
from tidings.outbox.tables import SCHEMA_VERSION
from tidings.ports import State
from tidings.stores.postgres import PostgresStore
from tidings.stores.sqlalchemy import SqlAlchemyStore

PAGE, TABLES = ROOT / "docs/howto/use-your-own-database.md", ROOT / "docs/reference/tables.md"

MODELS = """
from sqlalchemy.orm import DeclarativeBase

class Base(DeclarativeBase):
    pass
"""
BEFORE = """
revision, down_revision = "0006", None

def upgrade(): ...
def downgrade(): ...
"""
RUN = """
from alembic import context
from sqlalchemy import create_engine

with create_engine(context.config.get_main_option("sqlalchemy.url")).connect() as connection:
    context.configure(connection=connection, target_metadata=target_metadata)
    with context.begin_transaction():
        context.run_migrations()
"""
TEMPLATE = """
from alembic import op
import sqlalchemy as sa
${imports if imports else ""}

revision, down_revision = ${repr(up_revision)}, ${repr(down_revision)}


def upgrade():
    ${upgrades if upgrades else "pass"}


def downgrade():
    ${downgrades if downgrades else "pass"}
"""


def shown(page: Path, word: str) -> str:
    """The block of a page that says it."""
    (text,) = [block.text for block in blocks(page) if block.language == "python" and word in block.text]
    return text


class Migrations:
    """A user's project with migrations, and the one before those of Tidings."""

    def __init__(self, folder: Path, where: Where) -> None:
        self.folder = folder
        url = sync_url_of(where).replace("%", "%%")
        self.write("alembic.ini", f"[alembic]\nscript_location = migrations\nsqlalchemy.url = {url}\n")
        self.write("shop/models.py", MODELS)
        self.write("migrations/script.py.mako", TEMPLATE)
        self.write("migrations/env.py", shown(PAGE, "target_metadata = ") + RUN)
        self.write("migrations/versions/0006_before.py", BEFORE)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def alembic(self, *words: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        command = [sys.executable, "-m", "alembic", *words]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.fixture
def migrations(tmp_path: Path, empty: Where) -> Migrations:
    return Migrations(tmp_path / "project", empty)


def tables_of(where: Where) -> set[str]:
    listed = "SELECT name FROM sqlite_master WHERE type = 'table'"
    if not isinstance(where, Path):
        current = "DATABASE()" if "mariadb" in where else "current_schema()"
        listed = f"SELECT table_name FROM information_schema.tables WHERE table_schema = {current}"
    return {name for (name,) in query(where, listed) if name.startswith("tidings_")}


async def works(where: Where) -> None:
    """A store opens, makes no table of its own, and applies an event once."""
    before = tables_of(where)
    store = SqlAlchemyStore(url_of(where))
    await store.open()
    assert tables_of(where) == before
    assert query(where, "SELECT version FROM tidings_schema") == [(SCHEMA_VERSION,)]
    create(where)
    assert [await handle(store, "a"), await handle(store, "a")] == [State.NEW, State.DONE]
    assert notes(where) == ["a"]
    await store.close()


async def test_the_migration_that_is_written_by_hand_makes_the_tables_and_takes_them_back(
    migrations: Migrations, empty: Where
) -> None:
    migrations.write("migrations/versions/0007_tidings.py", shown(PAGE, 'revision, down_revision = "0007"'))
    migrations.alembic("upgrade", "head")
    await works(empty)
    migrations.alembic("downgrade", "0006")
    assert not tables_of(empty)


async def test_alembic_writes_the_migration_by_itself(migrations: Migrations, empty: Where) -> None:
    migrations.alembic("upgrade", "head")
    migrations.alembic("revision", "--autogenerate", "--rev-id", "0007")
    migrations.alembic("upgrade", "head")
    await works(empty)


@pytest.mark.parametrize("empty", [EVERY[1]], indirect=True)
async def test_a_migration_of_the_printed_statements_makes_what_the_store_on_asyncpg_needs(
    migrations: Migrations, empty: str
) -> None:
    head = 'revision, down_revision = "0007", "0006"\n'
    migrations.write("migrations/versions/0007_tidings.py", head + shown(TABLES, "schema_sql"))
    migrations.alembic("upgrade", "head")
    before = tables_of(empty)
    assert "tidings_open" in before
    store = PostgresStore(empty.replace("+asyncpg", ""), create=False)
    await store.open()
    await store.close()
    assert tables_of(empty) == before
