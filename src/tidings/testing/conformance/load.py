"""A load: events that somebody publishes all the time, whatever happens to the broker meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType

from tidings.delivery import Message
from tidings.ports import Broker
from tidings.testing.conformance.bench import Bench

KEYS = 16


class Load:
    """Publishes event after event, each until it is stored, from `async with` on until `stop`.

    A wave has one event for each key and ends before the next begins: so the events of a key are stored in their order.
    """

    def __init__(
        self, bench: Bench, client: Broker, message: Callable[[str, str], Message], *, per_second: float
    ) -> None:
        self._bench = bench
        self._client = client
        self._message = message
        self._pause = KEYS / per_second
        self._stopping = False
        self._wave = asyncio.Lock()
        """Held while a wave is published."""
        self._task: asyncio.Task[None] | None = None
        self.ids: list[str] = []
        """What was stored, in its order."""
        self.again: Counter[str] = Counter()
        """How often more than once each was published; see `Bench.publish_until_stored`."""

    async def __aenter__(self) -> Load:
        self._task = asyncio.create_task(self._run(), name="load")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def stop(self) -> None:
        """Publish no more, and wait until all that was begun is stored."""
        self._stopping = True
        assert self._task is not None
        await self._task

    @asynccontextmanager
    async def resting(self) -> AsyncIterator[None]:
        """Publish nothing meanwhile, once all that was begun is stored."""
        async with self._wave:
            yield

    async def more(self, count: int) -> None:
        """Wait until so many more are stored."""
        wanted = len(self.ids) + count
        await self._bench.until(lambda: self._went_on() and len(self.ids) >= wanted, f"{wanted} events were stored")

    def _went_on(self) -> bool:
        assert self._task is not None
        if self._task.done():
            self._task.result()
        return True

    async def _run(self) -> None:
        while not self._stopping:
            async with self._wave:
                begin = len(self.ids)
                wave = {str(begin + key): self._message(str(begin + key), f"k{key}") for key in range(KEYS)}
                again = await self._bench.publish_until_stored(self._client, list(wave.values()))
                self.again.update({id: again[message.id] for id, message in wave.items()})
                self.ids += wave
            await asyncio.sleep(self._pause)
