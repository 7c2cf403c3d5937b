"""Watches the connection of an open claim: whoever borrowed it must not end its transaction.

A handler shares its transaction with the keys of its whole batch. Were it to commit, keys of events that no handler
has seen yet would be durable: those events were lost. So a commit is refused before it happens. A rollback loses
nothing by itself and is let pass (SQLAlchemy does one on its own when a flush fails), but nothing runs or commits
after it.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext

from tidings import points
from tidings.errors import MisuseError, TidingsError
from tidings.stores._sqlite import driver_of

OPTION: Final = "tidings_guard"

# ROLLBACK TO goes back to a savepoint, which is anybody's right.
ENDS: Final = re.compile(r"\s*(COMMIT|END|BEGIN|ROLLBACK(?!\s+(TRANSACTION\s+)?TO\b))\b", re.IGNORECASE)

REMEDY: Final = "Return from the handler to commit, raise to roll back, and use begin_nested() to undo a part"


class Guard:
    """What happened on one connection while it was lent."""

    __slots__ = ("_driver", "active", "cut_off", "trouble")

    def __init__(self) -> None:
        self.active = False
        self.cut_off = False
        """A statement was cancelled; the connection is good for a rollback and no more."""
        self.trouble: TidingsError | None = None
        self._driver: sqlite3.Connection | None = None

    def start(self, connection: sa.Connection) -> None:
        """Watch from here on: the transaction is open."""
        self._driver = driver_of(connection)
        self.active = True

    def check(self) -> None:
        """Raise if the transaction is not whole any more.

        Raises:
            MisuseError: somebody else ended it.
        """
        if self.trouble is None and self.active and not self.in_transaction:
            self.trouble = MisuseError(
                "the transaction that a handler's connection is part of has ended: on the driver's own connection, in"
                f" which case what was written until then may be committed, or by the database itself, which rolls back"
                f" when it runs out of room or a trigger says so. {REMEDY}"
            )
        if self.trouble is not None:
            raise self.trouble

    def interrupt(self) -> None:
        """Stop a statement that runs now, in whatever thread it does."""
        try:
            if self._driver is not None:
                self._driver.interrupt()
        except sqlite3.ProgrammingError:
            pass  # it was closed meanwhile

    @property
    def in_transaction(self) -> bool:
        try:
            return self._driver is not None and self._driver.in_transaction
        except sqlite3.ProgrammingError:  # it is closed
            return False


def guard_of(connection: sa.Connection) -> Guard | None:
    guard: Guard | None = connection.get_execution_options().get(OPTION)
    return guard if guard is not None and guard.active else None


def watch(engine: sa.Engine) -> Callable[[], None]:
    """Install the hooks; they do nothing on connections that no guard is on. Returns what takes them out again."""

    def commit(connection: sa.Connection) -> None:
        if guard := guard_of(connection):
            guard.trouble = MisuseError(f"a handler may not commit the transaction it is part of. {REMEDY}")
            raise guard.trouble

    def rollback(connection: sa.Connection) -> None:
        guard = guard_of(connection)
        if guard and guard.trouble is None:
            guard.trouble = MisuseError(
                "a handler rolled back the transaction it is part of, or passed over an error of its session that did."
                f" {REMEDY}"
            )

    def begin(connection: sa.Connection) -> None:
        if guard := guard_of(connection):
            guard.check()

    def execute(connection: sa.Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if guard := guard_of(connection):
            guard.check()
            if ENDS.match(statement):
                guard.trouble = MisuseError(f"a handler may not say {statement.strip()[:40]!r}. {REMEDY}")
                raise guard.trouble
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

    def error(context: ExceptionContext) -> None:
        """Keep a connection whose statement was cancelled, for a rollback of our own.

        SQLAlchemy would close it, which waits for the statement and, while a cursor lives on in some traceback, leaves
        the transaction open and the file locked.
        """
        guard = guard_of(context.connection) if context.connection is not None else None
        if guard is not None and not isinstance(context.original_exception, Exception):
            guard.cut_off = True
            context.is_disconnect = False
            guard.interrupt()

    # SQLAlchemy keeps this one with the dialect, which a live engine shares with its owner's other connections.
    event.listen(engine.dialect, "handle_error", error)
    return lambda: event.remove(engine.dialect, "handle_error", error)
