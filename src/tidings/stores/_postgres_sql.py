"""The statements that Tidings says to PostgreSQL, but for the outbox.

A transaction that is lent to handlers is open in `tidings_open`: its row there breaks a rule that is checked at the
commit, and goes with the very statement that commits. Whoever else commits, in whatever words, is refused by the
database and takes nothing along: keys of events that no handler has seen yet would be durable, and those events lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from tidings.ports import Key
from tidings.stores._keys import fit
from tidings.stores._postgres_connections import Lent

Stored = tuple[str, str]
"""Handler and key, as the inbox keeps them."""

# The settings come first: only then is a row inserted, which may wait for another transaction's.
_SETTINGS: Final = (
    "(SELECT set_config('lock_timeout', $2, true) || set_config('synchronous_commit', $3, true)) IS NOT NULL"
)

OPEN: Final = f"""
INSERT INTO tidings_open (id, commits) SELECT $1::bigint, -1 WHERE {_SETTINGS}
RETURNING pg_current_xact_id()::text"""

CLAIM: Final = f"""
WITH open AS (INSERT INTO tidings_open (id, commits) VALUES ($1::bigint, -1))
INSERT INTO tidings_inbox (handler, key, event_id, digest, applied_at)
SELECT handler, key, event_id, digest, extract(epoch FROM statement_timestamp())
FROM unnest($4::text[], $5::text[], $6::text[], $7::bytea[]) AS asked (handler, key, event_id, digest)
WHERE {_SETTINGS}
ON CONFLICT DO NOTHING RETURNING handler, key"""

FIND: Final = """
SELECT handler, key, event_id, digest FROM tidings_inbox
JOIN unnest($1::text[], $2::text[]) AS asked (handler, key) USING (handler, key)"""

GIVE_BACK: Final = """
DELETE FROM tidings_inbox USING unnest($1::text[], $2::text[]) AS asked (handler, key)
WHERE tidings_inbox.handler = asked.handler AND tidings_inbox.key = asked.key"""

ONLY_TIDINGS_COMMITS: Final = "tidings_open_only_tidings_commits"
"""The name of the rule, which the database says when it is broken."""


def commit(number: int) -> str:
    """Close the transaction and commit it, in one round trip; a division by zero where it is not open any more."""
    closed = f"WITH closed AS (DELETE FROM tidings_open WHERE id = {number:d} RETURNING id)"
    return f"{closed} SELECT 1 / count(*) FROM closed; COMMIT"


async def insert_keys(connection: Lent, settings: Sequence[Any], rows: Sequence[tuple[Stored, Key]]) -> set[Stored]:
    """Insert what is not there yet, and say what that was. Rows come sorted."""
    found = await connection.fetch(
        CLAIM,
        *settings,
        [handler for (handler, _), _ in rows],
        [key for (_, key), _ in rows],
        [fit(key.event_id) for _, key in rows],
        [key.digest for _, key in rows],
    )
    return {(row[0], row[1]) for row in found}


async def find_keys(connection: Lent, keys: Iterable[Stored]) -> Mapping[Stored, tuple[str, bytes]]:
    """Which events were applied under these keys."""
    wanted = list(keys)
    found = await connection.fetch(FIND, [handler for handler, _ in wanted], [key for _, key in wanted])
    return {(row[0], row[1]): (row[2], row[3]) for row in found}


async def delete_keys(connection: Lent, keys: Sequence[Stored]) -> None:
    """Take keys back that were inserted in this transaction."""
    await connection.execute(GIVE_BACK, [handler for handler, _ in keys], [key for _, key in keys])
