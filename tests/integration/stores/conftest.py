"""Stores on real SQLite files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.stores.ledger import CREATE
from tidings.stores.sqlalchemy import SqlAlchemyStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqlAlchemyStore]:
    """An open store with a ledger table beside its own."""
    store = SqlAlchemyStore(f"sqlite:///{path}", lock_timeout=0.3, poll=0.05, lease=1.0)
    await store.open()
    async with store.transaction() as db:
        await db.exec_driver_sql(CREATE)
    try:
        yield store
    finally:
        await store.close()
