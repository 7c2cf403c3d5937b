"""Once with Redis: the store, at several batch sizes, against one ``SET NX`` per event by hand, as ratios.

``python -m bench.effects_redis [--events 4000] [--rounds 3] [--appendfsync always]``

Both sides read the same stored events from JetStream and acknowledge each; both use the same client library and the
same Redis, so what is durable on one side is on the other. By hand is ``SET key NX EX`` before each event's handler: it
costs one round trip and loses the event when its process dies after it (there is no lease); the store costs two round
trips for a batch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import nats
from redis.asyncio import Redis

from bench.consume import _fill
from bench.contestants import CONFIRM_EVERY, IN_FLIGHT, STREAM, Count, Placed, _consumer, _decode_data, _decode_envelope
from bench.verdict import Verdicts
from tidings import Service
from tidings.brokers.nats.embedded import EmbeddedServer
from tools.services.redis import Redis as RedisServer

BATCHES = (1, 16, 64, 256)
REMEMBER = 8 * 86400
TARGET, FROM = 3.0, 16


async def by_hand(broker: str, store: str, count: int) -> float:
    """A continuous pull over nats-py, and one awaited SET NX for each event."""
    client = Redis.from_url(store)
    connection = await nats.connect(broker)
    context = connection.jetstream()
    name = f"hand-{os.getpid()}"
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
        if not await client.set(f"{name}:{envelope.id}", "1", nx=True, ex=REMEMBER):
            raise RuntimeError("an event came twice")
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
        await client.aclose()


async def ours(broker: str, store: str, count: int, batch: int) -> float:
    service = Service(f"bench{os.getpid()}", broker=broker, store=store)
    seen = Count(count)

    @service.on(Placed, once=True, batch=batch)
    async def nothing(placed: Placed) -> None:
        seen.one()

    async with service.running():
        return await seen.rate(120)


async def measure(events: int, rounds: int, appendfsync: str) -> dict[int, list[float]]:
    """The rates of by hand (0) and of each batch size, one for each round, interleaved, each in its own process."""
    rates: dict[int, list[float]] = {batch: [] for batch in (0, *BATCHES)}
    with tempfile.TemporaryDirectory(prefix="tidings-bench-") as folder:
        settings = ("appendonly yes", f"appendfsync {appendfsync}", "maxmemory-policy noeviction")
        server = EmbeddedServer(Path(folder) / "nats")
        url = await server.start()
        try:
            with RedisServer(Path(folder) / "redis", *settings) as redis:
                await _fill(url, events)
                for _ in range(rounds):
                    for batch, found in rates.items():
                        found.append(await asyncio.to_thread(_one, batch, url, redis.url, events))
        finally:
            await server.stop()
    return rates


def _one(batch: int, broker: str, store: str, events: int) -> float:
    command = [sys.executable, "-m", "bench.effects_redis", "--one", str(batch), "--broker", broker, "--store", store]
    done = subprocess.run([*command, "--events", str(events)], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"batch {batch} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def report(rates: dict[int, list[float]], events: int, rounds: int, appendfsync: str) -> str:
    """The settings of both sides, and the medians."""
    lines = [
        f"{events} events from JetStream, {rounds} rounds, interleaved, one process each, with redis-py",
        f"both sides: the same Redis, appendonly yes, appendfsync {appendfsync}, keys kept {REMEMBER // 86400} days;"
        f" {IN_FLIGHT} in flight, explicit acks, each {CONFIRM_EVERY}th confirmed (tidings: the last of each batch)",
        f"  {'SET NX per event, by hand':<28} {statistics.median(rates[0]):>10,.0f}/s",
    ]
    for batch in BATCHES:
        rate = statistics.median(rates[batch])
        lines.append(f"  tidings, batches of {batch:<9} {rate:>10,.0f}/s   {ratio(rates, batch):5.2f} of it")
    return "\n".join(lines)


def ratio(rates: dict[int, list[float]], batch: int) -> float:
    """The median of the ratios of the single rounds."""
    return statistics.median(ours / hand for ours, hand in zip(rates[batch], rates[0], strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--appendfsync", choices=["always", "everysec", "no"], default="always")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--broker", help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        run = ours(given.broker, given.store, given.events, given.one) if given.one else None
        print(json.dumps(asyncio.run(run or by_hand(given.broker, given.store, given.events))))
        return 0
    rates = asyncio.run(measure(given.events, given.rounds, given.appendfsync))
    print(report(rates, given.events, given.rounds, given.appendfsync))
    verdicts = Verdicts()
    for batch in BATCHES:
        if batch >= FROM:
            verdicts.add(f"batches of {batch} / SET NX per event by hand", ratio(rates, batch), TARGET)
    return verdicts.status


if __name__ == "__main__":
    sys.exit(main())
