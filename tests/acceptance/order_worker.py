"""One process of a service whose handler keeps the order of keys, and fails now and then. The effect is a row."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
from pathlib import Path

import asyncpg

from tidings import Event, Retry, Service

FAILING = 0.01
"""The part of all attempts that fail and would work later."""


class Moved(Event, type="piece.moved", version=1, key="piece"):
    piece: str
    number: int


def service_of(broker: str, store: str) -> Service:
    service = Service("board", broker=broker, store=store)

    @service.on(Moved, retry=Retry(attempts=50, first=0.05, most=0.2))
    async def follow(move: Moved, db: asyncpg.Connection) -> None:
        await db.execute(
            "INSERT INTO ledger (piece, number, process) VALUES ($1, $2, $3)", move.piece, move.number, os.getpid()
        )
        if random.random() < FAILING:
            raise ConnectionError("it works later")

    return service


async def main(broker: str, store: str, folder: Path) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with service_of(broker, store).running():
        (folder / f"ready-{os.getpid()}").touch()
        await stopped.wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(message)s")
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
