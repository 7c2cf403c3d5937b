"""Watches the connection of an open claim: whoever borrowed it must not end its transaction.

A handler shares its transaction with the keys of its whole batch. Were it to commit, keys of events that no handler
has seen yet would be durable: those events were lost. So a commit is refused before it happens. A rollback loses
nothing by itself and is let pass (SQLAlchemy does one on its own when a flush fails), but nothing runs or commits
after it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext

from tidings import points
from tidings.errors import MisuseError, StoreUnavailable, TidingsError, TransactionEnded, WorldError
from tidings.stores._database import Database

OPTION: Final = "tidings_guard"

# ROLLBACK TO goes back to a savepoint, which is anybody's right. What stands behind a comment is seen, too.
ENDS: Final = re.compile(
    r"(?:\s|--[^\n]*\n|#[^\n]*\n|/\*.*?\*/)*"
    r"(COMMIT|END|BEGIN(?!\s+NOT\s+ATOMIC)|ABORT|START\s+TRANSACTION|PREPARE\s+TRANSACTION|XA"
    r"|SET\s+(?:SESSION\s+|@@)?AUTOCOMMIT|ROLLBACK(?!\s+((TRANSACTION|WORK)\s+)?TO\b))\b",
    re.IGNORECASE | re.DOTALL,
)

REMEDY: Final = "Return from the handler to commit, raise to roll back, and use begin_nested() to undo a part"


ENDED: Final = (
    "the transaction that a handler's connection is part of has ended: on the driver's own connection, in which case"
    " what was written until then may be committed, or by the database itself, which commits before a statement that"
    f" changes tables (MariaDB), and rolls back when it runs out of room or a trigger says so. {REMEDY}"
)


class Guard:
    """What happened on one connection while it was lent."""

    __slots__ = ("_database", "_known", "active", "cut_off", "driver", "trouble", "unsure")

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: WorldError | None = None
        """What the last error said of the database, if anything."""
        self.active = False
        self.cut_off = False
        """A statement was cancelled; the connection is good for a rollback and no more."""
        self.unsure = False
        """Whether the transaction stands is not known without asking."""
        self.trouble: TidingsError | None = None
        self.driver: Any = None

    def lend(self, connection: sa.Connection) -> None:
        """Know the connection, before anything is done with it."""
        self.driver = self._database.driver_of(connection)

    def start(self) -> None:
        """Watch from here on: the transaction is open."""
        self.active = True

    def check(self, connection: sa.Connection | None = None) -> None:
        """Raise if the transaction is not whole any more; with the connection, the database is asked where needed.

        Raises:
            TransactionEnded: somebody else ended it.
            MisuseError: an error was passed over that undoes all, or it was ended, which cannot be told apart.
            Contention, StoreUnavailable: the database did, and whose statement it was passed over the error.
        """
        if self.trouble is None and self.active:
            if not self.in_transaction:
                self.trouble = self._known or self._lost() or TransactionEnded(ENDED)
            elif self.unsure and connection is not None:
                self.unsure = False
                if not self._asked(connection):
                    # Perhaps one event's doing, so one event's end: its handler goes on.
                    self.trouble = self._known or MisuseError(
                        "the transaction that a handler's connection is part of has ended, or its handler passed over"
                        " an error after which the database commits nothing. A statement that creates or changes a"
                        f" table may commit by itself, too. {REMEDY}"
                    )
        if self.trouble is not None:
            raise self.trouble

    def _asked(self, connection: sa.Connection) -> bool:
        try:
            return self._database.whole(connection)
        except Exception as error:
            raise self._database.world(error) or error from error

    def _lost(self) -> WorldError | None:
        """That the connection is gone, which is nobody's misuse: the server rolls back what it was in."""
        if self.driver is None or not self._database.lost(self.driver):
            return None
        return StoreUnavailable(f"{self._database}: the connection was lost in the middle of a transaction")

    def failed(self, error: BaseException) -> None:
        """A statement raised."""
        self.unsure = True
        known = self._database.world(error)
        self._known = known or self._known
        if known is not None and self.trouble is None and self._database.ends_all(error):
            self.trouble = known

    def misled(self, error: BaseException) -> bool:
        """Whether to connect anew may lead to a server that can be written."""
        return self._database.misled(error)

    def interrupt(self) -> None:
        """Stop a statement that runs now, in whatever thread it does."""
        if self.driver is not None:
            self._database.interrupt(self.driver)

    def asks_after(self, statement: str) -> None:
        if self._database.unsure_after(statement):
            self.unsure = True

    @property
    def asks_before(self) -> bool:
        """Whether to ask before each statement, which where errors abort would forbid to go back to a savepoint."""
        return not self._database.aborts

    @property
    def in_transaction(self) -> bool:
        return self.driver is not None and self._database.in_transaction(self.driver)


