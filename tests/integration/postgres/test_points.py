"""The points of a crash that a claim on PostgreSQL passes."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from tests.integration.postgres.conftest import Opens
from tests.integration.postgres.ledger import INSERT, key, message, notes
from tidings import points


async def test_a_claim_passes_its_points_in_order_and_the_relay_passes_none_of_them(
    opens: Opens, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opens()
    passed: list[tuple[str, int]] = []
    monkeypatch.setattr(points, "reached", lambda point: passed.append((point, len(notes(url)))))
    async with store.claim([key("a")], resource=asyncpg.Connection, sync=False) as claim:
        db: Any = claim.resource(asyncpg.Connection)
        await db.execute(INSERT, "one")
        await db.executemany(INSERT, [("two",), ("three",)])
        await claim.emit([message("m1")])
    assert passed == [
        (points.BEFORE_STATEMENT, 0),
        (points.AFTER_STATEMENT, 0),
        (points.BEFORE_STATEMENT, 0),
        (points.AFTER_STATEMENT, 0),
        (points.BEFORE_COMMIT, 0),
        (points.AFTER_COMMIT, 3),
    ]
    passed.clear()
    with pytest.raises(LookupError):
        async with store.claim([key("b")], resource=asyncpg.Connection, sync=False):
            raise LookupError
    await store.outbox_backlog()
    assert passed == []
