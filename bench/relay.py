"""How fast the relay empties an outbox, beside pipelined single publishes of the same events, in one run.

``python -m bench.relay [--events 10000] [--rounds 3]``

The server syncs each write to disk before it acknowledges. The singles hold 1,000 events in flight and write them by
hand with nats-py: nothing is read, nothing is written down. The relay reads its rows from SQLite, publishes them, and
takes them out again, with `synchronous=FULL`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import nats

from bench.verdict import Verdicts
from tidings.brokers.nats.broker import NatsBroker
from tidings.brokers.nats.embedded import EmbeddedServer
from tidings.brokers.nats.frames import frame_of
from tidings.brokers.nats.publishing import Wave
from tidings.delivery import Message
from tidings.ports import Plan, StreamPlan
from tidings.publisher import outlet_of
from tidings.stores.sqlalchemy import SqlAlchemyStore

STREAM = "relayed"
BODY = b"x" * 300
IN_FLIGHT = 1000
SINGLES = "pipelined singles"
OWN = "the same with own frames"
KEYS = {"relay, a key for each event": 0, "relay, 1,000 keys": 1000, "relay, 10 keys": 10}


def messages(events: int, keys: int, round: str) -> list[Message]:
    return [
        Message(
            id=f"{round}-{number}",
            stream=STREAM,
            type=f"{STREAM}.x",
            key=f"k{number % keys if keys else number}",
            headers={"content-type": "application/cloudevents+json"},
            body=BODY,
        )
        for number in range(events)
    ]


async def singles(url: str, events: int, round: str) -> float:
    """Seconds of wall time for singles, with nats-py."""
    client = await nats.connect(url)
    js = client.jetstream(publish_async_max_pending=IN_FLIGHT)
    try:
        began = time.perf_counter()
        for number in range(events):
            _ = await js.publish_async(
                f"{STREAM}.x.{number % 64}",
                BODY,
                wait_stall=60.0,
                headers={"Nats-Msg-Id": f"{round}-{number}", "content-type": "application/cloudevents+json"},
            )
        await js.publish_async_completed()
        return time.perf_counter() - began
    finally:
        await client.close()


async def own_singles(broker: NatsBroker, events: int, round: str) -> float:
    """The same with the frames of Tidings, a thousand in one write, without a batch."""
    made = messages(events, 1000, round)
    connection = broker._publisher._connection
    began = time.perf_counter()
    for start in range(0, events, IN_FLIGHT):
        frames = [frame_of(message, 2**20, 2**20) for message in made[start : start + IN_FLIGHT]]
        wave = Wave(len(frames))
        await wave.run(await connection.ready(10), frames, 60)
        assert all(answer is not None for answer in wave.answers)
    return time.perf_counter() - began


async def relayed(broker: NatsBroker, folder: Path, events: int, keys: int, round: str) -> float:
    """Seconds until an outbox that was filled before is empty."""
    store = SqlAlchemyStore(f"sqlite:///{folder / f'{round}.db'}", poll=0.01)
    await store.open()
    try:
        made = messages(events, keys, round)
        for start in range(0, events, 1000):
            async with store.transaction() as db:
                await store.emit(db, made[start : start + 1000])
        began = time.perf_counter()
        relaying = asyncio.create_task(store.relay(outlet_of(broker)))
        async with asyncio.timeout(300):
            while (await store.outbox_backlog()).waiting:  # noqa: ASYNC110  # the outbox has no event for it
                await asyncio.sleep(0.005)
        seconds = time.perf_counter() - began
        relaying.cancel()
        await asyncio.wait({relaying}, timeout=10)
        return seconds
    finally:
        await store.close()


async def measure(events: int, rounds: int) -> dict[str, list[float]]:
    """Rates of all contestants, round by round."""
    rates: dict[str, list[float]] = {name: [] for name in (SINGLES, OWN, *KEYS)}
    with tempfile.TemporaryDirectory(prefix="tidings-bench-") as name:
        folder = Path(name)
        server = EmbeddedServer(folder / "nats")
        url = await server.start()
        broker = NatsBroker(url)
        try:
            await broker.open(Plan(service="bench", streams=(StreamPlan(name=STREAM),)))
            for number in range(rounds):
                contestants: dict[str, Callable[[], Awaitable[float]]] = {
                    SINGLES: partial(singles, url, events, f"{number}s"),
                    OWN: partial(own_singles, broker, events, f"{number}o"),
                }
                for label, keys in KEYS.items():
                    contestants[label] = partial(relayed, broker, folder, events, keys, f"{number}r{keys}")
                for label, run in contestants.items():
                    rates[label].append(events / await run())
                    print(f"round {number + 1}: {label:<30} {rates[label][-1]:>10,.0f} events/s", flush=True)
        finally:
            await broker.close()
            await server.stop()
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    rates = asyncio.run(measure(given.events, given.rounds))
    ratios = {
        label: statistics.median(a / b for a, b in zip(rates[label], rates[SINGLES], strict=True)) for label in KEYS
    }
    verdicts = Verdicts()
    for label, ratio in ratios.items():
        verdicts.add(f"{label} / {SINGLES}", ratio, 5)
        own = statistics.median(a / b for a, b in zip(rates[label], rates[OWN], strict=True))
        print(f"         {label} / {OWN}: {own:.3g}")
    return verdicts.status


if __name__ == "__main__":
    sys.exit(main())
