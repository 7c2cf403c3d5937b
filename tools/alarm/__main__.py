"""`make alarm`: the drill of the alerts, in some minutes.

python -m tools.alarm
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tools.alarm.drill import Drill


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="tidings-alarm-") as folder:
        drill = Drill(Path(folder))
        told = asyncio.run(drill.run())
        lost, twice = drill.lost, drill.twice
    right = sum(one.right for one in told)
    print(f"{right}/{len(told)} right, orders={len(drill.accepted)} lost={lost} applied_twice={twice}")
    return 0 if right == len(told) and not lost and not twice else 1


if __name__ == "__main__":
    sys.exit(main())
