"""Two stores behind `once`: one whose transaction holds keys, effects and events, and one that only leases keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tests.walk.world import DriverError, Odd, World
from tidings.delivery import Message
from tidings.errors import Contention, StoreUnavailable, WorldError
from tidings.ports import NEW, Claim, Claimed, Forgotten, Key, KeyKind, Publish, State

LEASE = 1.0
"""Seconds after which another may take a key over from a process that died."""


class Tx:
    """What a handler of the transactional store gets: its effects wait here for the commit."""

    def __init__(self) -> None:
        self.effects: list[str] = []
        self.events: list[Message] = []
        self.closed = False
        """It was closed under the hands of a handler that did not end."""


class OpenClaim:
    """The claim of a batch (`ports.Claim`)."""

    executor: Executor | None = None

    def __init__(self, keys: Sequence[Key], states: Sequence[Claimed], tx: Tx | None, world: World) -> None:
        self.keys, self.states, self.tx, self._world = keys, states, tx, world
        self.failed: set[int] = set()
        self._before = (0, 0)

    def resource(self, wanted: type) -> object:
        assert self.tx is not None
        self._before = len(self.tx.effects), len(self.tx.events)
        return self.tx

    def undo(self) -> bool:
        """Each second time it can: real stores can where nothing was sent yet."""
        self._world.undos += 1
        if self.tx is None or self._world.undos % 2 == 0:
            return False
        effects, events = self._before
        del self.tx.effects[effects:], self.tx.events[events:]
        return True

    def fail(self, index: int) -> None:
        self.failed.add(index)

    def cut(self) -> None:
        if self.tx is not None:
            self.tx.closed = True

    async def emit(self, messages: Sequence[Message]) -> bool:
        await asyncio.sleep(0)
        if self.tx is None:
            return False
        self.tx.events.extend(messages)
        return True

    def new(self) -> list[Key]:
        """What was applied: new, and not failed."""
        states = enumerate(zip(self.keys, self.states, strict=True))
        return [key for index, (key, claimed) in states if claimed.state is State.NEW and index not in self.failed]


class WalkStore:
    """What both have in common (`ports.Store`)."""

    transactional = False

    def __init__(self, world: World) -> None:
        self.world = world
        self.dead = False
        self._held: set[str] = set()
        """Keys that claims of this process hold."""

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to close."""

    def transaction(self, wanted: type | None = None) -> AbstractAsyncContextManager[object]:
        raise NotImplementedError

    async def emit(self, tx: object, messages: Sequence[Message]) -> None:
        raise NotImplementedError

    async def forget(self, position: str, kind: KeyKind, before: float, *, after: str = "", most: int) -> Forgotten:
        raise NotImplementedError

    async def relay(self, publish: Publish) -> None:
        raise NotImplementedError

    def translate(self, error: Exception) -> WorldError | None:
        return Contention("a lock") if isinstance(error, DriverError) else None

    def gives(self, wanted: type, *, sync: bool) -> bool:
        return False

    def claim(self, keys: Sequence[Key], *, resource: type | None, sync: bool) -> AbstractAsyncContextManager[Claim]:
        return self._claim(keys)

    @asynccontextmanager
    async def _claim(self, keys: Sequence[Key]) -> AsyncIterator[Claim]:
        await self._ask()
        claim = OpenClaim(keys, self._states(keys), Tx() if self.transactional else None, self.world)
        mine = {key.key for key, claimed in zip(keys, claim.states, strict=True) if claimed.state is State.NEW}
        self._hold(mine)
        try:
            await self._travel()
            yield claim
            await self._travel()
            self._commit(claim)
            await self._travel()
            if self.world.faults.take("commit-late"):
                raise StoreUnavailable("the connection broke after the commit")
        except BaseException:
            await self._travel()  # the roll-back
            raise
        finally:
            if not self.dead:
                self._let_go(mine)

    async def _ask(self) -> None:
        faults = self.world.faults
        await self._travel()
        if faults.take("claim"):
            raise StoreUnavailable("no connection")
        if faults.take("contention"):
            raise Contention("a deadlock")
        if faults.take("claim-odd"):
            raise Odd("claim")

    def _states(self, keys: Sequence[Key]) -> list[Claimed]:
        now = asyncio.get_running_loop().time()
        states: list[Claimed] = []
        first: dict[str, tuple[Claimed, str]] = {}
        for key in keys:
            if (event := self.world.keys.get(key.key)) is not None:
                claimed = Claimed(State.DONE, event, key.digest)
            elif key.key in first:
                twin, event = first[key.key]
                claimed = twin if twin.state is State.BUSY else Claimed(State.DONE, event, key.digest)
            elif self._is_held(key.key, now) or self.world.faults.take("busy"):
                claimed = Claimed(State.BUSY)
            else:
                claimed = NEW
            first.setdefault(key.key, (claimed, key.event_id))
            states.append(claimed)
        return states

    def _is_held(self, key: str, now: float) -> bool:
        return key in self._held

    def _hold(self, keys: set[str]) -> None:
        self._held |= keys

    def _let_go(self, keys: set[str]) -> None:
        self._held -= keys

    def _commit(self, claim: OpenClaim) -> None:
        faults = self.world.faults
        if faults.take("commit"):
            raise StoreUnavailable("the connection broke before the commit")
        if faults.take("commit-odd"):
            raise Odd("commit")
        self.world.keys.update((key.key, key.event_id) for key in claim.new())
        if claim.tx is not None:
            self.world.ledger.extend(claim.tx.effects)
            self.world.outbox.extend(claim.tx.events)

    async def _travel(self) -> None:
        await asyncio.sleep(0)
        if self.dead:
            raise asyncio.CancelledError


class TransactionalStore(WalkStore):
    """Keys, effects and caused events are durable together or not at all."""

    transactional = True

    def gives(self, wanted: type, *, sync: bool) -> bool:
        return wanted is Tx


class LeaseStore(WalkStore):
    """Keeps keys only; a process that dies leaves its leases behind, until they run out."""

    def _is_held(self, key: str, now: float) -> bool:
        return self.world.leases.get(key, 0.0) > now

    def _hold(self, keys: set[str]) -> None:
        until = asyncio.get_running_loop().time() + LEASE
        self.world.leases.update(dict.fromkeys(keys, until))

    def _let_go(self, keys: set[str]) -> None:
        for key in keys:
            self.world.leases.pop(key, None)
