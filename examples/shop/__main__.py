"""`python -m examples.shop`: run the demo."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from examples.shop.demo import Options, run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.shop", description="A shop of three services on a bad day."
    )
    parser.add_argument("--orders", type=int, default=3000, help="how many orders to publish (3000)")
    parser.add_argument("--per-second", type=float, default=400.0, help="how fast (400)")
    parser.add_argument("--seed", type=int, default=7, help="what happens when, at random (7)")
    parser.add_argument("--folder", type=Path, help="keep everything there; otherwise a temporary folder is removed")
    parser.add_argument("--broker", default="", help="URL of a broker that runs; otherwise one of its own")
    parser.add_argument("--forgetful", action="store_true", help="turn `once` off: the comparison must fail")
    given = parser.parse_args(arguments)
    options = Options(
        orders=given.orders,
        per_second=given.per_second,
        seed=given.seed,
        folder=given.folder,
        broker=given.broker,
        forgetful=given.forgetful,
    )
    try:
        return asyncio.run(_until_stopped(options))
    except asyncio.CancelledError:
        sys.stderr.write("stopped before the end: nothing was compared\n")
        return 130


async def _until_stopped(options: Options) -> int:
    """Run; the first Ctrl-C or SIGTERM ends it in order, a second one changes nothing, so that no process is left."""
    loop, demo = asyncio.get_running_loop(), asyncio.current_task()
    assert demo is not None
    asked = False

    def stop() -> None:
        nonlocal asked
        sys.stderr.write("still stopping …\n" if asked else "stopping the workers and the server …\n")
        if not asked:
            asked = True
            demo.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return await run(options)


if __name__ == "__main__":
    sys.exit(main())
