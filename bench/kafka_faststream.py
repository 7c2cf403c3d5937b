"""FastStream's two Kafka brokers as contestants of `bench.kafka`: typed handlers, for single events and for lists.

The settings are those that its documents advise for what is compared: `AckPolicy.MANUAL` and an `ack` of our own, which
commits as often as all other sides do; the native lists of each client (`batch=True`); msgspec as serializer beside
pydantic, and a decoder that reads the JSON in one pass of C.
"""

from __future__ import annotations

import os
import time
import types
from typing import Any, Final

import msgspec
from fast_depends.msgspec import MsgSpecSerializer
from fast_depends.pydantic import PydanticSerializer
from faststream import AckPolicy
from faststream.confluent import KafkaBroker as ConfluentBroker
from faststream.confluent.annotations import KafkaMessage as ConfluentMessage
from faststream.kafka import KafkaBroker as AiokafkaBroker
from faststream.kafka.annotations import KafkaMessage as AiokafkaMessage

from bench.contestants import Count, EnvelopeModel, EnvelopeStruct

BROKERS: Final[dict[str, tuple[Any, Any]]] = {
    "confluent": (ConfluentBroker, ConfluentMessage),
    "aiokafka": (AiokafkaBroker, AiokafkaMessage),
}
SERIALIZERS: Final[dict[str, tuple[Any, Any]]] = {
    "pydantic": (PydanticSerializer, EnvelopeModel),
    "msgspec": (MsgSpecSerializer, EnvelopeStruct),
}


async def consume(
    url: str, topic: str, count: int, *, client: str, serializer: str, batch: int, commit_every: float
) -> float:
    """Events a second; `batch` is the size of its lists, 0 for single events."""
    make_broker, annotation = BROKERS[client]
    make_serializer, body_type = SERIALIZERS[serializer]
    broker = make_broker(url.removeprefix("kafka://"), serializer=make_serializer(), logger=None)
    seen, last = Count(count), time.perf_counter()

    async def settle(message: Any, more: int) -> None:
        nonlocal last
        for _ in range(more):
            seen.one()
        if time.perf_counter() - last > commit_every or seen.seen >= count:
            last = time.perf_counter()
            await message.ack()

    async def one(body: Any, message: Any) -> None:
        await settle(message, 1)

    async def many(body: Any, message: Any) -> None:
        await settle(message, len(body))

    handler = many if batch else one
    body: Any = types.GenericAlias(list, body_type) if batch else body_type
    handler.__annotations__ = {"body": body, "message": annotation, "return": None}
    lists = {"batch": True, "max_records": batch} if batch else {}
    broker.subscriber(
        topic,
        group_id=f"fast-{os.getpid()}",
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.MANUAL,
        decoder=_decode_many if batch else _decode_one,
        **lists,
    )(handler)
    await broker.start()
    try:
        return await seen.rate(120)
    finally:
        await broker.stop()


async def _decode_one(message: Any) -> Any:
    return msgspec.json.decode(message.body)


async def _decode_many(message: Any) -> Any:
    return [msgspec.json.decode(body) for body in message.body]
