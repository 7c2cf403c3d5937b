"""A process of the conformance suite: one service with one handler, which may end itself by SIGKILL at a point.

``python -m tidings.testing._child JOB`` says ``ready`` on its standard output when it takes events, and at its end how
much memory it had. SIGTERM stops it with grace.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from tidings.delivery import Delivery
from tidings.event import Event
from tidings.policy import Retry
from tidings.ports import Settled
from tidings.service import Service
from tidings.stores.sqlalchemy import SqlAlchemyStore
from tidings.testing import kills
from tidings.testing._effects import ROW, effect_of, event_class

QUICK = Retry(attempts=4, first=0.05, most=0.2)
SOON = 1.0
"""Seconds after which what a killed process was about to publish is another's to publish."""


class Job(msgspec.Struct, kw_only=True):
    """What a process is to do; it crosses into that process as JSON."""

    broker: str
    service: str
    handler: str
    stream: str
    notes: str
    """The file that says which events were delivered, line by line: a kill hides nothing of it."""
    store: str | None = None
    """The database of the effects; without one the handler has none."""
    order: Literal["key"] | None = None
    causes: str = ""
    """The name of the event that each event causes."""
    pause: float = 0.0
    """Seconds that each event takes."""
    kill_at: str = ""
    """``point:count``: where and when the process ends itself."""


class Notes:
    """Writes down what is delivered: a handler's calls, and what needed none."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, position: str, id: str) -> None:
        os.write(self._file, f"{position} {id}\n".encode())

    def received(self, position: str, count: int) -> None:
        """What was taken up is noted when it has ended."""

    def settled(self, position: str, batch: Sequence[Settled], seconds: float) -> None:
        for one in batch:
            if one.outcome.kind == "duplicate":
                self.write(position, "a duplicate")


def _service(job: Job, notes: Notes) -> Service:
    caused = event_class(job.stream, job.causes) if job.causes else None
    store = SqlAlchemyStore(job.store, lease=SOON, hold=SOON) if job.store else None
    service = Service(job.service, broker=job.broker, store=store, publishes=[caused] if caused else ())
    service.observers.append(notes)
    position, worker = f"{job.service}.{job.handler}", str(os.getpid())
    on = service.on(
        event_class(job.stream), name=job.handler, order=job.order, retry=QUICK, idempotent=job.store is None
    )

    async def work(event: Any) -> Any:
        await asyncio.sleep(job.pause)
        return caused(id=event.id, key=event.key) if caused else None

    if job.store is None:

        @on
        async def directly(event: Event) -> Any:
            notes.write(position, getattr(event, "id", ""))
            return await work(event)

    else:

        @on
        async def in_transaction(event: Event, db: AsyncConnection, delivery: Delivery) -> Any:
            effect = effect_of(position, event, delivery, worker)
            notes.write(position, effect.id)
            await db.execute(ROW, effect._asdict())
            return await work(event)

    return service


async def main(job: Job) -> None:
    """Run until SIGTERM, or until the point."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    kills.install({kills.VARIABLE: job.kill_at})
    async with _service(job, Notes(job.notes)).running():
        print("ready", flush=True)
        await stopped.wait()
    print("peak", _peak(), flush=True)


def _peak() -> int:
    """The most memory that this program ever had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # what `getrusage` says on Linux is not less than what the parent had when it started us
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(message)s")
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Job)))
