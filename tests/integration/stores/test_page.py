"""The page about databases through SQLAlchemy is run, on real servers too."""

from __future__ import annotations

import sys
import types

from tests.integration.stores.ledger import Where, sync_url_of, url_of
from tests.unit.test_docs import ROOT, blocks


async def test_the_page_is_true_on_every_database(empty: Where) -> None:
    module = types.ModuleType("page_use_your_own_database")
    sys.modules[module.__name__] = module
    for block in blocks(ROOT / "docs/howto/use-your-own-database.md"):
        if block.language == "python" and not block.comment.startswith("not run"):
            exec(compile(block.text, "use-your-own-database.md", "exec"), module.__dict__)
    await vars(module)["reserved_once"](url_of(empty), sync_url_of(empty))
