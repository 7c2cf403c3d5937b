"""``tidings pause`` and ``tidings resume``: orders to a handler, in all processes that run it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from difflib import get_close_matches
from typing import Annotated, Final

from cyclopts import Parameter

from tidings import control
from tidings.cli.at_broker import at_broker
from tidings.cli.failures import CommandError, Status
from tidings.cli.options import BrokerUrl, Json, broker_url
from tidings.cli.output import Out
from tidings.cli.who import who
from tidings.handler import NAME
from tidings.ports import Broker, Positions

PATIENCE: Final = 5.0
"""Seconds in which a process that runs the handler is given the time to obey; each looks once a second."""
LOOK: Final = 0.5

Position = Annotated[str, Parameter(help="The handler, as service.name.")]


def pause(
    position: Position,
    /,
    *,
    reason: Annotated[str, Parameter(help="Why, for whoever finds it paused.")] = "",
    new: Annotated[bool, Parameter(help="Also a handler that has not run yet: it begins paused.")] = False,
    broker: BrokerUrl = None,
    json: Json = False,
) -> int:
    """Pause a handler in all processes, also in those that start later, until `tidings resume`."""
    out = Out(json)

    async def work(broker: Broker) -> int:
        before = await control.standing(broker, position)
        if before is not None:
            out.tell(f"{position} is paused already, {before}", position=position, paused=True, changed=False)
            return Status.OK
        if not new:
            await _must_be_known(broker, position)
        order = await control.pause(broker, position, by=who(), reason=reason)
        obeying = await _until(lambda: control.heard(broker, position, order), bool)
        told = f"in {len(obeying)} {'process' if len(obeying) == 1 else 'processes'}: {', '.join(obeying)}"
        nobody = "and begins paused: no process that runs it has answered. tidings resume takes it back"
        out.tell(
            f"{position} is paused, {told if obeying else nobody}",
            position=position,
            paused=True,
            changed=True,
            processes=obeying,
        )
        return Status.OK

    return _run(position, broker, work)


def resume(position: Position, /, *, broker: BrokerUrl = None, json: Json = False) -> int:
    """Let a paused handler go on, in all processes."""
    out = Out(json)

    async def work(broker: Broker) -> int:
        order = await control.resume(broker, position)
        if order is None:
            out.tell(f"{position} is not paused", position=position, paused=False, changed=False)
            return Status.FAILED
        before = await control.heard(broker, position, order)
        left = await _until(lambda: control.heard(broker, position, order), lambda found: not found)
        text = f"{position} goes on" + (f" in {len(before) - len(left)} of {len(before)} processes" if before else "")
        silent = f"; no answer yet from {', '.join(left)}" if left else ""
        out.tell(text + silent, position=position, paused=False, changed=True, silent=left)
        return Status.OK

    return _run(position, broker, work)


async def _must_be_known(broker: Broker, position: str) -> None:
    """Refuse a name that no handler has had at this broker: the order would stand unseen, and nothing be paused."""
    if not (broker.features.positions and isinstance(broker, Positions)):
        return
    service = position.partition(".")[0]
    known = await broker.positions(service)
    if position in known:
        return
    near = get_close_matches(position, known, 1)
    meant = f" Did you mean {near[0]}?" if near else ""
    there = f"The handlers of {service} are: {', '.join(sorted(known))}" if known else f"{service} has none there"
    raise CommandError(
        f"no handler {position} has run at this broker, so nothing was paused.{meant} {there}. --new has a handler that"
        " is to come begin paused",
        Status.CONFIGURATION,
    )


async def _until(ask: Callable[[], Awaitable[list[str]]], enough: Callable[[list[str]], bool]) -> list[str]:
    """Ask until it is enough, then once more, for those that are a little later; or until the time is over."""
    found: list[str] = []
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    while loop.time() < end:
        found = await ask()
        if enough(found):
            await asyncio.sleep(2 * LOOK)
            return await ask()
        await asyncio.sleep(LOOK)
    return found


def _run(position: str, url: str | None, work: Callable[[Broker], Awaitable[int]]) -> int:
    service, _, name = position.partition(".")
    if not (NAME.fullmatch(service) and NAME.fullmatch(name)):
        raise CommandError(
            f"{position!r} names no handler: write service.name, such as stock.reserve, with the name of its function,"
            " or its name=",
            Status.USAGE,
        )
    return at_broker(broker_url(url), work)
