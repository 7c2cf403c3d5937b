"""How long it takes to be there: `import tidings` in bare interpreter starts, and `tidings run` until it is ready.

``python -m bench.startup [--rounds 7]``
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
from pathlib import Path

from bench.verdict import Verdicts
from tidings.brokers.nats.embedded import EmbeddedServer

SERVICE = """
from sqlalchemy.ext.asyncio import AsyncConnection
from tidings import Event, Service

class Placed(Event, type="startup.placed", version=1, key="order_id"):
    order_id: str

service = Service("startup", store="sqlite:///startup.db")

@service.on(Placed)
async def handle(placed: Placed, db: AsyncConnection) -> None: ...
"""


def seconds(*command: str) -> float:
    """How long a command takes."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return time.perf_counter() - began


def import_cost(rounds: int) -> tuple[float, float]:
    """Medians of a bare interpreter start, and of one that imports tidings, in seconds; interleaved."""
    bare, ours = [], []
    for _ in range(rounds):
        bare.append(seconds(sys.executable, "-c", "pass"))
        ours.append(seconds(sys.executable, "-c", "import tidings"))
    return statistics.median(bare), statistics.median(ours)


def until_ready(url: str, folder: Path) -> float:
    """Seconds from typing `tidings run` until it says that it is ready, against a running server."""
    command = [
        sys.executable,
        "-m",
        "tidings.cli",
        "run",
        "shop_startup:service",
        "--broker",
        url,
        "--port",
        "0",
        "--json",
    ]
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if "ready" in entry:
                return time.perf_counter() - began
        raise RuntimeError("tidings run ended before it was ready")
    finally:
        process.terminate()
        process.wait(timeout=30)
        if process.stdout is not None:
            process.stdout.close()


async def ready_times(rounds: int) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="tidings-startup-") as name:
        folder = Path(name)
        (folder / "shop_startup.py").write_text(SERVICE)
        server = EmbeddedServer(folder / "nats")
        url = await server.start()
        try:
            return [await asyncio.to_thread(until_ready, url, folder) for _ in range(rounds)]
        finally:
            await server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    bare, ours = import_cost(given.rounds)
    ready = asyncio.run(ready_times(given.rounds))
    print(f"medians of {given.rounds} rounds, python {sys.version.split()[0]}")
    print(f"bare interpreter start {bare * 1000:.0f} ms; with import tidings {ours * 1000:.0f} ms")
    print(f"tidings run was ready after {max(ready):.2f} s at the slowest")
    verdicts = Verdicts()
    verdicts.add("import tidings", (ours - bare) / bare, 5, wanted="at most", unit="bare starts")
    verdicts.add("tidings run until it is ready", statistics.median(ready), 1, wanted="at most", unit="s")
    return verdicts.status


if __name__ == "__main__":
    sys.exit(main())
