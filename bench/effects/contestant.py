"""One contestant in a process of its own; `bench.effects.world` starts it.

It works until its standard input ends, and says on its output how far it is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable
from typing import Any

import asyncpg

from bench.effects import by_hand
from bench.effects.events import STREAM, UPDATE, Refused, Taken
from bench.effects.progress import Progress
from tidings import FailedEvents, Retry, Service, points
from tidings.stores.postgres import Statements

ACK_WAIT = 15.0  # what the broker's URL asks for as well
RETRY = Retry(attempts=2, first=0.01, most=0.01)


def service_of(kind: str, given: argparse.Namespace, progress: Progress) -> Service:
    """The service of this kind, with one handler."""
    service = Service(given.name, broker=f"{given.nats}?ack_wait={ACK_WAIT:g}", store=given.postgres)
    service.observers.append(progress)
    refuses: str | None = given.failing
    tell: bool = given.commits
    begun: list[int] = []

    def began(taken: Taken) -> None:
        if refuses == "early" and taken.bad:
            raise Refused("this one never")
        if tell:
            begun.append(taken.quantity)

    def done(taken: Taken) -> None:
        if refuses == "late" and taken.bad:
            raise Refused("this one never")

    async def awaited(taken: Taken, db: asyncpg.Connection) -> None:
        began(taken)
        await db.execute(UPDATE, taken.quantity, taken.sku)
        done(taken)

    async def queued(taken: Taken, db: Statements) -> None:
        began(taken)
        db.execute(UPDATE, taken.quantity, taken.sku)
        done(taken)

    async def many(events: list[Taken], db: asyncpg.Connection) -> None:
        if refuses == "named" and (bad := [taken for taken in events if taken.bad]):
            raise FailedEvents((taken, Refused("this one never")) for taken in bad)
        for taken in events if refuses or tell else ():
            began(taken)
        await db.executemany(UPDATE, [(taken.quantity, taken.sku) for taken in events])
        for taken in events if refuses else ():
            done(taken)

    def reached(point: str) -> None:
        if point == points.AFTER_COMMIT:
            progress.committed(begun)
            begun.clear()

    if tell:
        points.reached = reached
    register = service.on_batch if kind == "many" else service.on
    handlers: dict[str, Callable[..., Any]] = {"awaited": awaited, "queued": queued, "many": many}
    register(
        Taken,
        name="take",
        order="key" if given.ordered else None,
        batch=given.batch,
        retry=RETRY,
        start="new" if given.new else "all",
    )(handlers[kind])
    return service


async def work(given: argparse.Namespace) -> None:
    side, kind = given.contestant.split("-")
    progress = Progress(commits=given.commits)
    until = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    if side == "ours":
        async with service_of(kind, given, progress).running():
            progress.ready()
            await until
        return
    in_flight = 4 * given.batch  # as the service asks for
    feed = by_hand.Feed(
        given.nats, STREAM, given.name, batch=given.batch, in_flight=in_flight, ack_wait=ACK_WAIT, new=given.new
    )
    task = asyncio.create_task(by_hand.run(kind, feed, given.postgres, progress, given.batch))
    await asyncio.wait({task, until}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant")
    parser.add_argument("--nats", required=True)
    parser.add_argument("--postgres", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--ordered", action="store_true")
    parser.add_argument("--failing", choices=["early", "late", "named"])
    parser.add_argument("--commits", action="store_true")
    parser.add_argument("--new", action="store_true")
    logging.basicConfig()
    asyncio.run(work(parser.parse_args()))


if __name__ == "__main__":
    main()
