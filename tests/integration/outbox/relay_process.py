"""A relay in a process of its own, whose broker is a file: each line an event that was stored.

python -m tests.integration.outbox.relay_process DATABASE FILE [kill-after N | slow SECONDS]
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tidings.delivery import Message
from tidings.stores.sqlalchemy import SqlAlchemyStore


async def main(database: Path, file: Path, mode: str, amount: float) -> None:
    store = SqlAlchemyStore(f"sqlite:///{database}", poll=0.05, lease=1.0)
    await store.open()
    stored = 0

    async def publish(messages: Sequence[Message]) -> list[None]:
        nonlocal stored
        with file.open("a") as lines:
            for message in messages:
                lines.write(f"{message.id} {message.key} {os.getpid()}\n")
                lines.flush()
                stored += 1
                if mode == "kill-after" and stored >= amount:
                    os.kill(os.getpid(), signal.SIGKILL)
        if mode == "slow":
            await asyncio.sleep(amount)
        return [None] * len(messages)

    print("ready", flush=True)
    await store.relay(publish)


if __name__ == "__main__":
    mode, amount = (sys.argv[3], float(sys.argv[4])) if len(sys.argv) > 3 else ("", 0.0)
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), mode, amount))
