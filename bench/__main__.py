"""Everything that is measured, one after the other, each within a time: ``python -m bench [part of a name …]``.

A target that is missed is printed as NOT MET; the rest is measured all the same, and the exit status is 1.
"""

from __future__ import annotations

import subprocess
import sys

MINUTES = {
    "bench.consume": 5,
    "bench.startup": 2,
    "bench.memory": 5,
    "bench.effects.throughput": 8,
    "bench.effects.failing": 8,
    "bench.effects.hot_rows": 10,
    "bench.effects.latency": 4,
    "bench.effects.full_inbox": 15,
    "bench.effects_redis": 5,
    "bench.relay": 5,
}
"""How long each may take, in minutes."""


def main(asked: list[str]) -> int:
    missed: list[str] = []
    for name, minutes in MINUTES.items():
        if asked and not any(part in name for part in asked):
            continue
        print(f"\n== {name}", flush=True)
        try:
            done = subprocess.run([sys.executable, "-m", name], timeout=60 * minutes, check=False)
        except subprocess.TimeoutExpired:
            missed.append(f"{name} (it did not end within {minutes} minutes)")
            continue
        if done.returncode:
            missed.append(name)
    print(f"\nNOT MET: {', '.join(missed)}" if missed else "\nall targets are met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
