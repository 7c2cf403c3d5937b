"""The rivals: what somebody writes by hand with nats-py, msgspec and asyncpg, and no framework.

They get the events from the same stream as the service, with as many in flight and the same ack wait; they decode,
apply what the inbox does not know, and acknowledge each event. The last acknowledgement of each batch is confirmed by
the server, while the next batch is worked on already. Nothing is retried, kept alive, put aside or taken up again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import asyncpg
import msgspec
import nats
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from bench.effects.events import UPDATE, Taken
from bench.effects.progress import Progress
from tidings.delivery import Envelope

INBOX = "INSERT INTO by_hand VALUES ('bench', $1, extract(epoch FROM now())) ON CONFLICT DO NOTHING RETURNING key"
INBOX_MANY = (
    "INSERT INTO by_hand SELECT 'bench', key, extract(epoch FROM now()) FROM unnest($1::text[]) key"
    " ON CONFLICT DO NOTHING RETURNING key"
)
TABLE = "CREATE TABLE by_hand (handler text, key text, at float8, PRIMARY KEY (handler, key))"

Connection = Any  # asyncpg's takes a parameter in its stubs only

_decode_envelope = msgspec.json.Decoder(Envelope).decode
_decode_data = msgspec.json.Decoder(Taken).decode


class Came(NamedTuple):
    """An event as it came."""

    id: str
    event: Taken
    message: Any


class Feed:
    """A continuous pull over nats-py's public interface: it never waits for more than there is."""

    def __init__(
        self, url: str, stream: str, name: str, *, batch: int, in_flight: int, ack_wait: float, new: bool
    ) -> None:
        self._url, self._stream, self._name = url, stream, name
        self._batch, self._in_flight, self._ack_wait = batch, in_flight, ack_wait
        self._from = DeliverPolicy.NEW if new else DeliverPolicy.ALL
        self._queue: deque[Any] = deque()
        self._came = asyncio.Event()
        self._left = 0
        self._confirming: asyncio.Task[Any] | None = None
        self.began = 0.0

    async def __aenter__(self) -> Self:
        self._connection = await nats.connect(self._url)
        await self._connection.jetstream().add_consumer(
            self._stream,
            ConsumerConfig(
                durable_name=self._name,
                deliver_policy=self._from,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=self._ack_wait,
                max_ack_pending=self._in_flight,
            ),
        )
        self._inbox = self._connection.new_inbox()
        await self._connection.subscribe(self._inbox, cb=self._take)
        for _ in range(2):
            await self._ask()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._confirming is not None:
            await self._confirming
        await self._connection.close()

    async def _ask(self) -> None:
        body = msgspec.json.encode({"batch": self._in_flight // 2, "expires": 60_000_000_000})
        await self._connection.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}", body, reply=self._inbox
        )

    async def _take(self, message: Any) -> None:
        if not message.reply:
            return
        self.began = self.began or time.perf_counter()
        self._queue.append(message)
        self._came.set()

    async def next(self) -> list[Came]:
        """Whatever waits, up to a batch, decoded."""
        while not self._queue:
            self._came.clear()
            await self._came.wait()
        found = []
        for _ in range(min(self._batch, len(self._queue))):
            message = self._queue.popleft()
            envelope = _decode_envelope(message.data)
            found.append(Came(envelope.id, _decode_data(envelope.data), message))
        return found

    async def ack(self, came: Sequence[Came], *, confirm: bool = True) -> None:
        """Acknowledge each; the last one's answer is awaited before the next batch's is asked for."""
        for one in came[:-1]:
            await one.message.ack()
        if confirm:
            if self._confirming is not None:
                await self._confirming
            self._confirming = asyncio.create_task(came[-1].message.ack_sync(timeout=10))
        else:
            await came[-1].message.ack()
        self._left += len(came)
        half = self._in_flight // 2
        while self._left >= half:
            self._left -= half
            await self._ask()


async def run(kind: str, feed: Feed, postgres: str, progress: Progress, batch: int) -> None:
    """Apply whatever comes, until cancelled: one transaction per event, or one for all that waits."""
    connection = await asyncpg.connect(postgres)
    unconfirmed = 0
    try:
        async with feed:
            progress.ready()
            while True:
                came = await feed.next()
                progress.began(feed.began)
                if kind == "tx":
                    for one in came:
                        await _alone(connection, one, progress)
                        unconfirmed += 1
                        await feed.ack([one], confirm=unconfirmed % batch == 0)
                else:
                    await (_group if kind == "group" else _many)(connection, came)
                    progress.committed(one.event.quantity for one in came)
                    await feed.ack(came)
                progress.ended(len(came))
    finally:
        await connection.close()


async def _alone(connection: Connection, one: Came, progress: Progress) -> None:
    async with connection.transaction():
        if await connection.fetchval(INBOX, one.id):
            await connection.execute(UPDATE, one.event.quantity, one.event.sku)
    progress.committed([one.event.quantity])


async def _new(connection: Connection, came: Sequence[Came]) -> set[str]:
    return {key for (key,) in await connection.fetch(INBOX_MANY, sorted(one.id for one in came))}


async def _group(connection: Connection, came: Sequence[Came]) -> None:
    async with connection.transaction():
        new = await _new(connection, came)
        for one in came:
            if one.id in new:
                await connection.execute(UPDATE, one.event.quantity, one.event.sku)


async def _many(connection: Connection, came: Sequence[Came]) -> None:
    async with connection.transaction():
        new = await _new(connection, came)
        await connection.executemany(UPDATE, [(one.event.quantity, one.event.sku) for one in came if one.id in new])
