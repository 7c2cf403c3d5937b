"""Relays on machines whose clocks differ: the lease is the database's, and has one owner."""

from __future__ import annotations

import time

import pytest

from tests.integration.stores.ledger import Where, query
from tidings.stores._outbox import SqlOutbox
from tidings.stores.sqlalchemy import SqlAlchemyStore

SECONDS = 40.0


@pytest.mark.parametrize("apart", [-600.0, -60.0, 60.0, 600.0, 86400.0])
async def test_P8_the_lease_has_one_owner_however_far_apart_the_clocks_are(
    store: SqlAlchemyStore, where: Where, apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that relay at once publish everything twice."""
    outbox = SqlOutbox(store._read, store._write)
    right = time.time

    async def lease(owner: str, ahead: float) -> bool:
        monkeypatch.setattr(time, "time", lambda: right() + ahead)
        try:
            return await outbox.lease(owner, SECONDS)
        finally:
            monkeypatch.setattr(time, "time", right)

    assert await lease("here", 0.0)
    assert not await lease("there", apart)
    assert await lease("here", 0.0)
    query(where, f"UPDATE tidings_relay SET expires_at = expires_at - {SECONDS + 1}")  # it died
    assert await lease("there", apart)
    assert not await lease("here", 0.0)
    query(where, "UPDATE tidings_relay SET expires_at = expires_at + 86400")  # the database's clock was set back
    assert await lease("here", 0.0)
