"""What observers see of a service, as protocols: they stand below it and know it only by its shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tidings.ports import Backlog, Broker, Observer

LONGEST_TEXT = 200
"""Characters of an id, a key or a type that a log line or a health report shows."""


class WatchedReader(Protocol):
    @property
    def types(self) -> tuple[str, ...]: ...


class WatchedHandler(Protocol):
    @property
    def position(self) -> str: ...
    @property
    def reader(self) -> WatchedReader: ...


class WatchedTasks(Protocol):
    @property
    def failures(self) -> Mapping[str, str]: ...


class WatchedWorker(Protocol):
    @property
    def position(self) -> str: ...
    @property
    def trouble(self) -> str: ...
    @property
    def failures(self) -> Mapping[str, str]: ...
    @property
    def waiting(self) -> int: ...
    @property
    def busy(self) -> int: ...
    async def backlog(self) -> Backlog | None: ...


class WatchedRunning(Protocol):
    @property
    def broker(self) -> Broker: ...
    @property
    def store(self) -> object: ...
    @property
    def workers(self) -> Sequence[WatchedWorker]: ...
    @property
    def tasks(self) -> WatchedTasks: ...
    @property
    def stopping(self) -> bool: ...


class WatchedService(Protocol):
    """The part of `tidings.Service` that is looked at."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def handlers(self) -> Sequence[WatchedHandler]: ...
    @property
    def observers(self) -> list[Observer]: ...
    @property
    def active(self) -> WatchedRunning:
        """Raises MisuseError while the service does not run."""


def shown(text: str, most: int = LONGEST_TEXT) -> str:
    """Text from outside as one line may hold it: control characters escaped, so that nothing can forge a line."""
    cut = text[:most]
    if not cut.isprintable():
        cut = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in cut)
    return cut if len(text) <= most else cut + "…"
