"""One process of an ordered position: writes a line for each event it handles, and acknowledges it."""

from __future__ import annotations

import asyncio
import os
import sys

from tidings.brokers.nats.broker import NatsBroker
from tidings.delivery import ACK, Delivery
from tidings.ports import Plan, StreamPlan, Subscription


async def main(url: str, ledger: str, pause: float) -> None:
    subscription = Subscription(
        position="stock.reserve", stream="order", types=("order.placed",), ordered=True, max_in_flight=64
    )
    broker = NatsBroker(url)
    await broker.open(Plan(service="stock", streams=(StreamPlan(name="order"),), subscriptions=(subscription,)))
    queue: asyncio.Queue[Delivery] = asyncio.Queue()
    await broker.subscribe(subscription, queue.put_nowait)
    out = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    print("ready", flush=True)
    while True:
        delivery = await queue.get()
        await asyncio.sleep(pause)
        os.write(out, b"%s %d %d\n" % (delivery.body, os.getpid(), delivery.delivered))
        await broker.settle([(delivery, ACK)])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
