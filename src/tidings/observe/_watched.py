"""What observers see of a service, as protocols: they stand below it and know it only by its shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tidings.ports import Backlog, Broker, Observer


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
    @property
    def paused(self) -> str: ...
    @property
    def off(self) -> bool: ...
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
