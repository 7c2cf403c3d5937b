"""``tidings replay --as``: a handler as a new position, run here until it has caught up."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Final

from tidings.cli.failures import CommandError, Status
from tidings.cli.options import configure_log
from tidings.cli.output import Out
from tidings.cli.progress import Progress
from tidings.cli.signals import Stop
from tidings.handler import Handler
from tidings.replay import check
from tidings.running import Running
from tidings.service import Service

LOOK: Final = 0.5
"""Seconds between two looks at how far it has come."""


async def run_beside(
    service: Service,
    handler: Handler,
    name: str,
    since: datetime,
    broker: str | None,
    store: str | None,
    stop: Stop,
    out: Out,
) -> int:
    """Run it until nothing of the history is left, or until it is stopped; its place is kept at the broker."""
    configure_log(out.json, "WARNING")
    position = f"{service.name}.{name}"
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    stop.bind(lambda: loop.call_soon_threadsafe(stopped.set))
    async with service.beside(handler.name, name, since, broker=broker, store=store) as running:
        check(running.broker)
        out.tell(f"{position} runs here beside {handler.position}", position=position, handler=handler.position)
        handled, left = await _until_caught_up(running, position, stopped, out)
    if left:
        out.tell(
            f"{left:,} events are left; the same command goes on where {position} is",
            position=position,
            handled=handled,
            left=left,
        )
        return Status.INTERRUPTED
    out.tell(
        f"{position} has caught up. To go on with what comes, register the function under this name too:"
        f" @{service.name}.on(…, name={name!r}), and start the service. To give it up, remove its position at the"
        " broker",
        position=position,
        handled=handled,
        left=0,
    )
    return Status.OK


async def _until_caught_up(running: Running, position: str, stopped: asyncio.Event, out: Out) -> tuple[int, int]:
    """How many are handled, and how many are left."""
    (worker,) = running.workers
    most = 0
    with Progress(out, position, None) as progress:
        while True:
            if worker.trouble and worker.failures:
                raise CommandError(f"{position}: {worker.trouble}")
            backlog = await worker.backlog()
            left = 0 if backlog is None else backlog.pending + backlog.in_flight + backlog.scheduled
            most = max(most, left)
            progress.step(max(0, most - left - progress.done))
            if not left or stopped.is_set():
                return most - left, left
            try:
                async with asyncio.timeout(LOOK):
                    await stopped.wait()
            except TimeoutError:
                pass