def guard_of(connection: sa.Connection) -> Guard | None:
    guard: Guard | None = connection.get_execution_options().get(OPTION)
    return guard if guard is not None and guard.active else None


def watch(engine: sa.Engine) -> Callable[[], None]:
    """Install the hooks; they do nothing on connections that no guard is on. Returns what takes them out again."""

    def commit(connection: sa.Connection) -> None:
        if guard := guard_of(connection):
            guard.trouble = TransactionEnded(f"a handler may not commit the transaction it is part of. {REMEDY}")
            raise guard.trouble

    def rollback(connection: sa.Connection) -> None:
        guard = guard_of(connection)
        if guard and guard.trouble is None:
            # SQLAlchemy's own, while it handles an error of a flush, is the doing of one event: its handler goes on.
            kind = TransactionEnded if sys.exc_info()[0] is None else MisuseError
            guard.trouble = kind(
                "a handler rolled back the transaction it is part of, or passed over an error of its session that did."
                f" {REMEDY}"
            )

    def begin(connection: sa.Connection) -> None:
        if guard := guard_of(connection):
            guard.check()

    def execute(connection: sa.Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if guard := guard_of(connection):
            guard.check(connection if guard.asks_before else None)
            if ENDS.match(statement):
                guard.trouble = TransactionEnded(f"a handler may not say {statement.strip()[:40]!r}. {REMEDY}")
                raise guard.trouble
            guard.asks_after(statement)
            if points.reached is not None:
                points.reached(points.BEFORE_STATEMENT)

    def executed(connection: sa.Connection, *rest: Any) -> None:
        if points.reached is not None and guard_of(connection):
            points.reached(points.AFTER_STATEMENT)

    event.listen(engine, "commit", commit)
    event.listen(engine, "rollback", rollback)
    # First of all: a new transaction must not even begin on a connection whose first one was ended.
    event.listen(engine, "begin", begin, insert=True)
    event.listen(engine, "before_cursor_execute", execute)
    event.listen(engine, "after_cursor_execute", executed)

    def error(context: ExceptionContext) -> None:  # one for each store: it is taken out by what it is
        _failed(context)

    # SQLAlchemy keeps this one with the dialect, which a live engine shares with its owner's other connections.
    event.listen(engine.dialect, "handle_error", error)
    return lambda: event.remove(engine.dialect, "handle_error", error)


def _failed(context: ExceptionContext) -> None:
    """Keep a connection whose statement was cancelled, for a rollback of our own.

    SQLAlchemy would close it, which waits for the statement and, while a cursor lives on in some traceback, leaves
    the transaction open and the file locked.
    """
    if context.connection is None:
        return
    ours: Guard | None = context.connection.get_execution_options().get(OPTION)
    if ours is not None and not ours.active and ours.misled(context.original_exception):
        # Those in the pool lead to the same server. A borrower's connection is left alone: the next claim will see.
        context.is_disconnect = True
    guard = guard_of(context.connection)
    if guard is not None and isinstance(context.original_exception, Exception):
        guard.failed(context.original_exception)
    elif guard is not None:
        guard.cut_off = True
        context.is_disconnect = False
        guard.interrupt()
