"""Keys are forgotten step by step on every database; `test_sqlite_retention.py` has the rules of when."""

from __future__ import annotations

import time

from tests.integration.stores.ledger import Where, applied, key
from tidings.stores.sqlalchemy import SqlAlchemyStore


async def test_only_keys_of_one_kind_and_one_handler_are_forgotten_and_only_old_ones(
    store: SqlAlchemyStore, where: Where
) -> None:
    keys = [*(f"@{number:03}" for number in range(25)), *(f"order_id:{number}" for number in range(5)), "order_id:@1"]
    async with store.claim([key(one) for one in keys], resource=None, sync=False):
        pass
    async with store.claim([key("@000", position="stock.other")], resource=None, sync=False):
        pass

    async def forget(before: float) -> int:
        removed, after = 0, ""
        while True:
            step = await store.forget("stock.reserve", "event", before, after=after, most=7)
            removed += step.removed
            if step.after is None:
                return removed
            after = step.after

    assert await forget(time.time() - 60) == 0
    assert len(applied(where)) == len(keys) + 1
    assert await forget(time.time() + 60) == 25
    assert sorted(applied(where)) == sorted(["@000", *keys[25:]])
