"""Bugs planted into the running workers, to see that the proof catches them. Nothing of this is in the package."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from tidings.delivery import ACK, Done, Message
from tidings.outbox.relay import Relay
from tidings.pipeline import Pipeline
from tidings.ports import Claim, Key
from tidings.turn import Turn
from tools.proof.verdict import Verdict

MARK_BEFORE_EFFECT: Final = "mark-before-effect"
ACK_BEFORE_COMMIT: Final = "ack-before-commit"
PUBLISH_OUTSIDE: Final = "publish-outside"
LATE_COMMIT: Final = "relay-skips-late-commit"
BLIND: Final = "blind-to-redeliveries"
"""No bug of the package, but of the proof: as if no kill had ever left anything open."""


class Seed(NamedTuple):
    """A bug, and where it must show."""

    what: str
    points: tuple[str, ...]
    word: str = ""
    """What the judge must say of it; unless told, that something is lost."""
    way: str = ""
    """How caused events must leave for it to show; unless told, as in any round."""

    def shows(self, found: Verdict) -> bool:
        """Whether a round failed because of it, and not for a reason of its own."""
        return any(self.word in reason for reason in found.wrong) if self.word else found.lost > 0


SEEDS: Final = {
    MARK_BEFORE_EFFECT: Seed("the key is committed before the effect", ("after-statement", "before-commit", "random")),
    ACK_BEFORE_COMMIT: Seed("the broker is told before the commit", ("before-commit", "random")),
    PUBLISH_OUTSIDE: Seed(
        "caused events are published after the commit, and no row remembers them", ("after-commit", "random")
    ),
    LATE_COMMIT: Seed("the relay reads only ids above the highest that it has seen", ("broker",), way="by the relay"),
    BLIND: Seed(
        "each delivery is written down as the first", ("before-claim", "before-ack"), "nothing was delivered again"
    ),
}


def plant(seed: str) -> None:
    """Patch this process with what needs no store of its own."""
    if seed == ACK_BEFORE_COMMIT:
        _ack_before_commit()
    elif seed == LATE_COMMIT:
        _skip_late_commits()


def around(seed: str, store: Any) -> Any:
    """The store, with the bug around it if it is one of the store's."""
    if seed == MARK_BEFORE_EFFECT:
        return MarksBefore(store)
    if seed in (PUBLISH_OUTSIDE, ACK_BEFORE_COMMIT):  # where an effect is durable before the commit, neither is a bug
        return PublishesOutside(store)
    return store


class Around:
    """A store that is another one in all but what is changed here."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.publish: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class MarksBefore(Around):
    """Claims and marks in one transaction, and lets the handlers work in another."""

    @asynccontextmanager
    async def claim(self, keys: Sequence[Key], *, resource: type | None, sync: bool) -> AsyncIterator[Any]:
        async with self._store.claim(keys, resource=resource, sync=sync) as marked:
            states = list(marked.states)
        async with self._store.claim([], resource=resource, sync=sync) as claim:
            yield Lent(claim, states)


class PublishesOutside(Around):
    """Publishes what was caused when the transaction has committed, without a row in the outbox."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self._lent: Lent | None = None
        """Of the one claim that is open: the stock has one lane."""

    @asynccontextmanager
    async def claim(self, keys: Sequence[Key], *, resource: type | None, sync: bool) -> AsyncIterator[Any]:
        async with self._store.claim(keys, resource=resource, sync=sync) as claim:
            self._lent = lent = Lent(claim, claim.states, keeps=True)
            yield lent
        if lent.messages:
            await self.publish(lent.messages)

    async def emit(self, tx: Any, messages: Sequence[Message]) -> None:
        """What a handler publishes by hand, in the same way."""
        assert self._lent is not None
        await self._lent.emit(messages)

    async def relay(self, publish: Any) -> None:
        self.publish = publish
        await self._store.relay(publish)


class Lent:
    """A claim with other states, and perhaps another way out for what it causes."""

    def __init__(self, claim: Claim, states: Sequence[Any], *, keeps: bool = False) -> None:
        self._claim, self._keeps, self._marks = claim, keeps, states is claim.states
        self.states = states
        self.executor = claim.executor
        self.resource = claim.resource
        self.cut = claim.cut
        self.messages: list[Message] = []

    def fail(self, index: int) -> None:
        if self._marks:
            self._claim.fail(index)

    async def emit(self, messages: Sequence[Message]) -> bool:
        if not self._keeps:
            return await self._claim.emit(messages)
        self.messages.extend(messages)
        return True


def _ack_before_commit() -> None:
    handle_all: Any = Pipeline._handle_all

    async def early(self: Any, turn: Turn) -> None:
        await handle_all(self, turn)
        done = [turn.group[place].delivery for place, decision in turn.decided.items() if isinstance(decision, Done)]
        await self._broker.settle([(delivery, ACK) for delivery in done])

    Pipeline._handle_all = early  # type: ignore[method-assign]  # the bug


def _skip_late_commits() -> None:
    made: Any = Relay.__init__

    def make(self: Any, outbox: Any, *rest: Any, **options: Any) -> None:
        made(self, Cursor(outbox), *rest, **options)

    Relay.__init__ = make  # type: ignore[method-assign]  # the bug


class Cursor:
    """An outbox that is read from where the reader has been."""

    def __init__(self, outbox: Any) -> None:
        self._outbox = outbox
        self._seen = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outbox, name)

    async def ready(self, *most: int) -> list[Any]:
        found = [row for row in await self._outbox.ready(*most) if row.id > self._seen]
        self._seen = max([self._seen, *(row.id for row in found)])
        return found


def stores_of(seed: str) -> list[str]:
    """The stores on which it can be planted."""
    from tools.proof.stores import PROMISING

    if seed == LATE_COMMIT:  # where one writes at a time, ids become visible in their order
        return [name for name, kind in PROMISING.items() if kind.late is not None]
    if seed in (PUBLISH_OUTSIDE, ACK_BEFORE_COMMIT):  # where an effect is durable before the commit, neither is a bug
        return [name for name, kind in PROMISING.items() if not kind.effects_elsewhere]
    return list(PROMISING)
