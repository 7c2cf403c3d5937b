"""The outbox on PostgreSQL: rows written, read, removed; and what wakes the relay.

Rows are read by being there, never by "ids above the last one seen", so a row whose transaction committed late is
found whenever it appears. Nothing waits for transactions that are still open: among those that ran side by side the
order of commits counts, and one that waited for another's lock has written its event after the other's commit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from tidings.delivery import Message
from tidings.outbox.direct import Entry, entries_of
from tidings.outbox.row import OutboxBacklog, Parked, Refused, Row
from tidings.outbox.rows import LONGEST_WAIT, MOST_ERROR, PARKED_UNTIL
from tidings.outbox.tables import RELAY, key_hash
from tidings.outbox.texts import escaped, parked_of, rows_of
from tidings.stores._postgres_connections import Lent
from tidings.stores._postgres_desk import Desk

log = logging.getLogger("tidings.outbox")

CHANNEL: Final = "tidings_outbox"
LISTEN_ALIVE: Final = 30.0
"""Seconds between two looks whether the listening connection still lives."""

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0

_INSERT: Final = """
INSERT INTO tidings_outbox (message_id, stream, type, key, key_hash, route, position, due, headers, body, created_at)
SELECT message_id, stream, type, key, key_hash, route, position, due, headers, body, $11::float8
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::float8[],
            $9::text[], $10::bytea[])
     WITH ORDINALITY AS given (message_id, stream, type, key, key_hash, route, position, due, headers, body, place)
WHERE {}
ORDER BY place"""

INSERT: Final = _INSERT.format("true")
_TELL: Final = f"(SELECT pg_notify('{CHANNEL}', '')::text) IS NOT NULL"
INSERT_AND_TELL: Final = _INSERT.format(_TELL)
INSERT_ELSEWHERE: Final = _INSERT.format(f"{_TELL} AND EXISTS (SELECT FROM tidings_schema WHERE made_at = $12::float8)")
"""Into a transaction of the user's, whose commit then wakes the relay; nothing is written in another database."""

INSERT_HELD: Final = """
INSERT INTO tidings_outbox (message_id, stream, type, key, key_hash, route, position, due, headers, body, created_at,
                            retry_at)
SELECT message_id, stream, type, key, key_hash, route, position, due, headers, body, $11::float8,
       CASE WHEN EXISTS (SELECT FROM tidings_outbox AS earlier
                         WHERE earlier.key_hash = given.key_hash AND earlier.id <> ALL($12::bigint[]))
            THEN 0 ELSE $13::float8 END
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::float8[],
            $9::text[], $10::bytea[])
     WITH ORDINALITY AS given (message_id, stream, type, key, key_hash, route, position, due, headers, body, place)
ORDER BY place
RETURNING id, retry_at > 0"""
"""With a hold where each unsent row of the key is known to this process: those are named."""

LET_GO: Final = "UPDATE tidings_outbox SET retry_at = 0 WHERE id = ANY($1::bigint[]) AND NOT parked"
TELL: Final = f"SELECT pg_notify('{CHANNEL}', '')"

_HELD: Final = f"({{0}}.retry_at > $1 AND ({{0}}.retry_at <= $1 + {LONGEST_WAIT:.0f} OR {{0}}.parked))"

WAITS: Final = f"SELECT EXISTS (SELECT FROM tidings_outbox AS one WHERE NOT {_HELD.format('one')})"

READY: Final = f"""
SELECT whole.* FROM (
    SELECT id, sum(size) OVER (ORDER BY id) AS total, min(id) OVER () AS first FROM (
        SELECT id, octet_length(body) + octet_length(headers) AS size FROM tidings_outbox AS one
        WHERE NOT {_HELD.format("one")} AND NOT EXISTS (
            SELECT FROM tidings_outbox AS earlier
            WHERE earlier.key_hash = one.key_hash AND {_HELD.format("earlier")} AND earlier.id < one.id)
        ORDER BY id LIMIT $2) AS sized) AS chosen
JOIN tidings_outbox AS whole USING (id)
WHERE total <= $3 OR id = first ORDER BY id"""

