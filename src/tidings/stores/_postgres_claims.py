"""The claim of a batch on PostgreSQL: its keys, its effects and the events it causes, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from types import TracebackType

from tidings.delivery import Message
from tidings.errors import StoreUnavailable, TidingsError
from tidings.ports import NEW, Claimed, Key, State
from tidings.stores import _postgres_sql as sql
from tidings.stores._keys import fit, stored_key
from tidings.stores._patience import POSTGRES, Patience, overstayed
from tidings.stores._postgres_connections import Lent, inside
from tidings.stores._postgres_desk import Desk
from tidings.stores._postgres_transactions import Transaction


class PostgresClaim:
    """Keys, inserted when the transaction begins; whatever happens before the commit takes them back."""

    executor: Executor | None = None

    def __init__(self, desk: Desk, keys: Sequence[Key]) -> None:
        self._desk = desk
        self._keys = keys
        self._stored = [(key.position, stored_key(key.key, utf8=True)) for key in keys]
        self._given_back: set[int] = set()
        self._transaction = Transaction(desk, reserved=True, together=len(keys) > 1, before_commit=self._give_back)
        self.resource = self._transaction.resource
        self.states: Sequence[Claimed] = ()

    async def __aenter__(self) -> PostgresClaim:
        if self._keys:
            self.states = await self._transaction.open(self._claim)
        else:
            await self._transaction.open(self._transaction.keyless)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if error is not None:
            culprit = self._transaction.unattributed(error)
            await self._transaction.abandon()
            if (culprit := await self._overstayed(error) or culprit) is not None:
                raise culprit
            return
        try:
            await self._transaction.commit()
        except TidingsError as trouble:
            if not (self._transaction.doubtful and await self._took_effect()):
                raise await self._overstayed(trouble) or trouble from trouble.__cause__

    def fail(self, index: int) -> None:
        if self.states[index].state is State.NEW:
            self._given_back.add(index)

    def undo(self) -> bool:
        """See `claims.Undoes`."""
        return self._transaction.undo()

    def cut(self) -> None:
        self._transaction.is_cut = True

    async def emit(self, messages: Sequence[Message]) -> bool:
        self._transaction.emit(messages)
        return True

    async def flush(self) -> None:
        """See that the transaction is whole, so that an error comes while its handler is still to blame.

        Raises:
            MisuseError: the handler ended the transaction itself.
        """
        self._transaction.check()

    async def _claim(self, connection: Lent) -> Sequence[Claimed]:
        """One insert for the batch; what it did not insert was applied before."""
        first: dict[sql.Stored, Key] = {}
        for stored, key in zip(self._stored, self._keys, strict=True):
            first.setdefault(stored, key)
        rows = [(stored, first[stored]) for stored in sorted(first)]  # trap 130: two batches, one order of locks
        new = await sql.insert_keys(connection, self._transaction.settings, rows)
        if len(new) == len(self._stored):
            return (NEW,) * len(new)
        known = await sql.find_keys(connection, first.keys() - new) if len(new) < len(first) else {}
        states: list[Claimed] = []
        for stored, key in zip(self._stored, self._keys, strict=True):
            if stored in known:
                event_id, digest = known[stored]
                states.append(Claimed(State.DONE, key.event_id if event_id == fit(key.event_id) else event_id, digest))
            elif stored in new:
                new.discard(stored)
                states.append(NEW)
            else:  # an equal key of this batch
                states.append(Claimed(State.DONE, first[stored].event_id, first[stored].digest))
        return states

    async def _give_back(self, connection: Lent) -> None:
        if self._given_back:
            await sql.delete_keys(connection, [self._stored[index] for index in sorted(self._given_back)])

    async def _overstayed(self, error: BaseException) -> TimeoutError | None:
        async def ask() -> Patience | None:
            async with self._desk.session() as connection:
                found = await connection.fetchrow(POSTGRES)
            return None if found is None else (found[0], found[1])

        return await overstayed(error, self._desk.where, self._transaction.lasted, ask)

    async def _took_effect(self) -> bool:
        """Look up what became of a commit whose answer was lost: its keys are there, or they are not."""
        wanted = {
            stored: fit(key.event_id)
            for index, (stored, key, claimed) in enumerate(zip(self._stored, self._keys, self.states, strict=True))
            if claimed.state is State.NEW and index not in self._given_back
        }
        if not wanted:
            return bool(self._transaction.xid and await self._transaction.took_effect())
        found = await self._transaction.look_up(lambda connection: sql.find_keys(connection, wanted))
        if found is None:
            return False  # not known, so not done: it comes again, and its keys will tell
        return all(key in found and found[key][0] == event_id for key, event_id in wanted.items())


def lost(error: Exception, where: str) -> StoreUnavailable | None:
    """Whether whatever a handler raised came of its connection, which is gone."""
    found = inside.get()
    if isinstance(found, Transaction) and found.lost:
        return StoreUnavailable(f"{where}: the connection was lost ({type(error).__name__})")
    return None
