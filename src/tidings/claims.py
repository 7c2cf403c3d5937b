"""Claims for every handler alike: the keys of a batch, and what stands in where no store is needed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from hashlib import blake2b
from types import TracebackType
from typing import Protocol, runtime_checkable

from tidings import points
from tidings.delivery import DeadLettered, Decision, Delivery, Duplicate, Envelope, Message, Retried
from tidings.errors import MisuseError, TransactionEnded, WorldError
from tidings.event import Event
from tidings.grouping import Work
from tidings.handler import Handler
from tidings.policy import BUSY_PAUSE
from tidings.ports import EVENT_MARK, NEW, Claim, Claimed, Key, Once, State
from tidings.sight import NOBODY, Stage, Watchers
from tidings.values import key_text


class NoClaim:
    """For handlers whose effect may repeat: every event is new, and nothing is kept."""

    executor: Executor | None = None

    def __init__(self, count: int) -> None:
        self.states: Sequence[Claimed] = (NEW,) * count

    async def __aenter__(self) -> NoClaim:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        return None

    def resource(self, wanted: type) -> object:
        raise MisuseError(f"{wanted.__name__}: no store is there to give it")

    def fail(self, index: int) -> None:
        """Nothing was claimed."""

    def cut(self) -> None:
        """Nothing was lent."""

    async def emit(self, messages: Sequence[Message]) -> bool:
        return False


class Unkeyed:
    """A transaction of the store without keys: for handlers whose effect may repeat, but which ask for a connection."""

    def __init__(self, opening: AbstractAsyncContextManager[Claim], count: int) -> None:
        self._opening = opening
        self.states: Sequence[Claimed] = (NEW,) * count

    async def __aenter__(self) -> Unkeyed:
        self._claim = await self._opening.__aenter__()
        self.executor: Executor | None = self._claim.executor
        self.resource = self._claim.resource
        self.emit = self._claim.emit
        self.undo = self._claim.undo if isinstance(self._claim, Undoes) else lambda: False
        self.cut = self._claim.cut
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        return await self._opening.__aexit__(kind, error, tb)

    def fail(self, index: int) -> None:
        """Nothing was claimed."""


@runtime_checkable
class Undoes(Protocol):
    """A `Claim` in which one event that failed need not take back the others."""

    def undo(self) -> bool:
        """Take back what the handler that ran last did here; False where it may have done something that was sent."""


class Timed:
    """A claim whose opening, use and closing are measured, where somebody wants to know."""

    def __init__(self, opening: AbstractAsyncContextManager[Claim], position: str, watchers: Watchers) -> None:
        self._opening, self._position, self._watchers = opening, position, watchers
        self._since = time.monotonic()

    async def __aenter__(self) -> Claim:
        try:
            claim = await self._opening.__aenter__()
        except WorldError as error:
            self._watchers.refused(self._position, error)
            raise
        if not isinstance(claim, NoClaim):
            self._told("claim")
        self._since = time.monotonic()
        return claim

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        self._told("handler")
        try:
            ended = await self._opening.__aexit__(kind, error, tb)
        except WorldError as refused:
            self._watchers.refused(self._position, refused)
            raise
        if kind is None and not isinstance(self._opening, NoClaim):
            self._told("commit")
        elif isinstance(error, WorldError):
            self._watchers.refused(self._position, error)
        return ended

    def _told(self, stage: Stage) -> None:
        now = time.monotonic()
        self._watchers.stage(self._position, stage, now - self._since)
        self._since = now


class Lives(Protocol):
    """How long the keys of a handler have to be known."""

    seconds: float | None
    """None is without end."""


class Claimer:
    """Opens the claim for a batch of one handler."""

    def __init__(
        self,
        handler: Handler,
        once: Once | None,
        resource: type | None,
        lives: Lives | None = None,
        watchers: Watchers = NOBODY,
    ) -> None:
        self._lives = lives
        self._watchers = watchers
        self._handler = handler
        self._once = once if handler.rules.once or resource is not None else None
        self._resource = resource
        self.shared = self._once is not None and self._once.transactional
        """Whether a failure takes back what the others of the batch did."""
        self.fenced = self.shared and resource is not None
        """Whether all that the handler does can be taken back, for which it has to ask for the store's connection."""

    def open(self, batch: Sequence[Work]) -> AbstractAsyncContextManager[Claim]:
        points.at(points.BEFORE_CLAIM)
        opening = self._opened(batch)
        return Timed(opening, self._handler.position, self._watchers) if self._watchers else opening

    def _opened(self, batch: Sequence[Work]) -> AbstractAsyncContextManager[Claim]:
        if self._once is None:
            return NoClaim(len(batch))
        if not self._handler.rules.once:
            return Unkeyed(self._once.claim([], resource=self._resource, sync=self._handler.sync), len(batch))
        keys = [self.key(work.delivery, work.event) for work in batch]
        return self._once.claim(keys, resource=self._resource, sync=self._handler.sync)

    def known(self, delivery: Delivery, claimed: Claimed) -> Decision:
        """What becomes of an event whose key is not new."""
        if claimed.state is State.BUSY:
            return Retried(after=BUSY_PAUSE, reason="another worker holds its key", counted=False)
        if claimed.event_id in ("", delivery.event_id):
            return Duplicate()
        if self._handler.rules.conflict == "dead":
            reason = f"its key {self._handler.rules.once} was applied for event {claimed.event_id}"
            return DeadLettered(reason=reason, code="conflict")
        return Duplicate(of=claimed.event_id)

    def of_the_store(self, error: Exception) -> WorldError | TransactionEnded | None:
        """What a handler's error means, when it was the store's: a lock, or a database that is gone.

        A handler that does not use the store's connection has errors of its own only.
        """
        return None if self._once is None or self._resource is None else self._once.translate(error)

    def undone(self, claim: Claim, error: Exception) -> bool:
        """Whether the others of the batch can stay although this one failed: it left nothing in their transaction."""
        return isinstance(claim, Undoes) and self.of_the_store(error) is None and claim.undo()

    def key(self, delivery: Delivery, event: Event) -> Key:
        """What is applied once: the event's id, or the field of the newest version that the handler named.

        A replay under a scope of its own has keys of its own.
        """
        envelope = delivery.envelope
        assert isinstance(envelope, Envelope)
        once = self._handler.rules.once
        text = f"{once}:{key_text(getattr(event, once))}" if isinstance(once, str) else EVENT_MARK + envelope.id
        if scope := delivery.scope:
            # As a key of the event's kind it is forgotten some time after the replay, whatever the handler names.
            text = f"{EVENT_MARK}{scope}:{text}"
        digest = blake2b(bytes(envelope.data), digest_size=16).digest()
        lives = None if self._lives is None else self._lives.seconds
        return Key(self._handler.position, text, envelope.id, digest, lives)
