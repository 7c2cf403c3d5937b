"""How much memory a worker takes while a million events wait and its handler is slow.

``python -m bench.memory [--events 1000000] [--seconds 20]``
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.contestants import Placed, make_event
from bench.verdict import Verdicts
from tidings import Service
from tidings.brokers.nats.embedded import EmbeddedServer

LIMIT_MB = 150
WORKER = """
import asyncio, sys
sys.path.insert(0, {root!r})
from bench.contestants import Placed
from tidings import Service
service = Service("slow")

@service.on(Placed, idempotent=True)
async def slow(placed: Placed) -> None:
    await asyncio.sleep(0.01)
"""


async def fill(url: str, events: int) -> float:
    """Store the backlog; the rate at which it went."""
    service = Service("bench-filler", broker=url, publishes=[Placed])
    began = time.perf_counter()
    async with service.running():
        for at in range(0, events, 1000):
            made = [make_event(number) for number in range(at, at + 1000)]
            errors = [error for error in await service.publish_many(made, timeout=60) if error is not None]
            if errors:
                raise errors[0]
    return events / (time.perf_counter() - began)


def peak_mb(pid: int) -> float:
    """The most memory the process ever had resident, as the kernel counts it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the kernel does not tell")


async def measure(events: int, seconds: float) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="tidings-memory-") as name:
        folder = Path(name)
        (folder / "slow_worker.py").write_text(WORKER.format(root=str(Path(__file__).parents[1])))
        server = EmbeddedServer(folder / "nats")
        url = await server.start()
        try:
            rate = await fill(url, events)
            worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tidings.cli", "run", "slow_worker:service", "--broker", url, "--port", "0"),
                cwd=folder,
                stdout=subprocess.DEVNULL,
            )
            try:
                await asyncio.sleep(seconds)
                if worker.returncode is not None:
                    raise RuntimeError(f"the worker ended with {worker.returncode}")
                return rate, peak_mb(worker.pid)
            finally:
                if worker.returncode is None:
                    worker.terminate()
                    await worker.wait()
        finally:
            await server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    rate, peak = asyncio.run(measure(given.events, given.seconds))
    print(f"{given.events:,} events of about 300 bytes stored at {rate:,.0f}/s through publish_many, fsync always")
    verdicts = Verdicts()
    verdicts.add(
        "peak resident memory of a worker with a handler of 10 ms", peak, LIMIT_MB, wanted="at most", unit="MB"
    )
    return verdicts.status


if __name__ == "__main__":
    sys.exit(main())
