"""Everything that is measured, one after the other, each within a time: ``python -m bench [part of a name …]``.

A target that is missed is printed as NOT MET; the rest is measured all the same, and the exit status is 1.
"""

from __future__ import annotations

import signal
import subprocess
import sys

MINUTES = {
    "bench.consume": 5,
    "bench.kafka": 8,
    "bench.rabbitmq": 5,
    "bench.retries": 10,
    "bench.poison": 20,
    "bench.startup": 2,
    "bench.memory": 5,
    "bench.effects.throughput": 8,
    "bench.effects.failing": 8,
    "bench.effects.hot_rows": 10,
    "bench.effects.latency": 4,
    "bench.effects.full_inbox": 15,
    "bench.effects_redis": 5,
    "bench.relay": 5,
    "bench.sight": 3,
}
"""How long each may take, in minutes."""


def run(name: str, minutes: float) -> str:
    """Run one, and say why it did not do well, if so."""
    process = subprocess.Popen([sys.executable, "-m", name])
    try:
        process.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # so that it stops the servers that it started
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return f"it did not end within {minutes:g} minutes"
    return {0: "", 1: "a target was missed, or it failed"}.get(process.returncode, f"exit {process.returncode}")


def main(asked: list[str]) -> int:
    missed: list[str] = []
    for name, minutes in MINUTES.items():
        if asked and not any(part in name for part in asked):
            continue
        print(f"\n== {name}", flush=True)
        if reason := run(name, minutes):
            missed.append(f"{name} ({reason})")
    print(f"\nNOT MET: {', '.join(missed)}" if missed else "\nall targets are met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
