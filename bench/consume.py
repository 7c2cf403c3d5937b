"""Consume rates: Tidings against a bare loop and against FastStream, on one server, interleaved, as ratios.

``python -m bench.consume [--events 20000] [--rounds 5]``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from bench.contestants import ACK_WAIT, CONFIRM_EVERY, CONTESTANTS, IN_FLIGHT, STREAM, Placed, make_event
from bench.verdict import Verdicts
from tidings import Service
from tidings.brokers.nats.embedded import EmbeddedServer
from tidings.envelope import envelope_of, to_structured

BARE, OURS = "bare continuous pull", "tidings"


class Result(msgspec.Struct, kw_only=True):
    """Rates of each contestant, one for each round."""

    rates: dict[str, list[float]]

    def ratio(self, one: str, other: str) -> float:
        """The median of the ratios of the single rounds."""
        return statistics.median(a / b for a, b in zip(self.rates[one], self.rates[other], strict=True))

    @property
    def best_faststream(self) -> str:
        names = [name for name in self.rates if name.startswith("faststream")]
        return max(names, key=lambda name: statistics.median(self.rates[name]))


async def measure(events: int, rounds: int) -> Result:
    """Store the events once, then let each contestant consume all of them, round by round, each in its own process."""
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory(prefix="tidings-bench-") as folder:
        server = EmbeddedServer(Path(folder) / "nats")
        url = await server.start()
        try:
            await _fill(url, events)
            for number in range(rounds):
                for name in CONTESTANTS:
                    rate = await asyncio.to_thread(_one, name, url, events)
                    rates[name].append(rate)
                    print(f"round {number + 1}: {name:<28} {rate:>10,.0f} events/s", flush=True)
        finally:
            await server.stop()
    return Result(rates=rates)


async def _fill(url: str, events: int) -> None:
    service = Service("bench-filler", broker=url, publishes=[Placed])
    async with service.running():
        for at in range(0, events, 1000):
            made = [make_event(number) for number in range(at, min(at + 1000, events))]
            errors = [error for error in await service.publish_many(made, timeout=30) if error is not None]
            if errors:
                raise errors[0]


def _one(name: str, url: str, events: int) -> float:
    command = [sys.executable, "-m", "bench.consume", "--one", name, "--url", url, "--events", str(events)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def report(result: Result, events: int, rounds: int) -> str:
    """The settings of all sides, and the medians."""
    size = len(to_structured(envelope_of(make_event(1), "bench")))
    lines = [
        f"{events} events of {size} bytes, 1,000 keys; medians of {rounds} rounds, interleaved, one process each",
        f"all sides: stream {STREAM!r}, {IN_FLIGHT} in flight, explicit acks of every event, each {CONFIRM_EVERY}th"
        f" confirmed, ack wait {ACK_WAIT:.0f} s, server sync_interval always; one durable consumer, but for tidings,"
        " which keeps the order of keys and so has one for each of its eight shares",
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
        print(json.dumps(asyncio.run(CONTESTANTS[given.one](given.url, given.events))))  # type: ignore[arg-type]  # coroutine functions, kept as callables
        return 0
    result = asyncio.run(measure(given.events, given.rounds))
    print(report(result, given.events, given.rounds))
    verdicts = Verdicts()
    verdicts.add("tidings / bare", result.ratio(OURS, BARE), 0.8)
    verdicts.add(f"tidings / {result.best_faststream}", result.ratio(OURS, result.best_faststream), 4)
    return verdicts.status


if __name__ == "__main__":
    sys.exit(main())
