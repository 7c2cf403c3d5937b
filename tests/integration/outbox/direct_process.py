"""A process that changes keys which others change too, and publishes what it causes: its broker is a file.

python -m tests.integration.outbox.direct_process DATABASE FILE COUNT [leave | kill POINT N]

It ends when the outbox is empty, or with `leave` right after its last change; its relay goes with it. SIGTERM makes the
change it is at its last.

Each change counts its key up in the transaction that emits the event, so the numbers tell the order of the commits.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from tidings import points
from tidings.delivery import Message
from tidings.errors import WorldError
from tidings.stores.sqlalchemy import SqlAlchemyStore

KEYS = 3
NEXT = sa.text("UPDATE counter SET n = n + 1 WHERE key = :key RETURNING n")


def kill_at(point: str, times: int) -> None:
    left = times

    def reached(name: str) -> None:
        nonlocal left
        left -= name == point
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    points.reached = reached


async def main(database: Path, file: Path, count: int, *, leaves: bool) -> None:
    store = SqlAlchemyStore(f"sqlite:///{database}", lock_timeout=5, poll=0.05, lease=1.0, hold=1.0)
    await store.open()

    async def publish(messages: Sequence[Message]) -> list[None]:
        await asyncio.sleep(random.uniform(0, 0.01))
        with file.open("a") as lines:
            for message in messages:
                lines.write(f"{message.id} {message.key} {os.getpid()}\n")
                lines.flush()
        await asyncio.sleep(random.uniform(0, 0.01))
        return [None] * len(messages)

    relaying = asyncio.create_task(store.relay(publish))
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    print("ready", flush=True)
    done = 0
    while done < count and not told.is_set():
        try:
            async with store.transaction() as db:
                keys = random.sample(range(KEYS), 2)
                for key in keys:
                    number = (await db.execute(NEXT, {"key": key})).scalar_one()
                    body = str(number).encode()
                    await store.emit(
                        db, [Message(id=f"{number}", stream=f"s{key}", type=f"s{key}.x", key=str(key), body=body)]
                    )
        except WorldError:
            continue
        done += 1
        await asyncio.sleep(random.uniform(0, 0.01))
    while not leaves and (await store.outbox_backlog()).waiting:  # noqa: ASYNC110  # its test limits it
        await asyncio.sleep(0.05)
    relaying.cancel()
    await asyncio.wait({relaying}, timeout=10)
    await store.close()


if __name__ == "__main__":
    if sys.argv[4:5] == ["kill"]:
        kill_at(sys.argv[5], int(sys.argv[6]))
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), leaves=sys.argv[4:] == ["leave"]))
