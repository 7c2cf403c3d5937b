"""Keys that nothing can ask for any more, found and removed in steps, as plain functions of a connection.

A step walks on along the primary key. So the inbox needs no index by time, which each insert would pay for, and a step
costs the same with ten rows and with ten million.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from tidings.outbox.tables import inbox
from tidings.ports import EVENT_MARK, KeyKind

CHUNK = 500
"""Keys in one statement."""


def old_keys(
    connection: sa.Connection, position: str, kind: KeyKind, before: float, after: str, most: int
) -> tuple[list[str], str | None]:
    """Of the next `most` keys of a handler those of this kind applied before `before`; and where to go on, if at all.

    The order is the database's own, whatever its collation, so a kind is no range of it and is told here.
    """
    found = connection.execute(
        sa.select(inbox.c.key, inbox.c.applied_at)
        .where(inbox.c.handler == position, inbox.c.key > after)
        .order_by(inbox.c.key)
        .limit(most)
    ).all()
    old = [key for key, at in found if at < before and key.startswith(EVENT_MARK) == (kind == "event")]
    return old, (found[-1].key if len(found) == most else None)


def remove(connection: sa.Connection, position: str, keys: Sequence[str], before: float) -> None:
    """Remove keys, unless one was applied anew meanwhile."""
    for start in range(0, len(keys), CHUNK):
        some = inbox.c.key.in_(keys[start : start + CHUNK])
        connection.execute(inbox.delete().where(inbox.c.handler == position, some, inbox.c.applied_at < before))
