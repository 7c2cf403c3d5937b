"""One transaction that is lent: opened, and ended in a known state whatever happens in between."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import asyncpg

from tidings import points
from tidings.delivery import Message
from tidings.errors import MisuseError, StoreUnavailable, TidingsError
from tidings.outbox import texts
from tidings.outbox.direct import Entry
from tidings.outbox.waiting import to_end
from tidings.stores import _postgres_errors as errors
from tidings.stores import _postgres_outbox as outbox
from tidings.stores import _postgres_sql as sql
from tidings.stores._postgres_connections import (
    REMEDY,
    Borrower,
    GuardedConnection,
    Lent,
    driver_of,
    ended,
    gone,
    inside,
    over,
)
from tidings.stores._postgres_desk import Desk
from tidings.stores._postgres_statements import Statements
from tidings.stores._postgres_statements import over as statements_over

log = logging.getLogger("tidings.store")

T = TypeVar("T")

ROLLBACK_LIMIT: Final = 5.0
"""Seconds that a rollback has, before its connection is cut and the server rolls back by itself."""

CUT_LIMIT: Final = 2.0
"""Seconds that the server has to end a connection that a handler does not give back."""

LOOK_UP_PAUSES: Final = (0.1, 0.3, 0.6, 0.0)
"""Seconds after each attempt to learn what became of a commit."""

SHARE_TOGETHER: Final = 0.1
"""How much of `lock_timeout` the events of a batch have together. Two batches that need the same rows mostly wait for
each other, and nobody works meanwhile; smaller ones seldom do, and a single event has all of it."""

STATUS_TRIES: Final = 20
STATUS_PAUSE: Final = 0.1


class Transaction:
    """A transaction of Tidings' own, with the messages that leave when it commits.

    `open`, then `commit` or `abandon`, each once. After any exception out of `open` or `commit` it is over: rolled
    back, its connection given back or cut.
    """

    def __init__(
        self,
        desk: Desk,
        *,
        reserved: bool,
        together: bool = False,
        before_commit: Callable[[Lent], Awaitable[None]] | None = None,
    ) -> None:
        self._desk = desk
        self._lock_timeout = desk.lock_timeout * (SHARE_TOGETHER if together else 1)
        self._reserved = reserved
        self._before_commit = before_commit
        self._number = random.getrandbits(62)
        self._connection: Lent | None = None
        self._began = 0.0
        self.lasted: float | None = None  # seconds until its connection was found to be lost
        self._entered = False
        self._ours = False
        """What fails now is a statement of ours, not the borrower's."""
        self._messages: list[Message] = []
        self._entries: list[Entry] = []
        """Of the messages, those that this process publishes itself."""
        self._outer: Borrower | None = None
        self._statements: Statements | None = None
        self.xid = ""
        self.trouble: Exception | None = None
        """What a handler did that is not allowed; nothing commits after it."""
        self.ended_before: MisuseError | None = None
        """The transaction had ended when a handler was to begin: the fault of one before it."""
        self.touched = False
        """The handler that has it now has sent something, or may have."""
        self._before = 0
        """How many messages there were when it got it."""
        self.usable = False
        self.doubtful = False
        """The commit failed, and whether it took effect is not known."""
        self.is_cut = False
        """A handler runs on with its connection, which is to be closed under its hands."""
        self._misled = False
        """Over its connection the store cannot be used; over another it may be, which leads where the address does now:
        a standby that one came to in a failover would answer, and refuse, for ever."""

    @property
    def settings(self) -> tuple[int, str, str]:
        """The first parameters of the statements that open it."""
        return self._number, f"{max(1, round(self._lock_timeout * 1000))}ms", self._desk.synchronous_commit

    async def open(self, first: Callable[[Lent], Awaitable[T]]) -> T:
        """Begin, and do the first step: two round trips.

        Raises:
            StoreUnavailable, Contention: as they are for a claim.
            MisuseError: one of this store is open here already.
        """
        if current(self._desk) is not None:
            raise MisuseError(
                f"a transaction of {self._desk.where} is open here already. Use the connection that this handler or"
                " block was given: a second one would not commit together with it, and would wait for its locks"
            )
        await self._desk.enter(self._reserved)
        self._entered = True
        try:
            result = await to_end(self._begin(first))
        except BaseException as error:
            raise await self._given_up(error) from error
        self._outer = inside.get()
        inside.set(self)
        return result

    async def _begin(self, first: Callable[[Lent], Awaitable[T]]) -> T:
        self._ours = True
        async with asyncio.timeout(self._desk.answer_timeout):
            connection = self._connection = await self._desk.connections.take()
            self._began = time.monotonic()
            await connection.transaction(isolation="read_committed").start()
            result = await first(connection)
        self._lend(self)
        self._ours = False
        self.usable = True
        return result

    def _lend(self, borrower: Borrower | None) -> None:
        connection = self._connection
        if type(connection) is GuardedConnection:
            connection.lend(borrower)

    async def keyless(self, connection: Lent) -> None:
        """The first step where there are no keys."""
        self.xid = await connection.fetchval(sql.OPEN, *self.settings)

    def resource(self, wanted: type) -> object:
        """The connection, or the statements on it, for the handler that begins now.

        Raises:
            MisuseError: it is over, or was ended by an earlier handler.
        """
        connection = self._lent()
        if not connection.is_in_transaction():
            # Whatever this handler does would be committed at once, and again when it is repeated.
            self.trouble = self.trouble or ended()
            self.ended_before = ended()
            raise self.ended_before
        self._before = len(self._messages)
        if issubclass(wanted, Statements):
            self.touched = False
            if self._statements is None:
                self._statements = Statements(self._lent_for_statements)
            self._statements.begin()
            return self._statements
        # What is done on a connection of somebody else's pool is not seen.
        self.touched = type(connection) is not GuardedConnection
        self._lend(self)
        return connection

    def undo(self) -> bool:
        """Take back what the handler that has it now did, where nothing of it has been sent yet."""
        sent = self.touched or (self._statements is not None and self._statements.sent)
        if sent or self.trouble is not None or not self.usable:
            return False
        if self._statements is not None:
            self._statements.undo()
        del self._messages[self._before :]
        return True

    @property
    def lost(self) -> bool:
        return self._connection is not None and gone(self._connection)

    def _lent(self) -> Lent:
        if not self.usable or self._connection is None:
            raise MisuseError("this transaction is over. Use its connection only inside the handler or block it is for")
        return self._connection

    def _lent_for_statements(self) -> Lent:
        if not self.usable or inside.get() is not self:
            raise statements_over()
        return self._lent()

    def emit(self, messages: Sequence[Message]) -> None:
        """Keep messages, to be written in one statement before the commit.

        Raises:
            InvalidEvent: one has a text that no database can keep.
        """
        if not self.usable:
            raise MisuseError("this transaction is over: an event cannot join it any more")
        texts.check(messages)
        self._messages.extend(messages)

    def lent(self, tx: object) -> bool:
        """Whether this is what `resource` gave."""
        if not self.usable or self._connection is None:
            return False
        return any(tx is one for one in (self._connection, driver_of(self._connection), self._statements or self))

    def check(self) -> None:
        """See that the transaction is whole, as far as is known without asking.

        Raises:
            MisuseError: a handler ended it.
        """
        if self.trouble is None and not self._lent().is_in_transaction():
            self.trouble = ended()
        if self.trouble is not None:
            raise self.trouble

    def unattributed(self, error: BaseException) -> Exception | None:
        """What failed, where it is not the fault of the handler that raised it: an earlier one's is."""
        if isinstance(error, TidingsError):
            return None
        cause = error.__cause__ or error
        if self._statements is not None and self._statements.unattributed is not None:
            return self._statements.unattributed
        if isinstance(cause, asyncpg.InFailedSQLTransactionError):
            return cause
        return self.ended_before if cause is self.ended_before else None

    async def commit(self) -> None:
        """Send what is queued, write the messages, commit. However often cancelled, the commit is waited for.

        Raises:
            Contention, StoreUnavailable: it did not commit; with `doubtful` set, it may have.
            MisuseError: somebody else ended the transaction.
        """
        try:
            self.check()
            await to_end(self._finish())
        except BaseException as error:
            raise await self._given_up(error) from error
        finally:
            self._leave()
        await to_end(self._release(broken=False))

    async def _finish(self) -> None:
        connection = self._lent()
        self.usable = False
        self._lend(None)
        if self._statements is not None:
            self._statements.check()
            async with asyncio.timeout(self._desk.answer_timeout):  # their handlers' own time has ended with them
                await self._statements.send(connection)
        self._ours = True
        async with asyncio.timeout(self._desk.answer_timeout):
            if self._before_commit is not None:
                await self._before_commit(connection)
            if self._messages:
                self._entries = await outbox.insert_held(connection, self._messages, self._desk)
            self._ours = False
            await self._commit(connection)
        entries, self._entries = self._entries, []
        self._desk.direct.committed(entries)
        if len(entries) < len(self._messages):
            self._desk.wake.now()

    async def _commit(self, connection: Lent) -> None:
        points.at(points.BEFORE_COMMIT)
        try:
            await connection.execute(sql.commit(self._number))
        except asyncpg.DivisionByZeroError:
            raise ended() from None
        except asyncpg.InFailedSQLTransactionError:
            raise MisuseError(f"a handler passed over an error of its connection, which undoes all. {REMEDY}") from None
        except BaseException as error:
            answered = isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError)
            self._ours = not isinstance(error, asyncpg.PostgresError)
            self.doubtful = gone(connection) or not answered
            raise
        points.at(points.AFTER_COMMIT)
        over(connection)

    async def took_effect(self) -> bool | None:
        """Ask the server what became of a commit without keys; None: it does not know, or does not answer."""

        async def ask(connection: Lent) -> bool | None:
            for _ in range(STATUS_TRIES):
                status = await connection.fetchval("SELECT pg_xact_status($1::text::xid8)", self.xid)
                if status != "in progress":
                    return None if status is None else bool(status == "committed")
                await asyncio.sleep(STATUS_PAUSE)
            return None

        return await self.look_up(ask)

    async def look_up(self, ask: Callable[[Lent], Awaitable[T]]) -> T | None:
        """Ask over other connections what became of the commit; None: nobody answers.

        What cut the first connection often cuts the next one too, so it is asked more than once.
        """
        ends = asyncio.get_running_loop().time() + self._desk.answer_timeout
        for pause in LOOK_UP_PAUSES:
            try:
                async with self._desk.session() as connection:
                    return await ask(connection)
            except TidingsError as error:
                log.info("%s: what became of a commit could not be looked up: %s", self._desk.where, error)
            if asyncio.get_running_loop().time() + pause > ends:
                break
            await asyncio.sleep(pause)
        return None

    async def _given_up(self, error: BaseException) -> BaseException:
        explained = self._explained(error)
        self._misled = isinstance(explained, StoreUnavailable)
        await self.abandon()
        return explained

    async def abandon(self) -> None:
        """Roll back and give the connection back, in a time with a limit. Safe to call twice."""
        self._leave()
        entries, self._entries = self._entries, []
        self._desk.direct.not_committed(entries)
        await to_end(self._roll_back())

    async def _roll_back(self) -> None:
        connection = self._connection
        if self.lost:
            self.lasted = time.monotonic() - self._began
        broken = True
        if connection is not None and self.is_cut:
            await self._end_at_the_server(connection)
        elif connection is not None and not self.doubtful:
            self._lend(None)
            try:
                async with asyncio.timeout(ROLLBACK_LIMIT):
                    if connection.is_in_transaction():
                        await connection.execute("ROLLBACK")
                over(connection)
                broken = self._misled
            except Exception as error:
                # Whatever it is: the connection is cut, and the server rolls back by itself.
                log.debug("%s: the rollback failed: %s", self._desk.where, error)
        await self._release(broken=broken)

    async def _end_at_the_server(self, connection: Lent) -> None:
        """Let the server end a connection: it would not see that it was cut while it is at a statement of it.

        Until then the transaction stands, so that nothing which the handler still says is outside of it.
        """
        if self._desk.pooled:
            return  # what the proxy says is no process of the server's
        try:
            async with asyncio.timeout(CUT_LIMIT), self._desk.session() as other:
                await other.fetchval("SELECT pg_terminate_backend($1)", driver_of(connection).get_server_pid())
        except Exception as error:
            log.debug("%s: a connection was not ended at the server: %s", self._desk.where, error)

    async def _release(self, *, broken: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._desk.connections.give_back(connection, broken=broken)
        if self._entered:
            self._entered = False
            self._desk.leave(self._reserved)

    def _leave(self) -> None:
        self.usable = False
        if inside.get() is self:
            inside.set(self._outer)

    def _explained(self, error: BaseException) -> BaseException:
        if isinstance(error, TidingsError) or not isinstance(error, Exception):
            return error
        if isinstance(error, asyncpg.InterfaceError) and "another operation" in str(error):
            return MisuseError(f"a handler left a statement running when it returned. Await all of them. {REMEDY}")
        if isinstance(error, TimeoutError):
            return StoreUnavailable(f"{self._desk.where} does not answer")
        return (errors.own_error if self._ours else errors.world)(error, self._desk.where) or error


def current(desk: Desk) -> Transaction | None:
    """The transaction of this store that is open where this is called."""
    found = inside.get()
    return found if isinstance(found, Transaction) and found.usable and found._desk is desk else None
