"""Consume rates on RabbitMQ: Tidings against a bare loop and against FastStream, interleaved, as ratios.

``python -m bench.rabbitmq [--events 20000] [--rounds 5]``

Each contestant has a quorum queue of its own (Tidings one for each of its eight shares, because it keeps the order of
keys), all of them bound to one exchange and filled before the round. All have the same prefetch and acknowledge every
event; all but Tidings one by one, which is how their libraries do it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aio_pika
import msgspec
from fast_depends.msgspec import MsgSpecSerializer
from fast_depends.pydantic import PydanticSerializer
from faststream import AckPolicy
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue
from faststream.rabbit.annotations import RabbitMessage

from bench.consume import Result, _fill
from bench.contestants import Count, EnvelopeModel, EnvelopeStruct, Placed, make_event
from bench.verdict import Verdicts
from tidings import Service
from tidings.brokers.rabbitmq.names import SHARES
from tidings.delivery import Envelope
from tidings.envelope import envelope_of, to_structured
from tools.services.rabbitmq import RabbitMQ

IN_FLIGHT = 1024
BATCH = 256
EXCHANGE = "bench"
BARE, OURS = "bare aio-pika", "tidings"
QUEUES = {BARE: "bare", "faststream, pydantic": "fast-pydantic", "faststream, msgspec": "fast-msgspec"}

_decode_envelope = msgspec.json.Decoder(Envelope).decode
_decode_data = msgspec.json.Decoder(Placed).decode


def service(url: str, seen: Count) -> Service:
    """A typed, keyed handler declared idempotent that does nothing."""
    made = Service("bench", broker=url, publishes=[Placed])

    @made.on(Placed, name="nothing", idempotent=True, batch=BATCH)
    async def nothing(placed: Placed) -> None:
        seen.one()

    return made


async def tidings(url: str, count: int) -> float:
    seen = Count(count)
    async with service(url, seen).running():
        return await seen.rate(120)


async def bare(url: str, count: int) -> float:
    """aio-pika by hand: decode with msgspec, ack each."""
    seen = Count(count)
    connection = await aio_pika.connect(url)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=IN_FLIGHT)
    queue = await channel.get_queue(QUEUES[BARE], ensure=False)

    async def on_message(message: Any) -> None:
        _decode_data(_decode_envelope(message.body).data)
        await message.ack()
        seen.one()

    await queue.consume(on_message)
    try:
        return await seen.rate(120)
    finally:
        await connection.close()


async def faststream(url: str, count: int, name: str) -> float:
    """FastStream with a typed handler and manual acks."""
    msgspec_body = name.endswith("msgspec")
    serializer = MsgSpecSerializer if msgspec_body else PydanticSerializer
    broker = RabbitBroker(url, serializer=serializer(), logger=None, default_channel=Channel(prefetch_count=IN_FLIGHT))
    seen = Count(count)
    queue = RabbitQueue(QUEUES[name], queue_type=QueueType.QUORUM, durable=True, declare=False)

    async def settle(message: RabbitMessage) -> None:
        await message.ack()
        seen.one()

    async def handle_model(body: EnvelopeModel, message: RabbitMessage) -> None:
        await settle(message)

    async def handle_struct(body: EnvelopeStruct, message: RabbitMessage) -> None:
        await settle(message)

    broker.subscriber(queue, ack_policy=AckPolicy.MANUAL, decoder=_decode_json)(
        handle_struct if msgspec_body else handle_model
    )
    await broker.start()
    try:
        return await seen.rate(120)
    finally:
        await broker.stop()


async def _decode_json(message: Any) -> Any:
    """FastStream reads JSON by the content type, and ours stands in the envelope."""
    return msgspec.json.decode(message.body)


CONTESTANTS: dict[str, Callable[[str, int], Awaitable[float]]] = {
    BARE: bare,
    OURS: tidings,
    **{name: lambda url, count, name=name: faststream(url, count, name) for name in QUEUES if name != BARE},  # type: ignore[misc]
}


async def measure(events: int, rounds: int) -> Result:
    """Fill all queues, let each contestant empty its own in a process of its own, and again."""
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory(prefix="tidings-bench-") as folder, RabbitMQ(Path(folder)) as server:
        url = server.url
        async with service(url, Count(-1)).running():
            pass  # it makes the exchange, and its own queues
        await _declare(url)
        for number in range(rounds):
            await _fill(url, events)
            for name in CONTESTANTS:
                rate = await asyncio.to_thread(_one, name, url, events)
                rates[name].append(rate)
                print(f"round {number + 1}: {name:<28} {rate:>10,.0f} events/s", flush=True)
    return Result(rates=rates)


async def _declare(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for name in QUEUES.values():
            queue = await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
            await queue.bind(EXCHANGE, "bench.placed.#")


def _one(name: str, url: str, events: int) -> float:
    command = [sys.executable, "-m", "bench.rabbitmq", "--one", name, "--url", url, "--events", str(events)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def report(result: Result, events: int, rounds: int) -> str:
    """The settings of all sides, and the medians."""
    size = len(to_structured(envelope_of(make_event(1), "bench")))
    lines = [
        f"{events} events of {size} bytes, 1,000 keys; medians of {rounds} rounds, interleaved, one process each",
        f"all sides: quorum queues, prefetch {IN_FLIGHT}, each event decoded with its envelope, explicit acks",
        f"tidings: {SHARES} queues by key, a prefetch of {IN_FLIGHT // SHARES} each; waves of {BATCH}, acknowledged so",
        f"FastStream {version('faststream')}: one queue, AckPolicy.MANUAL, an ack for each event, no logger",
        f"aio-pika {version('aio-pika')}: one queue, an ack for each event",
    ]
    for name, rates in result.rates.items():
        lines.append(
            f"  {name:<28} {statistics.median(rates):>10,.0f}/s   {result.ratio(name, BARE):5.2f} of bare"
            f"   ({min(rates):,.0f} to {max(rates):,.0f})"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(asyncio.run(CONTESTANTS[given.one](given.url, given.events))))  # type: ignore[arg-type]
        return 0
    result = asyncio.run(measure(given.events, given.rounds))
    print(report(result, given.events, given.rounds))
    verdicts = Verdicts()
    verdicts.add(f"tidings / {result.best_faststream}", result.ratio(OURS, result.best_faststream), 2)
    return verdicts.status


if __name__ == "__main__":
    sys.exit(main())
