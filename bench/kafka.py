"""Consume rates on Kafka: Tidings against a bare loop and against FastStream, on one node, interleaved, as ratios.

``python -m bench.kafka [--events 50000] [--rounds 5]``

The settings of all sides are printed with the rates (`SETTINGS`); what is not named there is as its library has it. The
bare loop decodes the same bytes with msgspec and tracks nothing: it handles in order, so the last offset of each
partition is what it commits.
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
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from confluent_kafka import Consumer, TopicPartition

from bench.contestants import Placed, make_event
from bench.kafka_faststream import BROKERS, SERIALIZERS, consume
from bench.verdict import Verdicts
from tidings import Service
from tidings.cli.garbage import settle_garbage
from tidings.delivery import Envelope
from tidings.envelope import envelope_of, to_structured
from tidings.ports import Settled
from tools.services.kafka import Kafka

STREAM: Final = "bench"
BATCH: Final = 256
IN_FLIGHT: Final = 1024
COMMIT_EVERY: Final = 0.5
BARE, OURS, OUR_LISTS = "bare confluent-kafka", "tidings", "tidings, lists"
OF_FASTSTREAM, OF_BARE = 5.0, 0.5
FEWER: Final = 5
"""A side that takes half a minute for all events is asked for a fifth of them: its rate stays the same."""
SETTINGS: Final = {
    "all": f"the same stored events, a group of their own that begins with the first, no auto-commit, what was handled"
    f" committed every {COMMIT_EVERY} s and at the end, the garbage collector set as by `tidings run`;"
    " the clock runs from the first event handled to the last; of tidings, from before the first is decoded until the"
    " last is settled",
    BARE: f"consume({BATCH}), msgspec for envelope and data, in order; it tracks nothing but the last offset",
    OURS: f"a typed async handler called for each event, order of keys kept, {IN_FLIGHT} in flight, batch={BATCH}",
    OUR_LISTS: f"a typed async handler of up to {BATCH} events, {IN_FLIGHT} in flight",
    "faststream": f"both of its brokers, AckPolicy.MANUAL, a typed async handler called for each event or (lists) for"
    f" up to {BATCH}, pydantic or msgspec, JSON decoded by msgspec; in flight is what its client has fetched",
}

_decode_envelope = msgspec.json.Decoder(Envelope).decode
_decode_data = msgspec.json.Decoder(Placed).decode


async def bare(url: str, count: int) -> float:
    """A loop by hand: batches, msgspec, the last offset of each partition committed at an interval."""
    return await asyncio.to_thread(_bare, url, count)


def _bare(url: str, count: int) -> float:
    consumer = Consumer(
        {
            "bootstrap.servers": url.removeprefix("kafka://"),
            "group.id": f"bare-{os.getpid()}",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "partition.assignment.strategy": "cooperative-sticky",
        }
    )
    consumer.subscribe([STREAM])
    seen, began, committed = 0, 0.0, time.perf_counter()
    done: dict[int, int] = {}
    try:
        while seen < count:
            first = consumer.poll(1.0)
            if first is None:
                continue
            for record in [first, *consumer.consume(BATCH - 1, 0)]:
                if record.error() is not None:
                    raise RuntimeError(str(record.error()))
                began = began or time.perf_counter()
                envelope = _decode_envelope(record.value() or b"")
                _decode_data(envelope.data)
                done[record.partition() or 0] = (record.offset() or 0) + 1
                seen += 1
            if time.perf_counter() - committed > COMMIT_EVERY:
                committed = time.perf_counter()
                consumer.commit(offsets=[TopicPartition(STREAM, *one) for one in done.items()], asynchronous=True)
        return (count - 1) / (time.perf_counter() - began)
    finally:
        consumer.commit(offsets=[TopicPartition(STREAM, *one) for one in done.items()], asynchronous=False)
        consumer.close()


class Watch:
    """Counts what was settled, by the batch: so the handler does nothing at all."""

    def __init__(self, wanted: int) -> None:
        self._wanted, self._seen = wanted, 0
        self._began = self._ended = 0.0
        self._done = asyncio.Event()

    def received(self, position: str, count: int) -> None:
        """The clock runs from here, before the first is decoded."""
        self._began = self._began or time.perf_counter()

    def settled(self, position: str, batch: Sequence[Settled], seconds: float) -> None:
        self._seen += len(batch)
        if self._seen >= self._wanted:
            self._ended = time.perf_counter()
            self._done.set()

    async def rate(self, seconds: float) -> float:
        """Events a second, up to the last that was settled."""
        async with asyncio.timeout(seconds):
            await self._done.wait()
        return self._wanted / (self._ended - self._began)


async def tidings(url: str, count: int, order: bool = True) -> float:
    """A typed handler, declared idempotent, that does nothing; keyed and in order, or not."""
    service = Service(f"bench{os.getpid()}", broker=url)
    watch = Watch(count)
    service.observers.append(watch)

    @service.on(Placed, idempotent=True, batch=BATCH, order="key" if order else None)
    async def nothing(placed: Placed) -> None: ...

    async with service.running():
        return await watch.rate(120)


async def tidings_batch(url: str, count: int) -> float:
    """A typed handler of lists, which does nothing."""
    service = Service(f"bench{os.getpid()}", broker=url)
    watch = Watch(count)
    service.observers.append(watch)

    @service.on_batch(Placed, idempotent=True, batch=BATCH)
    async def nothing(placed: list[Placed]) -> None: ...

    async with service.running():
        return await watch.rate(120)


def _faststream(client: str, serializer: str, *, lists: bool) -> Callable[[str, int], Awaitable[float]]:
    async def run(url: str, count: int) -> float:
        batch = BATCH if lists else 0
        return await consume(
            url, STREAM, count, client=client, serializer=serializer, batch=batch, commit_every=COMMIT_EVERY
        )

    return run


FASTSTREAM: Final = {
    f"faststream {client}{', lists' if lists else ''}, {serializer}": _faststream(client, serializer, lists=lists)
    for lists in (False, True)
    for client in BROKERS
    for serializer in SERIALIZERS
}
CONTESTANTS: dict[str, Callable[[str, int], Awaitable[float]]] = {
    BARE: bare,
    OURS: tidings,
    "tidings, no order": lambda url, count: tidings(url, count, order=False),
    OUR_LISTS: tidings_batch,
    **FASTSTREAM,
}


def measure(events: int, rounds: int) -> dict[str, list[float]]:
    """Store the events once, then let each contestant consume all of them, round by round, each in its own process."""
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory(prefix="tidings-bench-") as folder, Kafka(Path(folder) / "kafka") as server:
        asyncio.run(_fill(f"{server.url}?compression.type=gzip", events))  # aiokafka reads no lz4 by itself
        for number in range(rounds):
            for name in CONTESTANTS:
                rates[name].append(_one(name, server.url, events // FEWER if name in FASTSTREAM else events))
                print(f"round {number + 1}: {name:<28} {rates[name][-1]:>10,.0f} events/s", flush=True)
    return rates


async def _fill(url: str, events: int) -> None:
    service = Service("bench-filler", broker=url, publishes=[Placed])
    async with service.running():
        for at in range(0, events, 1000):
            made = [make_event(number) for number in range(at, min(at + 1000, events))]
            errors = [error for error in await service.publish_many(made, timeout=30) if error is not None]
            if errors:
                raise errors[0]


def _one(name: str, url: str, events: int) -> float:
    command = [sys.executable, "-m", "bench.kafka", "--one", name, "--url", url, "--events", str(events)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def _ratio(rates: dict[str, list[float]], one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True))


def _best(rates: dict[str, list[float]], *, lists: bool) -> str:
    """The better broker of FastStream's: with a call for each event, as ours has, or with lists."""
    theirs = [name for name in FASTSTREAM if (", lists" in name) == lists]
    return max(theirs, key=lambda name: statistics.median(rates[name]))


