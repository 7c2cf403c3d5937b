"""Messages as rows of the outbox: what is written, read and removed, as plain functions of a connection."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from tidings.delivery import Message
from tidings.outbox.direct import MOST_BEFORE, Direct, Entry, entries_of
from tidings.outbox.row import OutboxBacklog, Parked, Refused, Row
from tidings.outbox.tables import CLOCKS, RELAY, key_hash, outbox, relay
from tidings.outbox.texts import escaped, parked_of, rows_of

CHUNK = 500
"""Ids in one statement."""

STATEMENT_BYTES = 512 * 1024
"""What rows of one statement hold together, about: far below what every server takes at once, also where a byte becomes
two on its way and a letter four. A single row may be larger."""

_LARGE = ("body", "headers", "message_id", "key", "position")
"""Columns that count for that; the others are short."""

PARKED_UNTIL = 1e18
"""The `retry_at` of a parked row: it holds its key until a person decides."""

LONGEST_WAIT = 600.0
"""Seconds that no row waits, whoever holds or refused it: what says more was written by a clock that was wrong."""

MOST_ERROR = 500
"""Characters of an error that are kept with its row."""


def insert(connection: sa.Connection, messages: Sequence[Message]) -> None:
    """Write messages in one statement, in their order, for the relay."""
    connection.execute(outbox.insert(), _values(messages))


def insert_held(connection: sa.Connection, messages: Sequence[Message], direct: Direct) -> list[Entry]:
    """Write messages in their order, and return those that this process publishes itself.

    What waits of their keys is read before they are written. Nothing that they have to follow can come in between: it
    was committed before this transaction got the locks that it holds, or is of one that does not share them. Where
    several write at a time this needs READ COMMITTED: an older snapshot does not show what waits.
    """
    if not direct.takes():
        insert(connection, messages)
        return []
    hashes = [key_hash(message.stream, message.key) for message in messages]
    unsent = _unsent(connection, {key for key in hashes if key is not None})
    if unsent is None:
        insert(connection, messages)
        return []
    known = {key: direct.known(ids) for key, ids in unsent.items()}
    before = {key: entries for key, entries in known.items() if entries is not None}
    chosen = [key is None or key not in unsent or key in before for key in hashes]
    until, wall = time.monotonic() + direct.hold, time.time() + direct.hold
    values = _values(messages)
    for value, mine in zip(values, chosen, strict=True):
        value["retry_at"] = wall if mine else 0.0
    if not any(chosen):
        connection.execute(outbox.insert(), values)
        return []
    # To have an answer sorted costs a statement for each row on SQLite; the ids tell the order.
    statement = outbox.insert().returning(outbox.c.id, outbox.c.message_id)
    written = [row for some in _statements(values) for row in connection.execute(statement, some)]
    found = sorted((id, message_id) for id, message_id in written)
    ids = [id for id, _ in found]
    if [message_id for _, message_id in found] != [value["message_id"] for value in values]:
        let_go(connection, ids)  # not in the order in which they were given: by their ids, which the relay goes by
        return []
    entries = entries_of(messages, ids, hashes, chosen, before, until, wall)
    direct.written(entries)
    return entries


def _statements(values: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of one statement each: all, unless they are large, for no server takes a statement of any size."""
    some: list[dict[str, Any]] = []
    size = 0
    for value in values:
        own = sum(len(value[name] or "") for name in _LARGE)
        if some and size + own > STATEMENT_BYTES:
            yield some
            some, size = [], 0
        some.append(value)
        size += own
    yield some


def _unsent(connection: sa.Connection, keys: Collection[int]) -> dict[int, list[int]] | None:
    """The rows of these keys that are in the table, by key; None when they are too many to care for."""
    found: dict[int, list[int]] = {}
    wanted = sorted(keys)
    count = 0
    for start in range(0, len(wanted), CHUNK):
        some = outbox.c.key_hash.in_(wanted[start : start + CHUNK])
        rows = connection.execute(
            sa.select(outbox.c.key_hash, outbox.c.id).where(some).limit(MOST_BEFORE + 1 - count)
        ).all()
        count += len(rows)
        if count > MOST_BEFORE:
            return None
        for key, id in rows:
            found.setdefault(key, []).append(id)
    return found


def let_go(connection: sa.Connection, ids: Sequence[int]) -> None:
    """End the hold of rows, so that the relay may have them now."""
    for start in range(0, len(ids), CHUNK):
        some = outbox.c.id.in_(ids[start : start + CHUNK])
        connection.execute(outbox.update().where(some, outbox.c.parked == sa.false()).values(retry_at=0.0))


def _values(messages: Sequence[Message]) -> list[dict[str, Any]]:
    now = time.time()
    return [
        {
            "message_id": escaped(message.id),
            "stream": escaped(message.stream),
            "type": escaped(message.type),
            "key": None if message.key is None else escaped(message.key),
            "key_hash": key_hash(message.stream, message.key),
            "route": message.route.value,
            "position": escaped(message.position),
            "due": message.due,
            "headers": msgspec.json.encode(message.headers).decode(),
            "body": message.body,
            "created_at": now,
        }
        for message in messages
    ]


