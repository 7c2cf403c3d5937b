"""Redis that forgets, in the three ways in which it does: what that costs is counted, and nothing may be lost.

The orders are applied, Redis forgets that they were, and all are published again. What it remembers is a duplicate;
what it has forgotten is applied once more. A failover comes twice: to a replica that is known to lack one half, and
under load to one that lacks whatever had not come through.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import redis

from tools.proof.handlers import ELSEWHERE
from tools.proof.stores import EFFECTS, Kind, url_of
from tools.services.program import Program
from tools.services.redis import Redis

FORGETS: Final = "forgets"
FAILOVER: Final = "failover"


class Forgetful(Redis):
    """A Redis that can be made to forget."""

    title: ClassVar[str]
    kills: ClassVar[int] = 1
    """How many servers a forgetting kills."""
    cost: ClassVar[str]
    """As the page of the store says it."""
    settings_: ClassVar[tuple[str, ...]]

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, *self.settings_)

    def half(self) -> None:  # only where the moment matters
        """The first half of the orders was applied."""

    @abstractmethod
    def forget(self) -> None:
        """All orders were applied."""

    def client(self, port: int = 0) -> redis.Redis:
        return redis.Redis(port=port or self.port, socket_timeout=10)


class Evicting(Forgetful):
    """Its memory is full, and its policy lets it drop any key."""

    title = "Redis, evicting"
    cost = "what it evicted is applied again when its event comes again; Tidings starts there only if told to"
    kills = 0
    settings_ = ("maxmemory 4mb", "maxmemory-policy allkeys-lru", 'save ""', "appendonly no")

    def forget(self) -> None:
        with closing(self.client()) as client:
            for number in range(400):
                client.set(f"filler-{number}", os.urandom(20_000))


class Volatile(Forgetful):
    """Nothing of it is on a disk when it is killed."""

    title = "Redis without persistence"
    cost = "all of what was applied before it died is applied again when its event comes again"
    settings_ = ("maxmemory-policy noeviction", 'save ""', "appendonly no")

    def forget(self) -> None:
        self.stop()
        self.start()


class FailingOver(Forgetful):
    """It is killed, and the replica that takes its address has not heard of the second half."""

    title = "Redis, failing over"
    cost = "what the replica had not heard of is applied again when its event comes again"
    settings_ = (
        "maxmemory-policy noeviction",
        "appendonly yes",
        "appendfsync always",
        "repl-diskless-sync-delay 0",
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "primary")
        self.replica = Redis(folder / "replica", "maxmemory-policy noeviction", f"replicaof 127.0.0.1 {self.port}")

    def start(self) -> Self:
        super().start()
        self.replica.start()
        return self

    def in_step(self) -> None:
        """The replica has heard of everything so far."""
        with closing(self.client()) as primary:
            if not primary.wait(1, 10_000):
                raise TimeoutError("the replica did not hear of what its primary has")

    def half(self) -> None:
        self.in_step()
        self._promote()  # it is cut off: from here on it hears nothing

    def forget(self) -> None:
        super().stop()
        self._take_over()

    def fail_over(self) -> None:
        """The primary is killed; its replica is promoted, and takes its address."""
        super().stop()
        self._promote()
        self._take_over()

    def _promote(self) -> None:
        with closing(self.client(self.replica.port)) as replica:
            replica.replicaof("NO", "ONE")

    def _take_over(self) -> None:
        with closing(self.client(self.replica.port)) as replica:
            replica.config_set("port", str(self.port))

    def stop(self, *how: Any) -> None:
        self.replica.stop()
        super().stop(*how)


def _store(url: str) -> Any:
    from tidings.stores.redis import RedisStore

    return RedisStore(url, lease=2.0, allow_eviction=True)


def _kind(server: type[Forgetful]) -> Kind:
    def made(folder: Path) -> Program:
        return server(folder)

    return Kind(
        title=server.title,
        server=made,
        url=url_of,
        ledger=lambda url, folder: f"sqlite:///{folder / EFFECTS}",
        store=_store,
        variants=ELSEWHERE,
        points={},
        effects_elsewhere=True,
        forgets=True,
        fails_over=server is FailingOver,
    )


SERVERS: Final[tuple[type[Forgetful], ...]] = (Evicting, Volatile, FailingOver)
LOSSES: Final = {f"redis-{one.__name__.lower()}": _kind(one) for one in SERVERS}
