"""What metrics cost: the same events through the same path, with and without them, turn by turn.

On the memory broker and without a store, where nothing else takes time: elsewhere their share is smaller.

``python -m bench.sight [--events 20000] [--rounds 5]``
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time

from bench.contestants import Placed, make_event
from bench.verdict import Verdicts
from tidings import Service
from tidings.observe import Observability
from tidings.testing import MemoryBroker

MOST_SHARE = 0.05


async def once(events: int, *, seen: bool, alone: bool) -> float:
    """Seconds of processor time that a stored backlog takes; `alone`: each event is a batch of its own."""
    broker, filler = MemoryBroker(), Service("filler", publishes=[Placed])
    async with filler.running(broker=broker):
        await filler.publish_many([make_event(number) for number in range(events)], timeout=60)
    service, handled = Service("reader"), 0
    done = asyncio.Event()

    @service.on(Placed, idempotent=True, order=None, batch=1 if alone else None)
    async def handle(placed: Placed) -> None:
        nonlocal handled
        handled += 1
        if handled == events:
            done.set()

    async with contextlib.AsyncExitStack() as stack:
        if seen:
            await stack.enter_async_context(Observability(service, port=0))
        began = time.process_time()
        await stack.enter_async_context(service.running(broker=broker))
        async with asyncio.timeout(60):
            await done.wait()
        return time.process_time() - began


def measure(events: int, rounds: int, *, alone: bool) -> tuple[float, float]:
    """The best round without metrics, and with them."""
    plain, seen = [], []
    for _ in range(rounds):
        plain.append(asyncio.run(once(events, seen=False, alone=alone)))
        seen.append(asyncio.run(once(events, seen=True, alone=alone)))
    return min(plain), min(seen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    verdicts = Verdicts()
    for what, alone, events in (("under load", False, given.events), ("one by one", True, given.events // 4)):
        plain, seen = measure(events, given.rounds, alone=alone)
        print(f"{what}: {events / plain:,.0f} events a second of processor time, {events / seen:,.0f} with metrics")
        cost = 1_000_000 * (seen - plain) / events
        print(f"   {cost:.1f} µs an event")
        if not alone:
            verdicts.add(
                "share of metrics in the time of an event", (seen - plain) / plain, MOST_SHARE, wanted="at most"
            )
    return verdicts.status


if __name__ == "__main__":
    raise SystemExit(main())