def ready(connection: sa.Connection, most: int, most_bytes: int, now: float) -> list[Row]:
    """The first rows that may be published, in order: none whose key has an earlier row that must wait.

    It reads what is there and unsent, never "ids above the last one seen": where several write at a time, a lower id
    may be committed after a higher one, and a cursor would skip it for ever. Then the higher one has left before it,
    which is the order of their commits. Whoever holds a lock on what the events are about has their ids in that order,
    too: Tidings writes rows just before the commit, when all locks are held.
    """
    earlier = outbox.alias("earlier")
    held = (
        sa.exists()
        .where(earlier.c.key_hash == outbox.c.key_hash, _waits(earlier, now))
        .where(earlier.c.id < outbox.c.id)
    )
    weight = sa.func.length(outbox.c.body) + sa.func.length(outbox.c.headers)
    found = connection.execute(
        sa.select(outbox.c.id, weight).where(~_waits(outbox, now), ~held).order_by(outbox.c.id).limit(most)
    )
    ids: list[int] = []
    total = 0
    for id, size in found.all():
        total += size
        if ids and total > most_bytes:
            break
        ids.append(id)
    if not ids:
        return []
    return rows_of(_whole(connection, sa.select(outbox).where(outbox.c.id.in_(ids)).order_by(outbox.c.id)))


def _whole(connection: sa.Connection, statement: sa.Select[Any]) -> Sequence[Mapping[str, Any]]:
    """Whole rows; where the driver cannot read one (SQLite keeps bytes that are no text), as much of it as it can."""
    try:
        return [dict(row) for row in connection.execute(statement).mappings()]
    except sa.exc.DBAPIError as error:
        if error.connection_invalidated:
            raise
        ids = connection.scalars(statement.with_only_columns(outbox.c.id)).all()
        return [{column.name: _value(connection, column, id) for column in outbox.c} for id in ids]


def _value(connection: sa.Connection, column: sa.Column[Any], id: int) -> Any:
    try:
        return connection.scalar(sa.select(column).where(outbox.c.id == id))
    except sa.exc.DBAPIError as error:
        if column in (outbox.c.id, outbox.c.attempts, outbox.c.key_hash, outbox.c.created_at):
            raise
        return error.orig


def remove(connection: sa.Connection, ids: Sequence[int]) -> None:
    """Take out rows that the broker has stored."""
    for start in range(0, len(ids), CHUNK):
        connection.execute(outbox.delete().where(outbox.c.id.in_(ids[start : start + CHUNK])))


def refuse(connection: sa.Connection, refused: Sequence[Refused]) -> None:
    """Keep what was not stored, with the reason and the time of the next attempt."""
    for one in refused:
        connection.execute(
            outbox.update()
            .where(outbox.c.id == one.id)
            .values(
                attempts=outbox.c.attempts + 1,
                error=escaped(one.error[:MOST_ERROR]),
                retry_at=PARKED_UNTIL if one.retry_at is None else one.retry_at,
                parked=one.retry_at is None,
            )
        )


def waits(connection: sa.Connection, now: float) -> bool:
    """Whether there is any row that may be due."""
    return connection.scalar(sa.select(outbox.c.id).where(~_waits(outbox, now)).limit(1)) is not None


def _waits(table: sa.FromClause, now: float) -> sa.ColumnElement[bool]:
    """The rows that are to wait: not those that do so by a clock that was set back since, or is ahead of this one."""
    right = sa.or_(table.c.retry_at <= now + LONGEST_WAIT, table.c.parked == sa.true())
    return sa.and_(table.c.retry_at > now, right)  # with the comparison by itself, for the index


def backlog(connection: sa.Connection) -> OutboxBacklog:
    """How many rows wait, how long the oldest has, and how many of them are parked."""
    count = connection.scalar(sa.select(sa.func.count()).select_from(outbox)) or 0
    oldest = connection.scalar(sa.select(outbox.c.created_at).order_by(outbox.c.id).limit(1))
    parked = connection.scalar(sa.select(sa.func.count()).where(outbox.c.parked == sa.true())) or 0
    return OutboxBacklog(count, max(0.0, time.time() - oldest) if oldest is not None else 0.0, parked)


def parked(connection: sa.Connection, most: int) -> list[Parked]:
    """The rows that wait for a person, oldest first."""
    statement = sa.select(outbox).where(outbox.c.parked == sa.true()).order_by(outbox.c.id).limit(most)
    return [parked_of(row) for row in _whole(connection, statement)]


def release(connection: sa.Connection, id: int) -> bool:
    """Let the relay try a parked row once more. False: there is no such row."""
    statement = outbox.update().where(outbox.c.id == id, outbox.c.parked == sa.true())
    return bool(connection.execute(statement.values(parked=False, retry_at=0.0)).rowcount)


def discard(connection: sa.Connection, id: int) -> bool:
    """Give up a parked row: its event is never published. False: there is no such row."""
    return bool(connection.execute(outbox.delete().where(outbox.c.id == id, outbox.c.parked == sa.true())).rowcount)


def take_lease(connection: sa.Connection, owner: str, seconds: float) -> bool:
    """Become, or stay, the one process that publishes: true until `seconds` from now, by the database's clock."""
    now: sa.ColumnElement[float] = sa.literal_column(f"({CLOCKS[connection.dialect.name]})", sa.Double)
    free = sa.or_(relay.c.owner == owner, relay.c.owner == "", relay.c.expires_at < now)
    # A clock that was set back must not leave a lease that lasts for hours.
    free = sa.or_(free, relay.c.expires_at > now + 10 * seconds)
    taken = connection.execute(
        relay.update().where(relay.c.name == RELAY, free).values(owner=owner, expires_at=now + seconds)
    )
    return bool(taken.rowcount)


def give_lease_back(connection: sa.Connection, owner: str) -> None:
    """Let another process take over at once."""
    connection.execute(
        relay.update().where(relay.c.name == RELAY, relay.c.owner == owner).values(owner="", expires_at=0.0)
    )
