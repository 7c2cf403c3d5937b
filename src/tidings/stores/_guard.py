"""Watches the connection of an open claim: whoever borrowed it must not end its transaction.

A handler shares its transaction with the keys of its whole batch. Were it to commit, keys of events that no handler
has seen yet would be durable: those events were lost. So a commit is refused before it happens. A rollback loses
nothing by itself and is let pass (SQLAlchemy does one on its own when a flush fails), but nothing runs or commits
after it.
"""

from __future__ import annotations

import re
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event

from tidings.errors import MisuseError, TidingsError
from tidings.stores._sqlite import Driver, driver_of

OPTION: Final = "tidings_guard"

# ROLLBACK TO goes back to a savepoint, which is anybody's right.
ENDS: Final = re.compile(r"\s*(COMMIT|END|BEGIN|ROLLBACK(?!\s+(TRANSACTION\s+)?TO\b))\b", re.IGNORECASE)

REMEDY: Final = "Return from the handler to commit, raise to roll back, and use begin_nested() to undo a part"


class Guard:
    """What happened on one connection while it was lent."""

    __slots__ = ("_driver", "active", "trouble")

    def __init__(self) -> None:
        self.active = False
        self.trouble: TidingsError | None = None
        self._driver: Driver | None = None

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

    @property
    def in_transaction(self) -> bool:
        try:
            return self._driver is not None and self._driver.in_transaction
        except ValueError:  # aiosqlite's word for a closed connection
            return False


def guard_of(connection: sa.Connection) -> Guard | None:
    guard: Guard | None = connection.get_execution_options().get(OPTION)
    return guard if guard is not None and guard.active else None


def watch(engine: sa.Engine) -> None:
    """Install the hooks; they do nothing on connections that no guard is on."""

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

    event.listen(engine, "commit", commit)
    event.listen(engine, "rollback", rollback)
    # First of all: a new transaction must not even begin on a connection whose first one was ended.
    event.listen(engine, "begin", begin, insert=True)
    event.listen(engine, "before_cursor_execute", execute)
