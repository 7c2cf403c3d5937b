"""Before the tests run: can every server that they need be had? Names each that cannot, and why.

Servers come with the requirements or are started by the tests on loopback; nothing is installed here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

STARTS_WITHIN = 30.0
"""Seconds in which a server's program must say its version."""


def nats_server() -> str:
    from tidings.brokers.nats.embedded_binary import verified_binary

    answer = subprocess.run(
        [str(verified_binary()), "--version"],
        capture_output=True,
        text=True,
        timeout=STARTS_WITHIN,
        stdin=subprocess.DEVNULL,
        check=True,
    )
    return answer.stdout.strip().removeprefix("nats-server:").strip()


SERVERS: dict[str, Callable[[], str]] = {"nats-server": nats_server}
"""What the tests need, and how to find out its version; whatever that raises is why it cannot be had."""


def main() -> int:
    missing = 0
    for name, version in SERVERS.items():
        try:
            print(f"have {name} {version()}", flush=True)
        except Exception as reason:
            missing += 1
            print(f"cannot be had: {name}: {str(reason) or type(reason).__name__}", file=sys.stderr, flush=True)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
