"""What is compared: the same stored events, consumed with the same limits, acknowledgements and confirmations.

Each contestant gets its own durable consumer of the same stream. All of them acknowledge every event and let every
256th acknowledgement be confirmed by the server, which is how Tidings settles a wave of that size.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import msgspec
import nats
from fast_depends.msgspec import MsgSpecSerializer
from fast_depends.pydantic import PydanticSerializer
from faststream import AckPolicy
from faststream.message import AckStatus
from faststream.nats import JStream, NatsBroker, PullSub
from faststream.nats.annotations import NatsMessage
from nats.js.api import AckPolicy as ServerAck
from nats.js.api import ConsumerConfig, DeliverPolicy
from pydantic import BaseModel

from tidings import Event, Service
from tidings.delivery import Envelope

STREAM = "bench"
TYPE = "bench.placed"
FILTERS = [TYPE, f"{TYPE}.*.*"]
IN_FLIGHT = 1024
CONFIRM_EVERY = 256
ACK_WAIT = 15.0


class Placed(Event, type="bench.placed", version=1, key="order_id"):
    order_id: str
    quantity: int


class PlacedModel(BaseModel):
    order_id: str
    quantity: int


class EnvelopeModel(BaseModel):
    """The same attributes for pydantic."""

    specversion: str
    id: str
    source: str
    type: str
    version: str
    time: datetime
    subject: str
    correlationid: str
    datacontenttype: str
    data: PlacedModel


class PlacedStruct(msgspec.Struct):
    order_id: str
    quantity: int


class EnvelopeStruct(msgspec.Struct):
    """The same attributes for msgspec."""

    specversion: str
    id: str
    source: str
    type: str
    version: str
    time: datetime
    subject: str
    correlationid: str
    datacontenttype: str
    data: PlacedStruct


_decode_envelope = msgspec.json.Decoder(Envelope).decode
_decode_data = msgspec.json.Decoder(Placed).decode


def make_event(number: int) -> Placed:
    """A good 300 bytes with its envelope."""
    return Placed(order_id=f"{number % 1000:04}", quantity=2)


class Count:
    """Until so many events were acknowledged."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.seen = wanted, 0
        self.done = asyncio.Event()
        self.began = 0.0
        self.ended = 0.0

    def one(self) -> int:
        """Count one; the clock runs from the first to the last."""
        self.seen = seen = self.seen + 1
        if seen == 1:
            self.began = time.perf_counter()
        if seen == self.wanted:
            self.ended = time.perf_counter()
            self.done.set()
        return seen

    async def rate(self, seconds: float) -> float:
        async with asyncio.timeout(seconds):
            await self.done.wait()
        return (self.wanted - 1) / (self.ended - self.began)


async def bare(url: str, count: int) -> float:
    """A continuous pull by hand over nats-py's public interface: decode with msgspec, ack each."""
    connection = await nats.connect(url)
    context = connection.jetstream()
    name = f"bare-{os.getpid()}"
    await context.add_consumer(STREAM, _consumer(name))
    seen = Count(count)
    half = IN_FLIGHT // 2
    inbox = connection.new_inbox()
    request = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{name}"
    body = msgspec.json.encode({"batch": half, "expires": 60_000_000_000})

    async def on_message(message: Any) -> None:
        if not message.reply:
            return
        envelope = _decode_envelope(message.data)
        _decode_data(envelope.data)
        number = seen.seen + 1
        if number % CONFIRM_EVERY == 0:
            await message.ack_sync(timeout=10)
        else:
            await message.ack()
        seen.one()
        if number % half == 0:
            await connection.publish(request, body, reply=inbox)

    await connection.subscribe(inbox, cb=on_message)
    for _ in range(2):
        await connection.publish(request, body, reply=inbox)
    try:
        return await seen.rate(120)
    finally:
        await connection.close()


async def tidings(url: str, count: int) -> float:
    """A typed, keyed handler declared idempotent that does nothing."""
    service = Service(f"bench{os.getpid()}", broker=url)
    seen = Count(count)

    @service.on(Placed, idempotent=True, batch=CONFIRM_EVERY)
    async def nothing(placed: Placed) -> None:
        seen.one()

    async with service.running():
        return await seen.rate(120)


async def faststream(url: str, count: int, *, pull: bool, msgspec_body: bool) -> float:
    """FastStream with a typed handler: manual acks, each 256th confirmed, like the others."""
    serializer = MsgSpecSerializer if msgspec_body else PydanticSerializer
    broker = NatsBroker(url, serializer=serializer(), logger=None)
    seen = Count(count)
    name = f"fast-{os.getpid()}-{int(pull)}-{int(msgspec_body)}"
    options: dict[str, Any] = {
        "durable": name,
        "stream": JStream(STREAM, declare=False),
        "config": _consumer(name, deliver=None if pull else f"deliver.{name}"),
        "ack_policy": AckPolicy.MANUAL,
        "decoder": _decode_json,
        "pending_msgs_limit": 0,
    }
    if pull:
        options["pull_sub"] = PullSub(batch_size=IN_FLIGHT // 2)

    async def settle(message: NatsMessage) -> None:
        if (seen.seen + 1) % CONFIRM_EVERY == 0:
            await message.raw_message.ack_sync(timeout=10)
            message.committed = AckStatus.ACKED
        else:
            await message.ack()
        seen.one()

    async def handle_model(body: EnvelopeModel, message: NatsMessage) -> None:
        await settle(message)

    async def handle_struct(body: EnvelopeStruct, message: NatsMessage) -> None:
        await settle(message)

    broker.subscriber(f"{TYPE}.>", **options)(handle_struct if msgspec_body else handle_model)
    await broker.start()
    try:
        return await seen.rate(60)
    finally:
        await broker.stop()


async def _decode_json(message: Any) -> Any:
    """FastStream reads JSON by the content type, and CloudEvents' own is none it knows."""
    return msgspec.json.decode(message.body)


def _consumer(name: str, deliver: str | None = None) -> ConsumerConfig:
    return ConsumerConfig(
        durable_name=name,
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=ServerAck.EXPLICIT,
        ack_wait=ACK_WAIT,
        max_ack_pending=IN_FLIGHT,
        filter_subject=f"{TYPE}.>",
        deliver_subject=deliver,
    )


CONTESTANTS: dict[str, Callable[[str, int], Awaitable[float]]] = {
    "bare continuous pull": bare,
    "tidings": tidings,
    "faststream pull, pydantic": lambda url, count: faststream(url, count, pull=True, msgspec_body=False),
    "faststream push, pydantic": lambda url, count: faststream(url, count, pull=False, msgspec_body=False),
    "faststream pull, msgspec": lambda url, count: faststream(url, count, pull=True, msgspec_body=True),
    "faststream push, msgspec": lambda url, count: faststream(url, count, pull=False, msgspec_body=True),
}
