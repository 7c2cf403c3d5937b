"""What commands that only speak to a broker share: the broker while they work, and the way to stop them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tidings.brokers import broker_from
from tidings.cli.failures import CommandError, Status
from tidings.cli.options import CLI_SERVICE
from tidings.cli.signals import Stop
from tidings.pace import Pace
from tidings.ports import Broker, Plan

Stopped = Callable[[], bool]
"""Asked between two steps: whether to go on with no more of them."""


def at_broker(where: str | Broker, work: Callable[[Broker], Awaitable[int]]) -> int:
    """Do some work with an open broker; returns the exit status."""

    async def main() -> int:
        broker = broker_from(where)
        try:
            await broker.open(Plan(service=CLI_SERVICE))
            return await work(broker)
        finally:
            await broker.close()

    return asyncio.run(main())


def from_now_on(stop: Stop) -> Stopped:
    """Have the first Ctrl-C only ask to stop; called when the work begins, on its loop."""
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    stop.bind(lambda: loop.call_soon_threadsafe(asked.set))
    return asked.is_set


def pace_of(rate: float | None) -> Pace:
    """Raises CommandError: it is no rate."""
    if rate is not None and not rate > 0:
        raise CommandError(f"--rate {rate:g}: more than 0 a second", Status.USAGE)
    return Pace(rate)
