"""What can be seen of a service beside its outcomes: where time goes, what leaves, what the world refused.

An `Observer` that has the methods of `Watcher` too is told of it; where none has, nothing is measured. A broker that
has more to say of itself has `Reconnects`, `Fills` or `Letters`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, ParamSpec, Protocol, runtime_checkable

import msgspec

log = logging.getLogger("tidings.observe")

Stage = Literal["claim", "handler", "commit", "settle"]
"""What a batch spends its time with, once a lane has taken it up."""

Way = Literal["direct", "outbox"]
"""How events leave: by a call of `publish`, or from the outbox."""


@runtime_checkable
class Watcher(Protocol):
    """Like an `Observer` it can change nothing, and whatever it raises is logged."""

    def stage(self, position: str, stage: Stage, seconds: float) -> None:
        """A claim, or a wave of settling, has spent this time."""

    def refused(self, position: str, error: Exception) -> None:
        """The store did not do what was asked for, and will be asked again."""

    def published(self, way: Way, answers: Sequence[Exception | None], seconds: float) -> None:
        """The broker has answered for messages that were to leave: for each None, or why it is not stored."""


class Watchers:
    """Those of some observers that watch. False where nobody does."""

    def __init__(self, observers: Iterable[object] = ()) -> None:
        self._each = [one for one in observers if isinstance(one, Watcher)]

    def __bool__(self) -> bool:
        return bool(self._each)

    def stage(self, position: str, stage: Stage, seconds: float) -> None:
        for one in self._each:
            try:
                one.stage(position, stage, seconds)
            except Exception:
                log.exception("an observer failed; it changes nothing")

    def refused(self, position: str, error: Exception) -> None:
        for one in self._each:
            _safely(one.refused, position, error)

    def published(self, way: Way, answers: Sequence[Exception | None], seconds: float) -> None:
        for one in self._each:
            _safely(one.published, way, answers, seconds)


NOBODY = Watchers()

P = ParamSpec("P")


def _safely(tell: Callable[P, None], *args: P.args, **more: P.kwargs) -> None:
    try:
        tell(*args, **more)
    except Exception:
        log.exception("an observer failed; it changes nothing")


@runtime_checkable
class Reconnects(Protocol):
    """A broker that counts how often it had to connect anew."""

    @property
    def reconnects(self) -> int: ...


class Fill(msgspec.Struct, frozen=True):
    """How full a stream is."""

    share: float | None
    """From 0 to 1 of what it may hold, by the limit that it is nearest to; None without a limit."""
    keeps: float | None
    """Seconds for which it keeps its events; None is without end."""


@runtime_checkable
class Fills(Protocol):
    """A broker that can say how full a stream is."""

    async def fill(self, stream: str) -> Fill:
        """Raises BrokerUnavailable when it cannot be asked."""


class Lines(msgspec.Struct, frozen=True):
    """The next lines of the log of a handler's dead letters."""

    headers: Sequence[Mapping[str, str]]
    """Of each letter, or part of one, and of each marker of what was done about one; in the order of the log."""
    whole: bool
    """Nothing stands behind them."""
    anew: bool = False
    """They are the first of the log, which is another one than before: what was read until now counts no more."""


class LetterLog(Protocol):
    """Reads what stands in the log of a handler's dead letters, piece by piece."""

    async def more(self, most: int) -> Lines | None:
        """The next lines, `most` or fewer. None where it may not be read, which it has said in the log then.

        Raises:
            BrokerUnavailable: it cannot be read just now; what was not returned comes with the next call.
        """


@runtime_checkable
class Letters(Protocol):
    """A broker that lets a service look at the headers of its own handlers' dead letters, at a price that fits."""

    def letters(self, position: str, *, ordered: bool) -> LetterLog:
        """From the beginning of the log. `ordered` is whether the handler keeps the order of keys."""
