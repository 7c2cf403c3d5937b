"""A store in memory, for tests: it forgets everything when its process ends, and has no transactions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec

from tidings import points
from tidings.delivery import Message
from tidings.errors import Contention, MisuseError, WorldError
from tidings.ports import NEW, Claimed, Forgotten, Key, KeyKind, Publish, State

Name = tuple[str, str]
"""Position and key."""


class _Lease(msgspec.Struct, eq=False):
    """A key in somebody's hands."""

    until: float


class MemoryStore:
    """Remembers in this process which keys were applied.

    It promises what a store with leases can: no two claims hold a key at a time, and a failure gives the key back. It
    cannot take effects back: after a crash between effect and claim's end the effect repeats.

    Args:
        lease: after how many seconds an open claim loses its keys to whoever asks; never, unless said.
    """

    transactional = False

    def __init__(self, *, lease: float = float("inf")) -> None:
        self._lease = lease
        self._done: dict[Name, tuple[str, bytes]] = {}
        self._held: dict[Name, _Lease] = {}

    async def open(self) -> None:
        """Nothing to connect to. What was remembered before a close still is."""

    async def close(self) -> None:
        """Nothing to let go of."""

    def gives(self, wanted: type, *, sync: bool) -> bool:
        return False

    def translate(self, error: Exception) -> WorldError | None:
        return error if isinstance(error, Contention) else None

    def claim(
        self, keys: Sequence[Key], *, resource: type | None, sync: bool
    ) -> AbstractAsyncContextManager[MemoryClaim]:
        """Claim keys. A clean exit marks them done; any exception gives them back.

        Raises:
            Contention: at a clean exit, when a lease ran out and somebody else holds or applied the key since.
        """
        return self._claim(keys)

    @asynccontextmanager
    async def _claim(self, keys: Sequence[Key]) -> AsyncIterator[MemoryClaim]:
        lease = _Lease(time.monotonic() + self._lease)
        claim = MemoryClaim(keys, self._take(keys, lease))
        try:
            yield claim
            points.at(points.BEFORE_COMMIT)
            self._finish(claim, lease)
            points.at(points.AFTER_COMMIT)
        finally:
            for name in [name for name, held in self._held.items() if held is lease]:
                del self._held[name]

    def _take(self, keys: Sequence[Key], lease: _Lease) -> Sequence[Claimed]:
        states: list[Claimed] = []
        first: dict[Name, Key] = {}
        now = time.monotonic()
        for key in keys:
            name = (key.position, key.key)
            held = self._held.get(name)
            if name in first:
                states.append(Claimed(State.DONE, first[name].event_id, first[name].digest))
            elif name in self._done:
                states.append(Claimed(State.DONE, *self._done[name]))
            elif held is not None and held.until > now:
                states.append(Claimed(State.BUSY))
            else:
                first[name] = key
                self._held[name] = lease
                states.append(NEW)
        return states

    def _finish(self, claim: MemoryClaim, lease: _Lease) -> None:
        lost: list[str] = []
        for index, (key, claimed) in enumerate(zip(claim.keys, claim.states, strict=True)):
            if claimed.state is not State.NEW or index in claim.failed:
                continue
            name = (key.position, key.key)
            if self._held.get(name) is lease:
                self._done[name] = (key.event_id, key.digest)
            else:
                lost.append(key.key)
        if lost:
            raise Contention(f"the claim took longer than its lease, and others took {', '.join(lost[:3])} meanwhile")

    def transaction(self, wanted: type | None = None) -> AbstractAsyncContextManager[object]:
        """There are none.

        Raises:
            MisuseError: always.
        """
        raise MisuseError("the memory store has no transactions. Use a database, such as store='sqlite:///service.db'")

    async def emit(self, tx: object, messages: Sequence[Message]) -> None:
        """There is no outbox.

        Raises:
            MisuseError: always.
        """
        raise MisuseError("the memory store has no outbox. Use a database, such as store='sqlite:///service.db'")

    async def forget(self, position: str, kind: KeyKind, before: float, *, after: str = "", most: int) -> Forgotten:
        """Nothing: what it knows ends with the process."""
        return Forgotten()

    async def relay(self, publish: Publish) -> None:
        """Nothing ever waits here; this does, until it is cancelled."""
        await asyncio.Event().wait()


class MemoryClaim:
    """The open claim on some keys."""

    executor: Executor | None = None

    def __init__(self, keys: Sequence[Key], states: Sequence[Claimed]) -> None:
        self.keys = keys
        self.states = states
        self.failed: set[int] = set()

    def resource(self, wanted: type) -> object:
        raise MisuseError(f"the memory store has no {wanted.__name__} to give")

    def fail(self, index: int) -> None:
        self.failed.add(index)

    def cut(self) -> None:
        """Nothing was lent."""

    async def emit(self, messages: Sequence[Message]) -> bool:
        return False

    async def flush(self) -> None:
        """Nothing is held back."""
