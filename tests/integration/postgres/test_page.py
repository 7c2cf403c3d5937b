"""The page about PostgreSQL is run, on a real one."""

from __future__ import annotations

import sys
import types

from tests.unit.test_docs import ROOT, blocks
from tidings.testing import MemoryBroker


async def test_the_page_about_postgresql_is_true(postgres_url: str) -> None:
    module = types.ModuleType("page_use_postgresql")
    sys.modules[module.__name__] = module
    for block in blocks(ROOT / "docs/howto/use-postgresql.md"):
        if block.language == "python":
            exec(compile(block.text, "use-postgresql.md", "exec"), module.__dict__)
    shown = vars(module)
    await shown["test_an_order_that_comes_twice_is_reserved_once"](postgres_url)
    broker = MemoryBroker()
    async with shown["fast"].running(broker=broker, store=postgres_url):
        await shown["fast"].publish(shown["OrderPlaced"](order_id="2", sku="apple", quantity=2))
        await broker.idle()
        async with shown["fast"].transaction() as db:
            assert await db.fetchval("SELECT available FROM stock") == 5
