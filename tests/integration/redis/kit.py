"""What the tests of the Redis store stand on: claims in short, and a look at Redis that is not the store's."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import redis

from tidings.ports import Claimed, Key, State
from tidings.stores.redis import RedisStore

NEW, BUSY = Claimed(State.NEW), Claimed(State.BUSY)


class Keys:
    """Keys of a handler that no other test has."""

    def __init__(self) -> None:
        self.position = f"t{uuid.uuid4().hex[:12]}.reserve"

    def __call__(self, name: str, event_id: str = "", *, position: str = "", lives: float | None = None) -> Key:
        """A key; an event's own id, unless another event's is given."""
        event_id = event_id or name
        return Key(position or self.position, name, event_id, event_id.encode(), lives)

    def stored(self, name: str) -> str:
        return f"tidings:{self.position}:{name}"


def done(event_id: str) -> Claimed:
    return Claimed(State.DONE, event_id, event_id.encode())


async def apply(store: RedisStore, *keys: Key) -> Sequence[Claimed]:
    async with store.claim(keys, resource=None, sync=False) as claim:
        return claim.states


async def states(store: RedisStore, *keys: Key) -> Sequence[Claimed]:
    """Claim and keep nothing: what the store says of the keys."""
    found: list[Claimed] = []
    with contextlib.suppress(LookupError):
        async with store.claim(keys, resource=None, sync=False) as claim:
            found.extend(claim.states)
            raise LookupError
    return found


@contextlib.contextmanager
def impatient(store: RedisStore) -> Iterator[None]:
    """It does not wait long for answers that will not come; for those that will it has the time that they take."""
    patience, store._link._timeout = store._link._timeout, 0.2
    yield
    store._link._timeout = patience


def look(url: str) -> Any:
    """A client beside the store's."""
    return redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)


def calls(client: Any) -> dict[str, int]:
    """How often each command was sent or was run by a script."""
    return {name.removeprefix("cmdstat_"): int(of["calls"]) for name, of in client.info("commandstats").items()}
