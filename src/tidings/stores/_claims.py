"""The claim of a batch: its keys, its effects and the events it causes, in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from types import TracebackType

import sqlalchemy as sa

from tidings.delivery import Message
from tidings.errors import TidingsError, WorldError
from tidings.ports import NEW, Claimed, Key, State
from tidings.stores._database import Row
from tidings.stores._desk import Desk
from tidings.stores._keys import fit, stored_key
from tidings.stores._links import Link
from tidings.stores._patience import overstayed
from tidings.stores._transactions import Transaction

LOOKS = 3
"""How often the outcome of a commit is asked for, until the database says."""

LOOK_AGAIN = 0.1


class SqlClaim:
    """Keys, inserted when the transaction begins; whatever happens before the commit takes them back."""

    def __init__(self, desk: Desk, link: Link, keys: Sequence[Key]) -> None:
        self._desk = desk
        self._link = link
        self._keys = keys
        self._stored = [(key.position, stored_key(key.key, utf8=desk.database.utf8)) for key in keys]
        self._given_back: set[int] = set()
        self._transaction = Transaction(desk, link, self._give_back)
        self.states: Sequence[Claimed] = ()

    async def __aenter__(self) -> SqlClaim:
        self.states = await self._transaction.open(self._claim)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if error is not None:
            await self._transaction.abandon()
            if (failure := await self._overstayed(error)) is not None:
                raise failure
            return
        try:
            await self._transaction.commit()
        except TidingsError as trouble:
            if not (self._transaction.doubtful and await self._took_effect()):
                raise await self._overstayed(trouble) or trouble from trouble.__cause__

    @property
    def executor(self) -> Executor | None:
        return self._link.executor

    def resource(self, wanted: type) -> object:
        return self._transaction.resource(wanted)

    def fail(self, index: int) -> None:
        if self.states[index].state is State.NEW:
            self._given_back.add(index)

    def cut(self) -> None:
        self._transaction.is_cut = True

    async def emit(self, messages: Sequence[Message]) -> bool:
        self._transaction.emit(messages)
        return True

    async def flush(self) -> None:
        """Send what a handler's session holds back, so that its errors come while its handler is still to blame.

        Raises:
            MisuseError: the handler ended the transaction itself.
        """
        await self._transaction.flush()

    def _claim(self, connection: sa.Connection) -> Sequence[Claimed]:
        """One insert for the batch; what it did not insert was applied before."""
        first: dict[tuple[str, str], Key] = {}
        for stored, key in zip(self._stored, self._keys, strict=True):
            first.setdefault(stored, key)
        rows: list[Row] = [(*one, self._id(first[one]), first[one].digest) for one in sorted(first)]
        new, known = self._desk.database.claim_keys(connection, rows) if rows else (set(), {})
        states: list[Claimed] = []
        for stored, key in zip(self._stored, self._keys, strict=True):
            if stored in known:
                event_id, digest = known[stored]
                states.append(Claimed(State.DONE, key.event_id if event_id == self._id(key) else event_id, digest))
            elif stored in new:
                new.discard(stored)
                states.append(NEW)
            else:  # an equal key of this batch
                states.append(Claimed(State.DONE, first[stored].event_id, first[stored].digest))
        return states

    def _id(self, key: Key) -> str:
        return fit(key.event_id) if self._desk.database.utf8 else key.event_id

    def _give_back(self, connection: sa.Connection) -> None:
        if self._given_back:
            self._desk.database.delete_keys(connection, [self._stored[index] for index in sorted(self._given_back)])

    async def _overstayed(self, error: BaseException) -> TimeoutError | None:
        desk = self._desk
        return await overstayed(
            error, str(desk.database), self._transaction.lasted, lambda: desk.read(desk.database.patience)
        )

    async def _took_effect(self) -> bool:
        """Look up what became of a commit that failed in an unknown way: its keys are there, or they are not."""
        wanted = {
            stored: self._id(key)
            for index, (stored, key, claimed) in enumerate(zip(self._stored, self._keys, self.states, strict=True))
            if claimed.state is State.NEW and index not in self._given_back
        }
        for _ in range(LOOKS):
            try:
                found = await self._desk.read(lambda connection: self._desk.database.find_keys(connection, wanted))
            except WorldError:  # what cut this connection off may have cut off those in the pool, too
                await asyncio.sleep(LOOK_AGAIN)
            else:
                return bool(wanted) and all(key in found and found[key][0] == id for key, id in wanted.items())
        return False  # not known, so not done: it comes again, and its keys will tell
