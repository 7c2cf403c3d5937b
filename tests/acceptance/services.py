"""The services that the acceptance tests run as processes of their own, with the command line that everybody uses.

Each handler writes what it did into a ledger that has no unique key: an effect that was applied twice is two rows.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.acceptance.stage import note
from tidings import Dead, Delivery, Event, Retry, Service
from tidings.brokers.nats.broker import NatsBroker
from tidings.delivery import Message
from tidings.testing import kills


class Placed(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    number: int = 0
    wanted: str = ""


class Reserved(Event, type="stock.reserved", version=1, key="order_id"):
    order_id: str
    number: int = 0


class Charged(Event, type="payment.charged", version=1, key="order_id"):
    order_id: str
    number: int = 0


class Blob(Event, type="blob.stored", version=1):
    filler: str


INSERT = text(
    "INSERT INTO ledger (handler, event_id, key, number, attempt, worker, at) VALUES (:h, :e, :k, :n, :a, :w, :t)"
)


async def write(db: AsyncConnection, handler: str, number: int, delivery: Delivery) -> None:
    """One row of the ledger, through the handler's own connection."""
    row = {"h": handler, "e": delivery.event_id, "k": delivery.key, "n": number, "a": delivery.attempt}
    await db.execute(INSERT, {**row, "w": os.getpid(), "t": time.time()})


FOLDER = Path(os.environ.get("STAGE", "."))
"""Where a test and its services leave each other signs."""


# ── a chain of three ────────────────────────────────────────────────────────────────────────────────────────────────

stock = Service("stock", publishes=[Placed])
money = Service("money")
post = Service("post")


@stock.on(Placed, order="key", concurrency=4, retry=Retry(attempts=2, first=0.1))
async def reserve(placed: Placed, db: AsyncConnection, delivery: Delivery) -> Reserved:
    await write(db, "stock.reserve", placed.number, delivery)  # first, so that a failure has something to take back
    if placed.wanted == "slow":
        (FOLDER / "slow-began").touch()
        await asyncio.sleep(2.0)
    if placed.wanted == "fail" and not (FOLDER / "mended").exists():
        raise ValueError("no such shelf")
    if placed.wanted == "reject" and not (FOLDER / "mended").exists():
        raise Dead("nobody wants it")
    return Reserved(order_id=placed.order_id, number=placed.number)


@money.on(Reserved, order=None)
async def charge(reserved: Reserved, db: AsyncConnection, delivery: Delivery) -> Charged:
    await write(db, "money.charge", reserved.number, delivery)
    return Charged(order_id=reserved.order_id, number=reserved.number)


@post.on(Charged)
async def send(charged: Charged, db: AsyncConnection, delivery: Delivery) -> None:
    await write(db, "post.send", charged.number, delivery)


# ── two handlers of the same events, with and without an order, that are stopped and started again ──────────────────

pair = Service("pair", publishes=[Placed])


@pair.on(Placed, order="key", concurrency=2)
async def in_order(placed: Placed, db: AsyncConnection, delivery: Delivery) -> Reserved:
    await write(db, "pair.in-order", placed.number, delivery)
    await _linger(placed, "in-order")
    return Reserved(order_id=placed.order_id, number=placed.number)


@pair.on(Placed, order=None)
async def in_no_order(placed: Placed, db: AsyncConnection, delivery: Delivery) -> None:
    await write(db, "pair.in-no-order", placed.number, delivery)
    await _linger(placed, "in-no-order")


async def _linger(placed: Placed, name: str) -> None:
    """Take a while over what is slow, in the middle of the transaction; over what is held until a test lets it go."""
    if placed.wanted == f"slow {name}":
        (FOLDER / f"slow-{name}").touch()
        await asyncio.sleep(1.5)
    if placed.wanted == f"held {name}":
        (FOLDER / f"held-{name}").touch()
        while not (FOLDER / "let-go").exists():  # noqa: ASYNC110  # the test is another process
            await asyncio.sleep(0.05)


# ── killed between the commit and what it caused ────────────────────────────────────────────────────────────────────


