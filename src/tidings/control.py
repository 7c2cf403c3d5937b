"""Orders of an operator to a handler, in all processes that run it: pause, and go on.

An order is a note, so that a process that starts later obeys it too. Each process that heard it leaves a note of its
own, so that whoever gave the order sees how far it has come.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, Protocol

import msgspec
import uuid_utils

from tidings.dropping import Dropping
from tidings.errors import WorldError
from tidings.notes import Notes
from tidings.ports import Broker

log = logging.getLogger("tidings.control")

PAUSED: Final = "control/paused"
HEARD: Final = "control/heard/"
AGAIN: Final = 2.0
"""Seconds until the orders are followed again after the broker was away."""


class Order(msgspec.Struct, frozen=True):
    """Who paused a handler, when (RFC 3339) and why."""

    id: str
    by: str
    at: str
    reason: str = ""

    def __str__(self) -> str:
        return f"by {self.by} at {self.at}" + (f": {self.reason}" if self.reason else "")


class Paused(Protocol):
    """A handler as orders see it: the worker."""

    @property
    def position(self) -> str: ...

    async def pause(self, why: str) -> None: ...

    async def resume(self) -> None: ...


async def pause(broker: Broker, position: str, *, by: str = "somebody", reason: str = "") -> Order:
    """Order all processes to pause a handler: those that run, and those that start later.

    It finishes the events that run and gives the rest back; nothing is lost, and nothing counts as a failure.

    Raises:
        WorldError: the order was not stored.
    """
    at = datetime.now(UTC).isoformat(timespec="seconds")
    order = Order(uuid_utils.uuid4().hex, by, at, reason)
    await Notes(broker, position).write({PAUSED: msgspec.json.encode(order).decode()})
    return order


async def resume(broker: Broker, position: str) -> Order | None:
    """Take the order back; returns it, or None when the handler was not paused.

    Raises:
        WorldError: that was not stored.
    """
    order = order_in((await Notes(broker, position).read()).get(PAUSED, ""))
    if order is not None:
        await Notes(broker, position).write({PAUSED: ""})
    return order


async def standing(broker: Broker, position: str) -> Order | None:
    """The order that stands for a handler, if it is paused.

    Raises:
        WorldError: the broker does not answer.
    """
    return order_in((await Notes(broker, position).read()).get(PAUSED, ""))


async def heard(broker: Broker, position: str, order: Order) -> list[str]:
    """The processes that obey an order just now, as host:pid.

    Raises:
        WorldError: the broker does not answer.
    """
    notes = await Notes(broker, position).read()
    obeying = [name for name, text in notes.items() if name.startswith(HEARD) and text == order.id]
    return sorted(name.removeprefix(HEARD) for name in obeying)


def order_in(text: str) -> Order | None:
    """The order that a note holds. One that cannot be read pauses all the same: somebody meant it."""
    if not text:
        return None
    try:
        return msgspec.json.decode(text, type=Order)
    except msgspec.DecodeError:
        return Order("unreadable", "somebody", "an unknown time", text[:200])


class Obedience:
    """Has a handler of this process obey: two supervised tasks for each, `run` and `obey`."""

    def __init__(self, broker: Broker, worker: Paused, dropping: Dropping) -> None:
        self._notes = Notes(broker, worker.position)
        self._worker = worker
        self._dropping = dropping
        """Hears the other notes."""
        self._mine = f"{HEARD}{socket.gethostname()}:{os.getpid()}:{uuid_utils.uuid4().hex[:6]}"
        self._said = ""
        self._last: Order | None = None
        self._another = asyncio.Event()

    async def run(self) -> None:
        """Hear the notes until cancelled; while the broker is away the last order stands.

        None of them waits for a pause, which takes as long as the events that run.
        """
        lost = False
        while True:
            try:
                if lost and PAUSED not in await self._notes.read():
                    self._ordered(None)  # that it was taken back may be forgotten by now
                lost = True
                self._dropping.begin()
                async for name, text in self._notes.follow():
                    if name == PAUSED:
                        self._ordered(order_in(text))
                    else:
                        await self._dropping.heard(name, text)
            except WorldError as error:
                log.debug("%s: orders are followed again in %.0f s: %s", self._worker.position, AGAIN, error)
            await asyncio.sleep(AGAIN)

    def _ordered(self, order: Order | None) -> None:
        self._last = order
        self._another.set()

    async def obey(self) -> None:
        """Do what the last order says, until cancelled."""
        while True:
            await self._another.wait()
            self._another.clear()
            try:
                await self._obey(self._last)
            except Exception as error:
                self._another.set()  # it stands until it is obeyed
                if not isinstance(error, WorldError):
                    raise
                log.debug("%s: it is obeyed again in %.0f s: %s", self._worker.position, AGAIN, error)
                await asyncio.sleep(AGAIN)

    async def _obey(self, order: Order | None) -> None:
        if order is not None:
            await self._worker.pause(str(order))
        else:
            await self._worker.resume()
        saying = "" if order is None else order.id
        if saying != self._said:
            await self._notes.write({self._mine: saying})
            self._said = saying

    async def forget(self) -> None:
        """This process ends, and obeys nothing any more. Where the broker is away its note stays, and harms nobody."""
        if self._said:
            with suppress(WorldError):
                await self._notes.write({self._mine: ""}, timeout=2.0)
