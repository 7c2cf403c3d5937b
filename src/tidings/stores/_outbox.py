"""What the relay needs of a SQL database: each step one short transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import sqlalchemy as sa

from tidings.outbox import rows
from tidings.outbox.row import Refused, Row

T = TypeVar("T")


class Run(Protocol):
    """Does some work with a connection: a reader, or one that commits."""

    async def __call__(self, work: Callable[[sa.Connection], T]) -> T: ...


class SqlOutbox:
    """The rows of one database, for its relay."""

    def __init__(self, read: Run, write: Run) -> None:
        self._read = read
        self._write = write

    async def waits(self) -> bool:
        return await self._read(lambda connection: rows.waits(connection, time.time()))

    async def ready(self, most: int, most_bytes: int) -> list[Row]:
        return await self._read(lambda connection: rows.ready(connection, most, most_bytes, time.time()))

    async def lease(self, owner: str, seconds: float) -> bool:
        return await self._write(lambda connection: rows.take_lease(connection, owner, seconds))

    async def give_back(self, owner: str) -> None:
        await self._write(lambda connection: rows.give_lease_back(connection, owner))

    async def settle(self, stored: Sequence[int], refused: Sequence[Refused], owner: str, seconds: float) -> bool:
        def settle(connection: sa.Connection) -> bool:
            # What is stored is stored, whoever holds the lease by now.
            rows.remove(connection, stored)
            rows.refuse(connection, refused)
            return rows.take_lease(connection, owner, seconds)

        return await self._write(settle)