LEASE: Final = """
UPDATE tidings_relay SET owner = $1, expires_at = extract(epoch FROM clock_timestamp())::float8 + $2::float8
WHERE name = $3 AND (owner IN ($1, '') OR expires_at < extract(epoch FROM clock_timestamp())::float8
                     OR expires_at > extract(epoch FROM clock_timestamp())::float8 + 10 * $2::float8)
RETURNING true"""
GIVE_BACK: Final = "UPDATE tidings_relay SET owner = '', expires_at = 0 WHERE name = $2 AND owner = $1"

REMOVE: Final = "DELETE FROM tidings_outbox WHERE id = ANY($1::bigint[])"
REFUSE: Final = """
UPDATE tidings_outbox SET attempts = attempts + 1, error = $2, retry_at = $3, parked = $4 WHERE id = $1"""

BACKLOG: Final = """
SELECT (SELECT count(*) FROM tidings_outbox), (SELECT created_at FROM tidings_outbox ORDER BY id LIMIT 1),
       (SELECT count(*) FROM tidings_outbox WHERE parked)"""
PARKED: Final = "SELECT * FROM tidings_outbox WHERE parked ORDER BY id LIMIT $1"
RELEASE: Final = "UPDATE tidings_outbox SET parked = false, retry_at = 0 WHERE id = $1 AND parked RETURNING true"
DISCARD: Final = "DELETE FROM tidings_outbox WHERE id = $1 AND parked RETURNING true"


def _columns(messages: Sequence[Message]) -> list[Any]:
    return [
        [escaped(message.id) for message in messages],
        [escaped(message.stream) for message in messages],
        [escaped(message.type) for message in messages],
        [None if message.key is None else escaped(message.key) for message in messages],
        [key_hash(message.stream, message.key) for message in messages],
        [message.route.value for message in messages],
        [escaped(message.position) for message in messages],
        [message.due for message in messages],
        [msgspec.json.encode(message.headers).decode() for message in messages],
        [message.body for message in messages],
        time.time(),
    ]


async def insert(connection: Lent, messages: Sequence[Message], *, notify: bool) -> None:
    """Write messages in one statement, in their order."""
    await connection.execute(INSERT_AND_TELL if notify else INSERT, *_columns(messages))


async def insert_held(connection: Lent, messages: Sequence[Message], desk: Desk) -> list[Entry]:
    """Write messages in their order, in one statement, and return those that this process publishes itself.

    What this process has of their keys is looked up first: what another transaction of it writes meanwhile is seen by
    the statement, if at all, as a row that is not known, and makes the row behind it the relay's.
    """
    direct = desk.direct
    if not direct.takes():
        await insert(connection, messages, notify=desk.notifies())
        return []
    hashes = [key_hash(message.stream, message.key) for message in messages]
    before = {key: direct.of_key(key) for key in hashes if key is not None}
    known = [entry.id for entries in before.values() for entry in entries]
    until, wall = time.monotonic() + direct.hold, time.time() + direct.hold
    found = sorted(tuple(row) for row in await connection.fetch(INSERT_HELD, *_columns(messages), known, wall))
    ids, chosen = [id for id, _ in found], [held for _, held in found]
    entries = entries_of(messages, ids, hashes, chosen, before, until, wall)
    direct.written(entries)
    if not all(chosen) and desk.notifies():
        await connection.execute(TELL)
    return entries


async def settle_direct(desk: Desk, stored: Sequence[int], left: Sequence[int]) -> None:
    """Take out what was published from memory, and let the relay have the rest."""
    async with desk.session() as connection:
        if stored:
            await connection.execute(REMOVE, list(stored))
        if left:
            await connection.execute(LET_GO, list(left))


async def insert_elsewhere(connection: Lent, messages: Sequence[Message], made_at: float) -> bool:
    """Write them into a user's transaction; False if it is not one of this database."""
    done = await connection.execute(INSERT_ELSEWHERE, *_columns(messages), made_at)
    return done != "INSERT 0 0"


