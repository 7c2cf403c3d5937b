"""One write transaction: opened, lent, and ended in a known state whatever happens in between."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import TypeVar

import sqlalchemy as sa

from tidings import points
from tidings.delivery import Message
from tidings.errors import MisuseError, StoreUnavailable, TidingsError
from tidings.outbox import rows, texts
from tidings.outbox.direct import Due, Entry
from tidings.outbox.waiting import to_end
from tidings.stores._database import own_error, used_up
from tidings.stores._desk import Desk
from tidings.stores._guard import OPTION, Guard
from tidings.stores._links import Link

log = logging.getLogger("tidings.store")

T = TypeVar("T")

ROLLBACK_LIMIT = 5.0
"""How long an ending transaction waits for its thread, in seconds, before it goes on without it."""

TAKEN_AWAY = (
    "this connection was taken away from a handler that did not end, and its transaction was rolled back. Let what the"
    " handler waits for have a time limit of its own"
)

STOP_AFTER = 0.05
"""How long a rollback waits for a statement that still runs, in seconds, before the server is asked to stop it."""

_inside: ContextVar[Transaction | None] = ContextVar("tidings_transaction", default=None)


class Transaction:
    """A transaction of Tidings' own, with the messages that leave when it commits.

    `open`, then `commit` or `abandon`, each once. After any exception out of `open` or `commit` it is over: rolled
    back, its connection back in the pool or thrown away.
    """

    def __init__(self, desk: Desk, link: Link, before_commit: Callable[[sa.Connection], None] | None = None) -> None:
        self._desk = desk
        self._link = link
        self._before_commit = before_commit
        self._guard = Guard(desk.database)
        self._began = 0.0
        self.lasted: float | None = None
        """Seconds until its connection was found to be lost."""
        self._messages: list[Message] = []
        self._entries: list[Entry] = []
        """Of the messages, those that this process publishes itself."""
        self._due = Due()
        """What this transaction writes down for the direct way."""
        self._outer: Transaction | None = None
        self._ending: asyncio.Task[None] | None = None
        self._lent = False
        """What fails now is the borrower's statement, not one of ours."""
        self.announced = True
        """Its commit is one of the `points`: it carries somebody's effects, not the relay's own notes."""
        self.usable = False
        self.doubtful = False
        """The commit failed, and whether it took effect is not known."""
        self._unanswered = False
        """A step of ours was given up; the server may still be at it."""
        self.is_cut = False
        """A handler runs on with its connection, which is to be taken away from it."""
        self._has_turn = False

    async def open(self, first: Callable[[sa.Connection], T]) -> T:
        """Begin, and do the first step in the same round."""
        outer = _inside.get()
        if current(self._desk) is not None:
            raise MisuseError(
                f"a transaction of {self._desk.database} is open here already, and a second one would wait for it for"
                " ever. Use the connection that this handler or block was given"
            )
        await self._desk.take_turn()
        self._has_turn = True
        try:
            result = await to_end(self._begin(first))
        except BaseException as error:
            await self.abandon()
            raise self._explained(error) from error
        self._outer = outer
        _inside.set(self)
        return result

    async def _begin(self, first: Callable[[sa.Connection], T]) -> T:
        def begin(connection: sa.Connection) -> T:
            self._guard.lend(connection)
            self._began = time.monotonic()
            connection.begin()
            self._desk.database.lock(connection)
            result = first(connection)
            self._guard.start()
            return result

        self._desk.database.check()
        try:
            result = await self._connected(begin)
        except sa.exc.DBAPIError as error:
            if not error.connection_invalidated:
                raise
            # It had been idle in the pool, and the server closed it or was started anew. Nothing was done over it.
            self._guard.driver = None
            await self._link.close(broken=True)
            result = await self._connected(begin)
        self.usable = self._lent = True
        return result

    async def _connected(self, begin: Callable[[sa.Connection], T]) -> T:
        try:
            await self._answered(self._link.connect(**{OPTION: self._guard}))
        except StoreUnavailable as error:
            if self._link.executor is None and (trouble := used_up(self._desk.database, self._desk.engine)):
                raise trouble from error
            raise
        return await self._answered(self._link.run(begin))

    def resource(self, wanted: type) -> object:
        """The connection or session on it, as long as the transaction is open.

        Raises:
            MisuseError: it is over.
        """
        if not self.usable:
            raise MisuseError("this transaction is over. Use its connection only inside the handler or block it is for")
        return self._link.resource(wanted)

    def emit(self, messages: Sequence[Message]) -> None:
        """Keep messages, to be written in one statement before the commit.

        Raises:
            InvalidEvent: one has a text that no database can keep.
            EventTooLarge: the database takes no row of this size.
        """
        if not self.usable:
            raise MisuseError("this transaction is over: an event cannot join it any more")
        texts.check(messages)
        self._desk.database.fits(messages)
        self._messages.extend(messages)

    def lent(self, tx: object) -> bool:
        """Whether this is the connection or session that this transaction lends."""
        return self.usable and self._link.lent(tx)

    async def flush(self) -> None:
        """Send what a session holds back, and see that the transaction is whole."""
        session = self._link.session
        if session is not None and (session.new or session.dirty or session.deleted):
            await self._link.run(lambda connection: session.flush())
        if self._guard.unsure:
            await self._answered(self._link.run(self._guard.check))
        self._guard.check()

    async def commit(self) -> None:
        """Flush, write the messages, commit. However often cancelled, the commit is waited for.

        Raises:
            Contention, StoreUnavailable: it did not commit; with `doubtful` set, it may have.
            MisuseError: somebody else ended the transaction.
        """
        self._leave()
        try:
            await to_end(self._finished())
        except BaseException as error:
            await self.abandon()
            raise self._explained(error) from error
        self._desk.direct.written_down(self._due)
        self._desk.direct.committed(self._entries)
        if len(self._entries) < len(self._messages):
            self._desk.wake.now()
        await to_end(self._release(broken=False))

    async def _finished(self) -> None:
        """Finish, and give up a server that does not answer in time: a COMMIT by going away, where it may not be ended.

        Raises:
            StoreUnavailable: it did not answer.
        """
        database = self._desk.database
        finishing = asyncio.ensure_future(self._link.run(self._finish))
        await asyncio.wait({finishing}, timeout=database.answers_within)
        if not finishing.done():
            self._unanswered = True
            if self._waits_alone:
                database.cut(self._guard.driver)
            else:
                finishing.cancel()
            await asyncio.wait({finishing}, timeout=ROLLBACK_LIMIT)
            if not finishing.done() or finishing.cancelled() or finishing.exception() is not None:
                raise StoreUnavailable(f"{database} did not answer in time ({database.answers_within:g} s)")
        await finishing

    @property
    def _waits_alone(self) -> bool:
        """Whether what the server is at is a COMMIT that may not be ended."""
        return self.doubtful and self._desk.database.commits_by_cancel

    def _finish(self, connection: sa.Connection) -> None:
        guard, session, database = self._guard, self._link.session, self._desk.database
        guard.check(connection)
        if session is not None:
            session.flush()
            guard.check(connection)
        self._lent = guard.active = False
        if self._before_commit is not None:
            self._before_commit(connection)
        if database.one_writer:  # elsewhere two that take out the same rows could wait for each other
            self._due = self._desk.direct.take_due()
        rows.remove(connection, self._due.stored)
        rows.let_go(connection, self._due.left)
        if self._messages:
            self._entries = rows.insert_held(connection, self._messages, self._desk.direct)
        database.check()
        if self.announced:
            points.at(points.BEFORE_COMMIT)
        self.doubtful = self._lent = True  # a deferred constraint of the borrower's fails only now
        try:
            if session is not None:
                session.commit()
            connection.commit()
        except Exception:
            self.doubtful = connection.invalidated or not guard.in_transaction
            raise
        if not database.reusable(connection):  # nothing that SQLAlchemy thinks matters more than this
            raise MisuseError(f"{database} is still inside the transaction that was committed")
        self.doubtful = False
        if self.announced:
            points.at(points.AFTER_COMMIT)

    async def abandon(self) -> None:
        """Roll back and give the connection back, in a time with a limit.

        A sync handler that still runs keeps its thread, and with it the connection; nothing can stop it. Then its
        rollback follows when it ends, and until then the database stays locked for writing.
        """
        self._leave()
        if self._ending is None:
            if self._guard.driver is not None and self._desk.database.lost(self._guard.driver):
                self.lasted = time.monotonic() - self._began
            self._desk.direct.give_back(self._due)
            self._desk.direct.not_committed(self._entries)
            self._ending = self._desk.finish_later(self._roll_back())
        await to_end(_wait(self._ending, ROLLBACK_LIMIT))
        if not self._ending.done():
            log.warning(
                "%s: a transaction was given up, but its thread is still busy; it is rolled back when the thread is"
                " free, and what it locked is locked until then",
                self._desk.database,
            )

    async def _roll_back(self) -> None:
        # What runs there still must not keep the others waiting; its result is not wanted any more.
        self._guard.interrupt()
        database, guard = self._desk.database, self._guard
        if guard.driver is None:
            return await self._release(broken=True)

        def roll_back(connection: sa.Connection) -> bool:
            guard.active = self.is_cut  # what the handler still says is to be refused
            if connection.invalidated or (guard.cut_off and not database.survives_cancel):
                return True
            database.roll_back(connection)
            # Whoever ended the transaction may have left more behind, such as tables that are locked.
            return (
                self.is_cut
                or guard.cut_off
                or isinstance(guard.trouble, MisuseError)
                or not database.reusable(connection)
            )

        if self.is_cut:
            guard.trouble = guard.trouble or MisuseError(TAKEN_AWAY)
            in_thread = self._link.executor is not None
            await database.take_away(guard.driver, self._desk.read, in_thread=in_thread)
            if in_thread:
                self._give_turn()
                return self._tidy_up_later(self._link.run(roll_back))
        broken = True
        rolling = asyncio.ensure_future(self._link.run(roll_back))
        stopping = await self._stop_what_runs(rolling)
        try:
            broken = await rolling
        except Exception as error:
            # Whatever it is: a connection whose rollback fails is thrown away, and the database rolls back by itself.
            log.debug("%s: the rollback failed: %s", database, error)
        await self._release(broken=broken)
        if broken and not stopping and not self._waits_alone and (guard.cut_off or self._unanswered):
            self._stop()  # nobody waits for that statement, but its locks would

    def _tidy_up_later(self, rolling: Awaitable[bool]) -> None:
        """Its thread does not come back now; what is left to do there follows, should it ever do so."""

        async def tidy_up() -> None:
            try:
                await rolling
            except Exception as error:
                log.debug("%s: its connection had been taken away: %s", self._desk.database, error)
            await self._release(broken=True)

        _ = self._desk.finish_later(tidy_up())

    async def _stop_what_runs(self, rolling: asyncio.Future[bool]) -> bool:
        """See that a rollback is not held up by a statement before it; whether the server was asked to stop one."""
        if (await asyncio.wait({rolling}, timeout=STOP_AFTER))[0]:
            return False
        if self._waits_alone:
            self._desk.database.cut(self._guard.driver)
            return True
        self._stop()
        # A server that gave us no answer will not give one to the rollback.
        limit = ROLLBACK_LIMIT / 10 if self._unanswered else ROLLBACK_LIMIT
        if not (await asyncio.wait({rolling}, timeout=limit))[0]:
            self._desk.database.cut(self._guard.driver)
        return True

    def _stop(self) -> None:
        _ = self._desk.finish_later(self._desk.database.stop(self._guard.driver))

    async def _answered(self, step: Awaitable[T]) -> T:
        """A step of ours, with a limit where a server might never answer.

        Raises:
            StoreUnavailable: it did not.
        """
        limit = self._desk.database.answers_within
        if limit is None:
            return await step
        try:
            async with asyncio.timeout(limit):
                return await step
        except TimeoutError as error:
            self._unanswered = True
            raise StoreUnavailable(f"{self._desk.database} did not answer in time ({limit:g} s)") from error

    async def _release(self, *, broken: bool) -> None:
        try:
            await self._link.close(broken=broken)
        except Exception as error:
            log.warning("%s: a connection could not be closed: %s", self._desk.database, error)
        finally:
            self._give_turn()

    def _give_turn(self) -> None:
        if self._has_turn:
            self._has_turn = False
            self._desk.give_turn()

    def _leave(self) -> None:
        self.usable = False
        if _inside.get() is self:
            _inside.set(self._outer)

    def _explained(self, error: BaseException) -> BaseException:
        if isinstance(error, TidingsError) or not isinstance(error, Exception):
            return error
        database = self._desk.database
        # A commit that was cut off is the database's; a constraint that fails there is the borrower's.
        cut_off = self.doubtful and isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError))
        return (database.world(error) if self._lent and not cut_off else own_error(database, error)) or error


def current(desk: Desk) -> Transaction | None:
    """The transaction of this store that is open where this is called."""
    found = _inside.get()
    return found if found is not None and found.usable and found._desk is desk else None


async def _wait(task: asyncio.Task[None], limit: float) -> None:
    await asyncio.wait({task}, timeout=limit)
