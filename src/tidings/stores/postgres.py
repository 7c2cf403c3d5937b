"""Effects applied once in PostgreSQL, through asyncpg."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from tidings.delivery import Message
from tidings.errors import (
    ConfigurationError,
    Contention,
    MisuseError,
    StoreUnavailable,
    TidingsError,
    TransactionEnded,
    WorldError,
)
from tidings.outbox import texts
from tidings.outbox.direct import HOLD
from tidings.outbox.relay import Relay
from tidings.outbox.row import OutboxBacklog, Parked
from tidings.outbox.waiting import to_end
from tidings.ports import Forgotten, Key, KeyKind, Publish
from tidings.stores import _postgres_errors as errors
from tidings.stores import _postgres_outbox as outbox
from tidings.stores import _postgres_retention as retention
from tidings.stores import _postgres_schema as schema
from tidings.stores._postgres_claims import PostgresClaim, lost
from tidings.stores._postgres_connections import Connections, OwnConnections, PoolConnections, ended
from tidings.stores._postgres_desk import Desk
from tidings.stores._postgres_outbox import PostgresOutbox
from tidings.stores._postgres_sql import ONLY_TIDINGS_COMMITS
from tidings.stores._postgres_statements import Statements
from tidings.stores._postgres_transactions import Transaction, current

__all__ = ["PostgresStore", "Statements"]

log = logging.getLogger("tidings.store")

OPEN_TRIES = 5
CONNECT_TIMEOUT = 10.0

Pool = asyncpg.Pool


class PostgresStore:
    """Keys, effects and caused events of a handler commit together or not at all.

    Handlers ask for `asyncpg.Connection`, or for `Statements` that need no answer, and get those of their batch's
    transaction: they do not commit or roll back, and undo a part with ``async with db.transaction()``. Sync handlers
    get nothing from it, because the driver is asynchronous: use SQLAlchemy's store for them.

    With a URL the store opens connections of its own, one for each lane that works, and keeps them without resetting
    them between two claims. A pool's connections are reset as the pool does it, one round trip more for each claim.
    Behind a proxy that pools by transaction (PgBouncer) it prepares no statements and does not listen.

    Args:
        target: a URL (``postgresql://user@host/database``), or a live `asyncpg.Pool`, which is never closed here.
        lock_timeout: how long a statement in a claim waits for another's locks, in seconds; in a claim of several
            events, which can come again smaller, a tenth of it.
        answer_timeout: how long to wait for an answer to Tidings' own statements, in seconds; and for all that handlers
            queued, which is sent at the end of a batch.
        connections: how many transactions outside handlers may be open at a time.
        poll: how often the relay looks for events of other processes, in seconds.
        lease: how long other relays wait for one that died, in seconds.
        hold: how long, in seconds, committed events are this process' to publish from memory; then they are the
            relay's.
        create: create or upgrade the tables; otherwise the store opens only where they are as this Tidings makes them.
    """

    transactional = True

    def __init__(
        self,
        target: str | Pool[asyncpg.Record],
        *,
        lock_timeout: float = 0.5,
        answer_timeout: float = 30.0,
        connections: int = 10,
        poll: float = 1.0,
        lease: float = 4.0,
        hold: float = HOLD,
        create: bool = True,
    ) -> None:
        self._target = target
        self._where = f"the PostgreSQL database {_named(target)}"
        self._lock_timeout, self._answer_timeout, self._most = lock_timeout, answer_timeout, connections
        self._poll, self._lease, self._hold = poll, lease, hold
        self._create = create
        self._desk: Desk | None = None

    def __repr__(self) -> str:
        return f"<PostgresStore {self._where}>"

    # ------------------------------------------------------------------ life

    async def open(self) -> None:
        """Connect, and create or upgrade the tables ``tidings_*``; several processes may do so at once.

        Raises:
            StoreUnavailable: the server cannot be reached, or does not let this user in.
            ConfigurationError: it cannot be used as it is: too old, tables of a newer Tidings, a pool that prepares
                statements behind a proxy that cannot keep them.
        """
        if self._desk is not None:
            return
        connections = self._connections()
        try:
            self._desk = await self._tried(connections)
        except BaseException:
            await connections.close()
            raise

    async def _tried(self, connections: Connections) -> Desk:
        """Others may make the same tables at the same time, so it is tried more than once."""
        tries = 0
        while True:
            try:
                async with asyncio.timeout(self._answer_timeout):
                    return await self._opened(connections)
            except TidingsError:
                raise
            except (ValueError, asyncpg.ClientConfigurationError) as error:
                raise ConfigurationError(f"{self._where}: its URL cannot be understood: {error}") from None
            except Exception as error:
                tries += 1
                cause: BaseException = getattr(error, "orig", None) or error  # SQLAlchemy's wrap the driver's
                trouble = errors.own_error(cause.__cause__ or cause, self._where) or error
                if not isinstance(trouble, Contention) or tries == OPEN_TRIES:
                    raise trouble from error
            await asyncio.sleep(0.1)

    def _connections(self) -> Connections:
        if isinstance(self._target, str):
            return OwnConnections(self._target, connect_timeout=CONNECT_TIMEOUT)
        return PoolConnections(self._target, acquire_timeout=min(CONNECT_TIMEOUT, self._answer_timeout))

    async def _opened(self, connections: Connections) -> Desk:
        if isinstance(connections, OwnConnections):
            connections.statement_cache_size = 0  # until it is known that nothing stands between
        connection = await connections.take()
        broken = True
        try:
            seen = await schema.look(connection)
            broken = isinstance(connections, OwnConnections)
        finally:
            await connections.give_back(connection, broken=broken)
        if seen.pooled:
            self._behind_a_proxy(connections, prepares=seen.prepares)
        if not seen.tables:
            if not self._create:
                raise ConfigurationError(
                    f"{self._where} has no tables tidings_* as this Tidings makes them. Is its name right? tidings db"
                    " init makes or upgrades them"
                )
            await schema.ensure_tables(connections)
        if isinstance(connections, OwnConnections) and not seen.pooled:
            connections.statement_cache_size = None
        desk = Desk(
            connections,
            where=self._where,
            lock_timeout=self._lock_timeout,
            answer_timeout=self._answer_timeout,
            most=self._most,
            hold=self._hold,
        )
        desk.pooled, desk.synchronous_commit = seen.pooled, seen.synchronous_commit
        async with desk.session() as connection:
            name, desk.made_at = await schema.identity(connection)
        if not isinstance(self._target, str):
            desk.where = self._where = f"the PostgreSQL database {name}"
        return desk

    def _behind_a_proxy(self, connections: Connections, *, prepares: bool) -> None:
        if isinstance(connections, OwnConnections):
            log.info("%s is behind a proxy: statements are not prepared, which costs a round trip each", self._where)
        elif prepares:
            raise ConfigurationError(
                f"{self._where} is behind a proxy, where prepared statements get lost, and this pool prepares them."
                " Make it with asyncpg.create_pool(…, statement_cache_size=0), or give the store the URL"
            )

    async def close(self) -> None:
        """Let go of the connections. Open claims are to be closed before. Safe to call twice."""
        desk, self._desk = self._desk, None
        if desk is not None:
            await desk.connections.close()

    def _ready(self) -> Desk:
        if self._desk is None:
            raise MisuseError(f"{self!r} is not open")
        return self._desk

    # ------------------------------------------------------------------ once

    def gives(self, wanted: type, *, sync: bool) -> bool:
        return not sync and wanted in (asyncpg.Connection, Statements)

    def translate(self, error: Exception) -> WorldError | TransactionEnded | None:
        """What an error inside a handler says of the store, or of a transaction that it tried to commit."""
        if isinstance(error, (Contention, StoreUnavailable)):
            return error
        if isinstance(error, asyncpg.ForeignKeyViolationError) and error.constraint_name == ONLY_TIDINGS_COMMITS:
            return ended()
        if errors.kept(error):
            return TransactionEnded(
                "a handler used a prepared statement or a cursor that it kept from an earlier event. Prepare it anew:"
                " the driver remembers statements, and that costs nothing"
            )
        if isinstance(error, TidingsError):
            return None
        return errors.world(error, self._where) or lost(error, self._where)

    @asynccontextmanager
    async def claim(self, keys: Sequence[Key], *, resource: type | None, sync: bool) -> AsyncIterator[PostgresClaim]:
        """Claim keys, in one transaction with all that is done through `resource`.

        A clean exit commits; any exception rolls back, and `CancelledError` is an exception. A commit whose answer was
        lost is looked up.

        Raises:
            StoreUnavailable: the database cannot be reached, or cannot be written.
            Contention: others held a key or a row for longer than `lock_timeout`, or a deadlock was ended.
            MisuseError: a handler ended the transaction itself; nothing of it is committed.
        """
        async with PostgresClaim(self._ready(), keys) as claim:
            yield claim

    # ------------------------------------------------------------------ outside handlers

    def transaction(self, wanted: type | None = None) -> AbstractAsyncContextManager[Any]:
        """A transaction for code outside handlers: a clean exit commits, an exception rolls back.

        Args:
            wanted: `asyncpg.Connection` (the default) or `Statements`.

        Raises:
            StoreUnavailable, Contention: as for a claim.
            MisuseError: a claim or transaction of this store is open here already, or the block ended it itself.
        """
        kind = wanted or asyncpg.Connection
        if not self.gives(kind, sync=False):
            raise MisuseError(
                f"a transaction of this store yields an asyncpg.Connection or Statements, not {kind.__name__}"
            )
        return self._transaction(kind)

    @asynccontextmanager
    async def _transaction(self, kind: type) -> AsyncIterator[Any]:
        desk = self._ready()
        transaction = Transaction(desk, reserved=False)
        await transaction.open(transaction.keyless)
        try:
            yield transaction.resource(kind)
        except BaseException:
            await transaction.abandon()
            raise
        try:
            await transaction.commit()
        except WorldError as error:
            if not transaction.doubtful:
                raise
            if (committed := await transaction.took_effect()) is None:
                raise StoreUnavailable(
                    f"{desk.where}: the connection was lost during the commit, and whether it took effect is not known"
                    f" ({error})"
                ) from error
            if not committed:
                raise

    async def emit(self, tx: object, messages: Sequence[Message]) -> None:
        """Write events into an open transaction: a handler's, one of `transaction`, or one of the user's own.

        Args:
            tx: an `asyncpg.Connection`, of a pool or not, on this store's database; or the handler's `Statements`.

        Raises:
            MisuseError: it is something else, leads elsewhere, or is not in a transaction.
            InvalidEvent: an event has text that PostgreSQL cannot keep.
            StoreUnavailable, Contention: the rows could not be written.
        """
        desk = self._ready()
        known = current(desk)
        if known is not None and known.lent(tx):
            known.emit(messages)
            return
        if not isinstance(tx, asyncpg.Connection):
            raise MisuseError(f"tx is to be an asyncpg.Connection in a transaction, not {type(tx).__name__}")
        if not tx.is_in_transaction():
            raise MisuseError(
                "this connection is not in a transaction, so no commit would carry the event. Open one first:"
                " `async with connection.transaction(): …`"
            )
        texts.check(messages)
        if not messages:
            return
        elsewhere = MisuseError(f"this connection does not lead to {desk.where}, the outbox' database")
        try:
            written = await outbox.insert_elsewhere(tx, messages, desk.made_at)
        except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as error:
            raise elsewhere from error
        except asyncpg.InFailedSQLTransactionError:
            raise
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise errors.own_error(error, desk.where) or error from error
        if not written:
            raise elsewhere
        desk.wake.soon()

    async def forget(self, position: str, kind: KeyKind, before: float, *, after: str = "", most: int) -> Forgotten:
        """Remove keys of this kind that were applied before `before`: of the next `most` behind `after`.

        Raises:
            StoreUnavailable, Contention: nothing was removed.
        """
        return await retention.forget(self._ready(), position, kind, before, after, most)

    # ------------------------------------------------------------------ the outbox

    async def relay(self, publish: Publish) -> None:
        """Publish committed rows in order until cancelled: what this process commits itself, from memory, all else as
        the relay, of which only one is at work at a time."""
        desk = self._ready()
        listening = asyncio.create_task(outbox.listen(desk), name="tidings outbox listener")
        try:
            relay = Relay(PostgresOutbox(desk), publish, desk.wake, poll=self._poll, lease=self._lease)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(relay.run(), name="tidings outbox relay")
                settle = partial(outbox.settle_direct, desk)
                tasks.create_task(desk.direct.run(publish, settle), name="tidings outbox direct")
        finally:
            listening.cancel()
            await to_end(_ended(listening))

    async def outbox_backlog(self) -> OutboxBacklog:
        """How many events wait to be published, the age of the oldest in seconds, and how many are parked."""
        return await PostgresOutbox(self._ready()).backlog()

    async def outbox_parked(self, most: int = 100) -> list[Parked]:
        """The events that cannot be published as they stand; each holds up the later ones of its key."""
        return await PostgresOutbox(self._ready()).parked(most)

    async def outbox_release(self, id: int) -> bool:
        """Try a parked event again. False: there is none of this number."""
        return await self._decide(outbox.RELEASE, id)

    async def outbox_discard(self, id: int) -> bool:
        """Give a parked event up for good, so that later ones of its key leave. False: there is none of this number."""
        return await self._decide(outbox.DISCARD, id)

    async def _decide(self, statement: str, id: int) -> bool:
        decided = await PostgresOutbox(self._ready()).decide(statement, id)
        self._ready().wake.now()
        return decided


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task}, timeout=CONNECT_TIMEOUT)


def _named(target: object) -> str:
    """Which database it is, without user and password."""
    if not isinstance(target, str):
        return "of a live pool"
    try:
        url = urlsplit(target)
        return f"{url.path.strip('/') or 'of this user'} on {url.hostname or 'this host'}:{url.port or 5432}"
    except ValueError:
        return "(its URL cannot be read)"
