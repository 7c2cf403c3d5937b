"""Keys of the inbox that nothing can ask for any more, removed a step at a time along the primary key."""

from __future__ import annotations

from typing import Final

from tidings.ports import EVENT_MARK, Forgotten, KeyKind
from tidings.stores._postgres_desk import Desk

OLD: Final = """
SELECT key, applied_at < $4 AND starts_with(key, $5) = $6 AS old FROM tidings_inbox
WHERE handler = $1 AND key > $2 ORDER BY key LIMIT $3"""

REMOVE: Final = "DELETE FROM tidings_inbox WHERE handler = $1 AND key = ANY($2::text[]) AND applied_at < $3"


async def forget(desk: Desk, position: str, kind: KeyKind, before: float, after: str, most: int) -> Forgotten:
    """Look at `most` keys behind `after`, and remove those that are old, unless one was applied anew meanwhile."""
    async with desk.session() as connection:
        found = await connection.fetch(OLD, position, after, most, before, EVENT_MARK, kind == "event")
        old = [row["key"] for row in found if row["old"]]
        if old:
            await connection.execute(REMOVE, position, old, before)
    return Forgotten(len(old), found[-1]["key"] if len(found) == most else None)
