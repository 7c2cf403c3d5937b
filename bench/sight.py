"""What metrics cost: one new service after the other reads the same stored events, with and without them.

``python -m bench.sight [--events 40000] [--blocks 24]``

The rounds are short, and go without, with, with, without: what drifts meanwhile meets both sides alike. Each such block
gives one ratio. The verdict is of the median of the ratios, so that a block in which the machine did something else
counts once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import platform
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.contestants import Count, Placed, make_event
from bench.verdict import Verdicts
from tidings import Service
from tidings.brokers.nats.embedded import EmbeddedServer
from tidings.observe import Observability

MOST_SHARE = 0.05
LIMIT = 60.0
ORDER = (False, True, True, False)
"""Whether there are metrics, in the rounds of a block."""
SAME = (
    "one process, one service at a time, a handler that does nothing and is declared idempotent, order=None, one lane;"
    " the collector of garbage is run before each round, and runs by itself in it"
)


class Round(msgspec.Struct, frozen=True):
    """What one service took for all events: seconds on the clock, first to last, and of processor time."""

    clock: float
    processor: float


class Block(msgspec.Struct, frozen=True):
    """What the rounds of a block took, both with metrics and both without."""

    plain: Round
    seen: Round

    @property
    def throughput(self) -> float:
        """With metrics, of that without."""
        return self.plain.clock / self.seen.clock

    @property
    def processor(self) -> float:
        return self.seen.processor / self.plain.processor


async def fill(url: str, events: int) -> None:
    service = Service("filler", broker=url, publishes=[Placed])
    async with service.running():
        for at in range(0, events, 1000):
            made = [make_event(number) for number in range(at, min(at + 1000, events))]
            if errors := [error for error in await service.publish_many(made, timeout=LIMIT) if error is not None]:
                raise errors[0]


async def once(url: str, name: str, events: int, *, seen: bool) -> Round:
    """A new service reads all of them."""
    service, count, used = Service(name, broker=url), Count(events), [0.0, 0.0]

    @service.on(Placed, name="handle", idempotent=True, order=None)
    async def handle(placed: Placed) -> None:
        at = count.one()
        if at == 1:
            used[0] = time.process_time()
        elif at == events:
            used[1] = time.process_time()

    gc.collect()
    async with contextlib.AsyncExitStack() as stack:
        watched = None
        if seen:
            watched = await stack.enter_async_context(Observability(service, port=0))
        await stack.enter_async_context(service.running())
        async with asyncio.timeout(LIMIT):
            await count.done.wait()
        if watched is not None:
            await _has_counted(watched.url, events)
    return Round(count.ended - count.began, used[1] - used[0])


async def _has_counted(url: str, events: int) -> None:
    """Look at the page, so that no side is measured that did not do its work."""
    wanted = f'type="bench.placed"}} {float(events)}'
    async with asyncio.timeout(LIMIT):
        while wanted not in (page := await asyncio.to_thread(_page, url)):
            assert "tidings_outcomes_total" in page
            await asyncio.sleep(0.05)


def _page(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


async def measure(events: int, blocks: int) -> list[Block]:
    measured = []
    with tempfile.TemporaryDirectory(prefix="tidings-sight-") as folder:
        server = EmbeddedServer(Path(folder) / "nats")
        url = await server.start()
        try:
            await fill(url, events)
            for seen in (False, True):
                await once(url, f"warm-{seen}".lower(), events, seen=seen)
            for block in range(blocks):
                rounds = [await once(url, f"b{block}-{place}", events, seen=seen) for place, seen in enumerate(ORDER)]
                measured.append(Block(_of(rounds, seen=False), _of(rounds, seen=True)))
        finally:
            await server.stop()
    return measured


def _of(rounds: Sequence[Round], *, seen: bool) -> Round:
    """Those of a block that are of one side, together."""
    of = [one for one, there in zip(rounds, ORDER, strict=True) if there is seen]
    return Round(sum(one.clock for one in of), sum(one.processor for one in of))


def spread(ratios: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"median {middle:.3f}, middle half {low:.3f} to {high:.3f}, all {min(ratios):.3f} to {max(ratios):.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=40_000)
    parser.add_argument("--blocks", type=int, default=24)
    given = parser.parse_args()
    cores, load = os.cpu_count(), os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {cores} processors, load {load:.2f} at the start")
    print(f"both sides: {SAME}")
    print("with metrics: Observability with its server, its heartbeat and its looks, and one scrape after each round")
    print(f"{given.events:,} events a round, {given.blocks} blocks of {len(ORDER)} rounds", flush=True)
    blocks = asyncio.run(measure(given.events, given.blocks))
    for side, rounds in (("without", [one.plain for one in blocks]), ("with", [one.seen for one in blocks])):
        rate = statistics.median(2 * given.events / one.clock for one in rounds)
        cost = statistics.median(1e6 * one.processor / (2 * given.events) for one in rounds)
        print(f"{side:>8}: {rate:,.0f} events/s, {cost:.2f} µs of processor time an event (medians)")
    throughputs, processors = [one.throughput for one in blocks], [one.processor for one in blocks]
    print(f"throughput with, of without: {spread(throughputs)}")
    print(f"processor time with, of without: {spread(processors)}")
    verdicts = Verdicts()
    share = 1 - statistics.median(throughputs)
    verdicts.add("share of throughput that metrics cost", share, MOST_SHARE, wanted="at most")
    share = statistics.median(processors) - 1
    verdicts.add("share of processor time that metrics cost", share, MOST_SHARE, wanted="at most")
    return verdicts.status


if __name__ == "__main__":
    raise SystemExit(main())
