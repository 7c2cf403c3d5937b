"""How long after the call of publish an effect is committed, at a hundred events a second, beside the same by hand.

``python -m bench.effects.latency [--events 300] [--rounds 3] [--rate 100]``

Both sides publish and apply with their own means: by hand `js.publish` with nats-py, the service `publish`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
import uuid
from collections.abc import Awaitable, Callable

import nats

from bench.effects.events import STREAM, Taken, make_events
from bench.effects.world import AWAITED, TITLES, TX, World, world
from bench.verdict import Verdicts
from tidings import Service
from tidings.envelope import STRUCTURED_HEADERS, envelope_of, to_structured

BATCH = 256
WARM_UP = 20
"""Events at the beginning that do not count: connections open and statements are prepared."""
TARGET = 1.0


class Line:
    """Events at a steady rate, and the moment of each call."""

    def __init__(self, events: list[Taken], rate: float) -> None:
        self._events, self._rate = events, rate
        self.called: dict[int, float] = {}

    async def publish(self, publish: Callable[[Taken], Awaitable[object]]) -> None:
        began = time.perf_counter()
        for number, event in enumerate(self._events):
            await asyncio.sleep(max(0.0, began + number / self._rate - time.perf_counter()))
            self.called[event.quantity] = time.perf_counter()
            await publish(event)

    async def by_hand(self, url: str) -> None:
        connection = await nats.connect(url)
        js = connection.jetstream()
        run = uuid.uuid4().hex

        async def publish(event: Taken) -> None:
            body = to_structured(envelope_of(event, "bench"))
            headers = {"Nats-Msg-Id": f"{run}-{event.quantity}", **STRUCTURED_HEADERS}
            await js.publish(f"{STREAM}.taken.0", body, headers=headers)

        try:
            await self.publish(publish)
        finally:
            await connection.close()

    async def service(self, url: str) -> None:
        service = Service("bench-publisher", broker=url, publishes=[Taken])
        async with service.running():
            await self.publish(service.publish)


async def latencies(servers: World, database: str, contestant: str, events: list[Taken], rate: float) -> list[float]:
    """Milliseconds from the call of publish to the commit, of each event."""
    line = Line(events, rate)
    publish = line.by_hand if contestant == TX else line.service
    run = await servers.run(
        contestant, database, "--commits", "--new", events=events, beside=lambda: publish(servers.nats)
    )
    return [(run.commits[number] - at) * 1000 for number, at in line.called.items()][WARM_UP:]


async def measure(events: int, rounds: int, rate: float) -> tuple[str, dict[str, list[list[float]]]]:
    """The settings, and the latencies of both sides, round by round."""
    found: dict[str, list[list[float]]] = {TX: [], AWAITED: []}
    async with world(BATCH) as servers:
        database = await servers.database("bench")
        await servers.fill(0)
        for number in range(rounds):
            for contestant, of_it in found.items():
                made = list(make_events(events + WARM_UP))  # anew: each event that is published has an id of its own
                of_it.append(await latencies(servers, database, contestant, made, rate))
                print(f"round {number + 1}: {TITLES[contestant]:<36} {_shown(of_it[-1])}", flush=True)
        return servers.settings(events), found


def _shown(milliseconds: list[float]) -> str:
    ranked = sorted(milliseconds)
    return f"median {statistics.median(ranked):.2f} ms, 99 of 100 within {ranked[int(len(ranked) * 0.99) - 1]:.2f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=100.0)
    given = parser.parse_args()
    settings, found = asyncio.run(measure(given.events, given.rounds, given.rate))
    print(f"at {given.rate:g} a second, {given.rounds} rounds, interleaved\n{settings}")
    for contestant, rounds_of_it in found.items():
        print(f"  {TITLES[contestant]:<36} {_shown([one for each in rounds_of_it for one in each])}")
    more = [statistics.median(a) - statistics.median(b) for a, b in zip(found[AWAITED], found[TX], strict=True)]
    verdicts = Verdicts()
    verdicts.add("longer than by hand, at the median", statistics.median(more), TARGET, wanted="at most", unit="ms")
    return verdicts.status


if __name__ == "__main__":
    sys.exit(main())