class PostgresOutbox:
    """The rows of one database, for its relay; each method is one short transaction."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def waits(self) -> bool:
        async with self._desk.session() as connection:
            return bool(await connection.fetchval(WAITS, time.time()))

    async def ready(self, most: int, most_bytes: int) -> list[Row]:
        async with self._desk.session() as connection:
            found = await connection.fetch(READY, time.time(), most, most_bytes)
        return rows_of(found)

    async def lease(self, owner: str, seconds: float) -> bool:
        async with self._desk.session() as connection:
            return await self._lease(connection, owner, seconds)

    async def give_back(self, owner: str) -> None:
        self._desk.publishes_until = 0.0
        async with self._desk.session() as connection:
            await connection.execute(GIVE_BACK, owner, RELAY)

    async def settle(self, stored: Sequence[int], refused: Sequence[Refused], owner: str, seconds: float) -> bool:
        async with self._desk.session() as connection:
            # What is stored is stored, whoever holds the lease by now.
            if stored:
                await connection.execute(REMOVE, list(stored))
            for one in refused:
                retry_at = PARKED_UNTIL if one.retry_at is None else one.retry_at
                reason = escaped(one.error[:MOST_ERROR])
                await connection.execute(REFUSE, one.id, reason, retry_at, one.retry_at is None)
            return await self._lease(connection, owner, seconds)

    async def _lease(self, connection: Lent, owner: str, seconds: float) -> bool:
        began = time.monotonic()
        taken = bool(await connection.fetchval(LEASE, owner, seconds, RELAY))
        self._desk.publishes_until = began + seconds if taken else 0.0
        return taken

    # ------------------------------------------------------------------ for people

    async def backlog(self) -> OutboxBacklog:
        async with self._desk.session() as connection:
            row = await connection.fetchrow(BACKLOG)
        assert row is not None
        count, oldest, parked = row
        return OutboxBacklog(count, max(0.0, time.time() - oldest) if oldest is not None else 0.0, parked)

    async def parked(self, most: int) -> list[Parked]:
        async with self._desk.session() as connection:
            found = await connection.fetch(PARKED, most)
        return [parked_of(row) for row in found]

    async def decide(self, statement: str, id: int) -> bool:
        async with self._desk.session() as connection:
            return bool(await connection.fetchval(statement, id))


async def listen(desk: Desk) -> None:
    """Wake the relay when another process wrote rows, until cancelled. What it misses, the relay's polling finds."""
    if desk.pooled:
        log.info(
            "%s is behind a proxy, which cannot carry LISTEN: the outbox is looked at by polling alone", desk.where
        )
        return
    pause = FIRST_PAUSE
    while True:
        connection: Lent | None = None
        try:
            async with asyncio.timeout(desk.answer_timeout):
                connection = await desk.connections.listener()
            if connection is None:
                log.info("the pool is too small to keep a connection for LISTEN: the outbox is looked at by polling")
                return
            await _listen(desk, connection)
            pause = FIRST_PAUSE
        except Exception as error:
            log.info("%s: the listening connection failed, polling goes on (%s)", desk.where, type(error).__name__)
        finally:
            if connection is not None:
                await asyncio.shield(desk.connections.give_back(connection, broken=True))
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


async def _listen(desk: Desk, connection: Lent) -> None:
    """Until the connection ends."""
    gone = asyncio.Event()
    connection.add_termination_listener(lambda _: gone.set())
    async with asyncio.timeout(desk.answer_timeout):
        await connection.add_listener(CHANNEL, lambda *_: desk.wake.soon())
    desk.wake.now()  # what came before is not told again
    while not gone.is_set():
        try:
            async with asyncio.timeout(LISTEN_ALIVE):
                await gone.wait()
        except TimeoutError:
            async with asyncio.timeout(desk.answer_timeout):
                await connection.execute("SELECT 1")
