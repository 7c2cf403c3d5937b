"""Effects applied once in a SQL database, through SQLAlchemy 2: PostgreSQL, MariaDB or SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from tidings.delivery import Message
from tidings.errors import Contention, MisuseError, StoreUnavailable, TidingsError, WorldError
from tidings.outbox import retention, rows, tables, texts
from tidings.outbox.direct import HOLD
from tidings.outbox.relay import Relay
from tidings.outbox.row import OutboxBacklog, Parked
from tidings.ports import Forgotten, Key, KeyKind, Publish
from tidings.stores._claims import SqlClaim
from tidings.stores._database import BEGIN, Database, own_error
from tidings.stores._databases import database_for
from tidings.stores._desk import Desk
from tidings.stores._guard import watch
from tidings.stores._links import ASYNC_KINDS, SYNC_KINDS
from tidings.stores._outbox import SqlOutbox
from tidings.stores._transactions import Transaction, current

T = TypeVar("T")

OPEN_TRIES = 5


class SqlAlchemyStore:
    """Keys, effects and caused events of a handler commit together or not at all.

    Handlers ask for `AsyncConnection` or `AsyncSession`, sync handlers for `Connection` or `Session`, and get the one
    of their batch's transaction: they do not commit or roll back, and undo a part with ``begin_nested()``. A session
    flushes before the commit, and its objects stay usable after it.

    Transactions are READ COMMITTED on PostgreSQL and MariaDB. Whoever waits for another's lock longer than
    `lock_timeout` gets `Contention`. On SQLite the file has one writer: while a claim or a transaction is open, whoever
    else wants to write waits. Handlers that wait for other things should not do so in a transaction.

    Args:
        target: a URL (``sqlite:///shop.db``, ``postgresql+asyncpg://…``, ``postgresql+psycopg://…``,
            ``mariadb+aiomysql://…``), or a live `AsyncEngine`, whose pool is used and never disposed of.
        lock_timeout: how long to wait for other writers, in seconds; MariaDB knows whole ones only, and at least one.
        poll: how often the relay looks for events of other processes, in seconds.
        lease: how long other relays wait for one that died, in seconds.
        hold: how long, in seconds, committed events are this process' to publish from memory; then they are the
            relay's.
        answers_within: how long a server may take for a step of Tidings' own, in seconds, before it is given up.
        create: create or upgrade the tables; otherwise the store opens only where they are as this Tidings makes them.
        create_file: make the file of an SQLite database; otherwise it is to be there.

    Raises:
        ConfigurationError: this database is not known, or its driver is not installed.
    """

    transactional = True

    def __init__(
        self,
        target: str | sa.URL | AsyncEngine,
        *,
        lock_timeout: float = 2.0,
        poll: float = 1.0,
        lease: float = 4.0,
        hold: float = HOLD,
        answers_within: float = 15.0,
        create: bool = True,
        create_file: bool = True,
    ) -> None:
        self._given = target if isinstance(target, AsyncEngine) else None
        url = target.url if isinstance(target, AsyncEngine) else sa.make_url(target)
        self._database: Database = database_for(url, lock_timeout=lock_timeout, answers_within=answers_within)
        self._lock_timeout, self._poll, self._lease = lock_timeout, poll, lease
        self._hold = hold
        self._create, self._create_file = create, create_file
        self._desk: Desk | None = None
        self._reopening = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<SqlAlchemyStore on {self._database}>"

    # ------------------------------------------------------------------ life

    async def open(self) -> None:
        """Connect, and create or upgrade the tables ``tidings_*``; several processes may do so at once.

        Raises:
            StoreUnavailable: the file cannot be opened or written, or others keep it locked.
            ConfigurationError: it cannot be used as it is: its tables are of a newer Tidings, or have no WAL; or it is
                not there, and not to be made.
        """
        if self._desk is not None:
            return
        if not self._create_file:
            self._database.demand()
        desk = self._connect()
        try:
            await self._set_up(desk)
        except BaseException:
            await desk.close(0)
            raise
        self._desk = desk

    def _connect(self) -> Desk:
        database = self._database
        if self._given is None:
            engine = database.async_engine()
        else:
            engine = self._given.execution_options(isolation_level="AUTOCOMMIT")
        sync_engine = database.sync_engine()  # None where its driver is not installed, and asked for nobody
        desk = Desk(
            database, engine, sync_engine, lock_timeout=self._lock_timeout, hold=self._hold, ours=self._given is None
        )
        for one, ours in ((engine.sync_engine, self._given is None), (sync_engine, True)):
            if one is not None:
                desk.hooks.append(watch(one))
                database.prepare(one, ours=ours)
        return desk

    async def _set_up(self, desk: Desk) -> None:
        for left in reversed(range(OPEN_TRIES)):
            try:
                async with asyncio.timeout(self._database.answers_within), desk.engine.connect() as connection:
                    if not self._create:
                        await connection.run_sync(self._demand_tables)
                    return await connection.run_sync(self._database.set_up)
            except TidingsError:
                raise
            except Exception as error:
                trouble = own_error(self._database, error) or error
                if not isinstance(trouble, Contention):
                    raise trouble from error
                if not left:
                    raise StoreUnavailable(f"{self._database} stayed locked while it was to be opened") from error
            await asyncio.sleep(0.1)

    def _demand_tables(self, connection: sa.Connection) -> None:
        tables.demand(connection.execution_options(**{BEGIN: ""}), str(self._database))
        connection.rollback()

    async def close(self) -> None:
        """Let go of the connections. Open claims are to be closed before. Safe to call twice."""
        desk, self._desk = self._desk, None
        if desk is not None:
            await desk.close(self._lock_timeout)

    async def _ready(self) -> Desk:
        """The open desk; opened anew if the file was replaced by another one."""
        if self._desk is None:
            raise MisuseError(f"{self!r} is not open")
        try:
            self._database.check()
        except StoreUnavailable:
            if not self._database.replaced:
                raise
            async with self._reopening:
                if self._desk is not None and self._database.replaced:
                    await self._desk.forget_connections()
                    await self._set_up(self._desk)
        if self._desk is None:
            raise MisuseError(f"{self!r} was closed")
        return self._desk

    # ------------------------------------------------------------------ once

    def gives(self, wanted: type, *, sync: bool) -> bool:
        if sync and wanted in SYNC_KINDS:
            self._database.check_sync()
        return wanted in (SYNC_KINDS if sync else ASYNC_KINDS)

    def translate(self, error: Exception) -> WorldError | None:
        """What an error inside a handler says of the store."""
        if isinstance(error, (Contention, StoreUnavailable)):
            return error
        return self._database.of_handler(error)

    @asynccontextmanager
    async def claim(self, keys: Sequence[Key], *, resource: type | None, sync: bool) -> AsyncIterator[SqlClaim]:
        """Claim keys, in one transaction with all that is done through `resource`.

        A clean exit commits; any exception rolls back, and `CancelledError` is an exception. A commit that fails in a
        way that leaves its outcome open is looked up.

        Raises:
            StoreUnavailable: the database cannot be read or written.
            Contention: others kept it locked for longer than `lock_timeout`.
            MisuseError: a handler ended the transaction itself; nothing of it is committed, unless it did so on the
                driver's own connection, where it cannot be kept from it.
        """
        desk = await self._ready()
        async with SqlClaim(desk, desk.link(sync=sync), keys) as claim:
            yield claim

    # ------------------------------------------------------------------ outside handlers

    @asynccontextmanager
    async def transaction(self, wanted: type | None = None) -> AsyncIterator[Any]:
        """A transaction for code outside handlers: a clean exit commits, an exception rolls back.

        Args:
            wanted: `AsyncConnection` (the default) or `AsyncSession`; `Connection` or `Session` for work that is
                given to a thread, because they block.

        Raises:
            StoreUnavailable, Contention: as for a claim.
            MisuseError: a claim or transaction of this store is open here already, or the block ended it itself.
        """
        kind = wanted or AsyncConnection
        if kind not in (*ASYNC_KINDS, *SYNC_KINDS):
            names = ", ".join(one.__name__ for one in (*ASYNC_KINDS, *SYNC_KINDS))
            raise MisuseError(f"a transaction of this store yields one of {names}, not {kind.__name__}")
        desk = await self._ready()
        transaction = Transaction(desk, desk.link(sync=kind in SYNC_KINDS))
        await transaction.open(lambda connection: None)
        try:
            yield transaction.resource(kind)
        except BaseException:
            await transaction.abandon()
            raise
        try:
            await transaction.commit()
        except StoreUnavailable as error:
            if not transaction.doubtful:
                raise
            raise StoreUnavailable(f"{error}. Whether the transaction was committed is not known") from error

    async def emit(self, tx: object, messages: Sequence[Message]) -> None:
        """Write events into an open transaction: a handler's, one of `transaction`, or one of the user's own.

        Args:
            tx: an `AsyncConnection`, `AsyncSession`, `Connection` or `Session` on this store's database.

        Raises:
            MisuseError: it is something else, leads elsewhere, or is not in a transaction.
            StoreUnavailable, Contention: the rows could not be written.
        """
        desk = await self._ready()
        known = current(desk)
        if known is not None and known.lent(tx):
            known.emit(messages)
            return
        try:
            if isinstance(tx, (AsyncConnection, AsyncSession)):
                await tx.run_sync(self._write_into, messages)
            else:
                # A sync connection belongs to whoever called, and so does the thread that called.
                self._write_into(tx, messages)
        except sa.exc.DBAPIError as error:
            raise own_error(self._database, error) or error from error
        desk.wake.soon()

    def _write_into(self, tx: object, messages: Sequence[Message]) -> None:
        if not isinstance(tx, SYNC_KINDS):
            raise MisuseError(
                f"tx is to be an AsyncConnection, AsyncSession, Connection or Session, not {type(tx).__name__}"
            )
        remedy = "Open one first: `async with session.begin(): …`, `async with engine.begin() as connection: …`"
        if not tx.in_transaction():
            raise MisuseError(
                f"this {type(tx).__name__} is not in a transaction, so no commit would carry it. {remedy}"
            )
        connection = tx.connection() if isinstance(tx, Session) else tx
        database = self._database
        elsewhere = f"this {type(tx).__name__} is not a connection to {database}, the outbox' database"
        if connection.dialect.name not in database.dialects:
            raise MisuseError(elsewhere)
        if not database.will_commit(connection):
            raise MisuseError(f"this {type(tx).__name__} commits each statement by itself (AUTOCOMMIT). {remedy}")
        if not database.same_database(connection):
            raise MisuseError(elsewhere)
        texts.check(messages)
        database.fits(messages)
        if messages:
            rows.insert(connection, messages)

    async def forget(self, position: str, kind: KeyKind, before: float, *, after: str = "", most: int) -> Forgotten:
        """Remove keys of this kind that were applied before `before`: of the next `most` behind `after`.

        It reads first, without keeping anybody from writing, and opens a transaction only when there is something to
        remove.

        Raises:
            StoreUnavailable, Contention: nothing was removed.
        """
        old, ends = await self._read(
            lambda connection: retention.old_keys(connection, position, kind, before, after, most)
        )
        if old:
            await self._write(lambda connection: retention.remove(connection, position, old, before))
        return Forgotten(len(old), ends)

    # ------------------------------------------------------------------ the outbox

    async def relay(self, publish: Publish) -> None:
        """Publish committed rows in order until cancelled: what this process commits itself, from memory, all else as
        the relay, of which only one is at work at a time."""
        desk = await self._ready()
        relay = Relay(SqlOutbox(self._read, self._write), publish, desk.wake, poll=self._poll, lease=self._lease)

        async def settle(stored: Sequence[int], left: Sequence[int]) -> None:
            def settle(connection: sa.Connection) -> None:
                rows.remove(connection, stored)
                rows.let_go(connection, left)

            await self._write(settle)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(relay.run(), name="tidings outbox relay")
            tasks.create_task(desk.direct.run(publish, settle), name="tidings outbox direct")

    async def outbox_backlog(self) -> OutboxBacklog:
        """How many events wait to be published, the age of the oldest in seconds, and how many are parked."""
        return await self._read(rows.backlog)

    async def outbox_parked(self, most: int = 100) -> list[Parked]:
        """The events that cannot be published as they stand; each holds up the later ones of its key."""
        return await self._read(lambda connection: rows.parked(connection, most))

    async def outbox_release(self, id: int) -> bool:
        """Try a parked event again. False: there is none of this number."""
        released = await self._write(lambda connection: rows.release(connection, id))
        (await self._ready()).wake.now()
        return released

    async def outbox_discard(self, id: int) -> bool:
        """Give a parked event up for good, so that later ones of its key leave. False: there is none of this number."""
        discarded = await self._write(lambda connection: rows.discard(connection, id))
        (await self._ready()).wake.now()
        return discarded

    async def _read(self, work: Callable[[sa.Connection], T]) -> T:
        return await (await self._ready()).read(work)

    async def _write(self, work: Callable[[sa.Connection], T]) -> T:
        desk = await self._ready()
        transaction = Transaction(desk, desk.link(sync=False))
        transaction.announced = False
        result = await transaction.open(work)
        await transaction.commit()
        return result