class Dying(NatsBroker):
    """Kills its process with SIGKILL when it is to publish what a handler caused, once."""

    async def publish(self, messages: Sequence[Message], *, timeout: float) -> Sequence[Exception | None]:
        if any(message.type == "stock.reserved" for message in messages) and not (FOLDER / "died").exists():
            (FOLDER / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().publish(messages, timeout=timeout)


dying = Service("stock", broker=Dying(os.environ.get("DYING_BROKER", "nats://127.0.0.1")), publishes=[Placed])
dying.on(Placed)(reserve)


# ── failures that wait ──────────────────────────────────────────────────────────────────────────────────────────────

DELAY = 4.0
"""Seconds in which a test sees what comes in between, also where it is stopped for two of them."""

flaky = Service("flaky", publishes=[Placed])


@flaky.on(Placed, idempotent=True, order=None, retry=Retry(attempts=4, first=DELAY, most=DELAY))
async def deliver(placed: Placed, delivery: Delivery) -> None:
    note("flaky.deliver", placed.order_id, placed.number, delivery.attempt)
    if placed.wanted == "fail" and delivery.attempt <= 2:
        raise ConnectionError("nobody opened")


# ── a handler that has missed its history, beside one that has not ──────────────────────────────────────────────────

history = Service("history", publishes=[Placed])


@history.on(Placed, order="key", concurrency=4, start="new")
async def record(placed: Placed, db: AsyncConnection, delivery: Delivery) -> Reserved:
    await write(db, "history.record", placed.number, delivery)
    return Reserved(order_id=placed.order_id, number=placed.number)


@history.on(Placed, idempotent=True, start="new")
async def witness(placed: Placed) -> None:
    note("history.witness", placed.order_id, placed.number, 1)


# ── handlers that wait, block, or are slow ──────────────────────────────────────────────────────────────────────────

stuck = Service("stuck", publishes=[Placed])


@stuck.on(Placed, idempotent=True, timeout=300)
async def wait(placed: Placed) -> None:
    (FOLDER / "waiting").touch()
    await asyncio.Event().wait()


@stuck.on(Placed)
async def work(placed: Placed, db: AsyncConnection, delivery: Delivery) -> None:
    await write(db, "stuck.work", placed.number, delivery)


blocked = Service("blocked", publishes=[Placed])


@blocked.on(Placed, idempotent=True)
async def block(placed: Placed) -> None:
    time.sleep(60)  # the mistake that is to be seen


long = Service("long", publishes=[Placed])


@long.on(Placed, idempotent=True, timeout=60)
async def take_long(placed: Placed, delivery: Delivery) -> None:
    note("long.take-long", placed.order_id, placed.number, delivery.delivered)
    await asyncio.sleep(10.0)


blobs = Service("blobs", publishes=[Blob])


@blobs.on(Blob, idempotent=True)
async def look(blob: Blob) -> None:
    note("blobs.look", "", len(blob.filler), 1)
    await asyncio.sleep(0.05)


# ── events that kill their process, and failures that are counted in their place ────────────────────────────────────

deadly = Service("deadly", publishes=[Placed])


@deadly.on(Placed, order=None, batch=32, concurrency=2, retry=Retry(attempts=2, first=0.1))
async def open_parcel(placed: Placed, db: AsyncConnection, delivery: Delivery) -> None:
    await write(db, "deadly.open-parcel", placed.number, delivery)
    if placed.wanted == "die":
        os.kill(os.getpid(), signal.SIGKILL)


deadly_in_order = Service("deadly", publishes=[Placed])
deadly_in_order.on(Placed, order="key", batch=32, retry=Retry(attempts=2, first=0.1))(open_parcel)

stubborn = Service("stubborn", publishes=[Placed])


@stubborn.on(Placed, order="key", idempotent=True, retry=Retry(attempts=4, first=0.8, most=0.8))
async def refuse(placed: Placed, delivery: Delivery) -> None:
    note("stubborn.refuse", placed.order_id, placed.number, delivery.attempt)
    if placed.wanted == "fail":
        raise ConnectionError("nobody opened")


# ── keys that are held behind a dead letter ─────────────────────────────────────────────────────────────────────────

if kills.VARIABLE in os.environ:
    kills.install()  # a process that a test wants to end at a point

holder = Service("holder", publishes=[Placed])


@holder.on(Placed, order="key", batch=2, on_dead="block", retry=Retry(attempts=1), kill_switch=None)
async def keep(placed: Placed, db: AsyncConnection, delivery: Delivery) -> None:
    await write(db, "holder.keep", placed.number, delivery)
    if placed.wanted == "fail" and not (FOLDER / "mended").exists():
        raise ValueError("no such shelf")


# ── failures that wait for long ─────────────────────────────────────────────────────────────────────────────────────

later = Service("later", publishes=[Placed])


@later.on(Placed, idempotent=True, order=None, batch=8, retry=Retry(attempts=3, first=600, most=600), kill_switch=None)
async def try_later(placed: Placed, delivery: Delivery) -> None:
    note("later.try-later", placed.order_id, placed.number, delivery.attempt)
    if placed.wanted == "fail":
        raise ConnectionError("not for the next ten minutes")