def report(rates: dict[str, list[float]], events: int, rounds: int) -> None:
    """The settings of all sides, and the medians."""
    size = len(to_structured(envelope_of(make_event(1), "bench")))
    print(f"{events} events of {size} bytes, 1,000 keys, 8 partitions; medians of {rounds} rounds, one process each")
    for side, what in SETTINGS.items():
        print(f"  {side}: {what}")
    for name, found in rates.items():
        print(
            f"  {name:<28} {statistics.median(found):>10,.0f}/s   {_ratio(rates, name, BARE):5.2f} of bare"
            f"   ({min(found):,.0f} to {max(found):,.0f})"
        )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=CONTESTANTS)
    parser.add_argument("--url", default="")
    given = parser.parse_args()
    if given.one:
        settle_garbage()  # as `tidings run` does
        print(json.dumps(asyncio.run(CONTESTANTS[given.one](given.url, given.events))))  # type: ignore[arg-type]
        return 0
    rates = measure(given.events, given.rounds)
    report(rates, given.events, given.rounds)
    verdicts = Verdicts()
    best, best_lists = _best(rates, lists=False), _best(rates, lists=True)
    verdicts.add(f"{OURS} over {best}", _ratio(rates, OURS, best), OF_FASTSTREAM)
    print(f"         {OUR_LISTS} over {best_lists}: {_ratio(rates, OUR_LISTS, best_lists):.3g}   (no target)")
    verdicts.add(f"{OURS} over the loop by hand", _ratio(rates, OURS, BARE), OF_BARE)
    return verdicts.status


if __name__ == "__main__":
    sys.exit(main())
