"""One process of a service with an ordered handler: writes a line for each event it handles. SIGTERM ends it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time

from tests.integration.nats.pace import Span, watched
from tidings import Event, Service
from tidings.delivery import Delivery


class OrderPlaced(Event, type="order.placed", version=1, key="name"):
    name: str
    number: int


async def main(url: str, ledger: str, pause: float) -> None:
    out = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    service = Service("stock", broker=url)

    @service.on(OrderPlaced, idempotent=True)
    async def reserve(order: OrderPlaced, delivery: Delivery) -> None:
        await asyncio.sleep(pause)
        words = (order.name, order.number, os.getpid(), delivery.delivered, f"{time.time():.3f}")
        os.write(out, f"{' '.join(map(str, words))}\n".encode())

    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)

    def stood(span: Span) -> None:
        os.write(out, b"stood %.3f %.3f\n" % span)

    async with service.running():
        os.write(out, b"ready %d\n" % os.getpid())
        with watched(stood):
            await stopped.wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(message)s")
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
