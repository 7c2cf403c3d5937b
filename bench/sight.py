"""What metrics cost: the same stored events read by one new service after the other, with and without them, in turn.

``python -m bench.sight [--events 20000] [--rounds 7]``
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from pathlib import Path

from bench.contestants import Placed, make_event
from bench.verdict import Verdicts
from tidings import Service
from tidings.brokers.nats.embedded import EmbeddedServer
from tidings.observe import Observability

MOST_SHARE = 0.05
LIMIT = 60.0


async def fill(url: str, events: int) -> None:
    service = Service("filler", broker=url, publishes=[Placed])
    async with service.running():
        for at in range(0, events, 1000):
            made = [make_event(number) for number in range(at, min(at + 1000, events))]
            if errors := [error for error in await service.publish_many(made, timeout=LIMIT) if error is not None]:
                raise errors[0]


async def once(url: str, name: str, events: int, *, seen: bool) -> tuple[float, float]:
    """Seconds, and seconds of processor time, in which a new service reads all of them."""
    service, handled, done = Service(name, broker=url), 0, asyncio.Event()

    @service.on(Placed, name="handle", idempotent=True, order=None)
    async def handle(placed: Placed) -> None:
        nonlocal handled
        handled += 1
        if handled == events:
            done.set()

    async with contextlib.AsyncExitStack() as stack:
        if seen:
            await stack.enter_async_context(Observability(service, port=0))
        began, used = time.perf_counter(), time.process_time()
        await stack.enter_async_context(service.running())
        async with asyncio.timeout(LIMIT):
            await done.wait()
        return time.perf_counter() - began, time.process_time() - used


async def measure(events: int, rounds: int) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """What the rounds took without metrics, and with them."""
    plain, seen = [], []
    with tempfile.TemporaryDirectory(prefix="tidings-sight-") as folder:
        server = EmbeddedServer(Path(folder) / "nats")
        url = await server.start()
        try:
            await fill(url, events)
            await once(url, "warm", events, seen=True)
            for number in range(rounds):
                plain.append(await once(url, f"plain-{number}", events, seen=False))
                seen.append(await once(url, f"seen-{number}", events, seen=True))
        finally:
            await server.stop()
    return plain, seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    plain, seen = asyncio.run(measure(given.events, given.rounds))
    best, best_seen = min(plain)[0], min(seen)[0]
    used, used_seen = min(one for _, one in plain), min(one for _, one in seen)
    print(f"{given.events / best:,.0f} events a second, {given.events / best_seen:,.0f} with metrics")
    print(f"processor: {1e6 * used / given.events:.1f} µs an event, {1e6 * used_seen / given.events:.1f} with metrics")
    verdicts = Verdicts()
    # A worker's throughput ends where its processor does; by the clock the server counts as well, and the machine.
    verdicts.add("share of a worker's time that metrics cost", (used_seen - used) / used, MOST_SHARE, wanted="at most")
    return verdicts.status


if __name__ == "__main__":
    raise SystemExit(main())
