"""``tidings replay``: a handler's history, given to it once more."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
from cyclopts import Parameter

from tidings.cli.asking import ask
from tidings.cli.at_broker import Stopped, at_broker, from_now_on, pace_of
from tidings.cli.failures import CommandError, Status
from tidings.cli.moments import moment_of
from tidings.cli.options import BrokerUrl, Json, StoreUrl, broker_url
from tidings.cli.output import Out
from tidings.cli.progress import Progress
from tidings.cli.signals import Stop
from tidings.cli.target import find_service
from tidings.cli.who import who
from tidings.handler import Handler
from tidings.ports import Broker
from tidings.replay import Replay, Replayer, begin, known, look, types_of
from tidings.service import Service

SHORT: Final = 8

OnceOrNot = bool | None
"""Whether the handler applies each event once; None where no code says so."""


def replay(
    what: Annotated[str, Parameter(help="service.handler, or module:service and the handler behind it.")],
    handler: Annotated[str | None, Parameter(help="The handler of module:service.")] = None,
    /,
    *,
    from_: Annotated[str, Parameter(name="--from", help="From this time on: 2026-11-01T00:00, or 10m, 2h, 3d ago.")],
    to: Annotated[str | None, Parameter(help="Up to this time; otherwise to all that is stored now.")] = None,
    again: Annotated[bool, Parameter(help="Apply everything once more, for a read model that was emptied.")] = False,
    as_: Annotated[
        str | None, Parameter(name="--as", help="Run it here as a new position of this name, beside the live one.")
    ] = None,
    rate: Annotated[float | None, Parameter(help="So many events a second at most.")] = None,
    dry_run: Annotated[bool, Parameter(help="Only count the events.")] = False,
    fresh: Annotated[bool, Parameter(help="Begin a new one, although the same was begun and not ended.")] = False,
    reason: Annotated[str, Parameter(help="Why. It is kept at the broker, beside who did it and when.")] = "",
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], help="Do not ask where effects are repeated.")] = False,
    store: StoreUrl = None,
    broker: BrokerUrl = None,
    json: Json = False,
) -> int:
    """Give a handler its history again, in order, and nobody else. With once= it repairs and repeats nothing."""
    out = Out(json)
    since, until = _span(from_, to, out)
    pace_of(rate)
    service, found = _meant(what, handler)
    stop = Stop(json=json)
    if as_ is not None and not dry_run:
        if to or again or rate is not None:
            raise CommandError(
                "--as makes a position that goes on with what comes and applies all of it as its own, so --to, --again"
                " and --rate do not go with it",
                Status.USAGE,
            )
        if service is None or found is None:
            raise CommandError(
                f"--as runs the handler here, so its code is needed: tidings replay module:service"
                f" {what.partition('.')[2] or 'handler'} --as {as_}",
                Status.USAGE,
            )
        from tidings.cli.beside import run_beside

        return asyncio.run(run_beside(service, found, as_, since, broker, store, stop, out))
    order = Order(
        position=found.position if found else what,
        since=since,
        until=until,
        again=again,
        asked=f"--from {from_}" + (f" --to {to}" if to else "") + (" --again" if again else ""),
        once=bool(found.rules.once) if found else None,
        rate=rate,
        dry_run=dry_run,
        fresh=fresh,
        reason=reason,
        yes=yes,
    )
    where = broker or (service._broker_spec if service else None) or os.environ.get("TIDINGS_BROKER")
    return at_broker(where or broker_url(None), lambda broker: obey(broker, order, out, lambda: from_now_on(stop)))


def _span(from_: str, to: str | None, out: Out) -> tuple[datetime, datetime | None]:
    since, until = moment_of("--from", from_, out), moment_of("--to", to, out)
    assert since is not None
    if until is not None and until < since:
        raise CommandError(f"--from {from_} is after --to {to}: nothing lies between them", Status.USAGE)
    if since > datetime.now(UTC):
        raise CommandError(f"--from {from_} is still to come: there is nothing to replay", Status.USAGE)
    return since, until


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be replayed, and how carefully."""

    position: str
    since: datetime
    until: datetime | None = None
    again: bool = False
    asked: str = ""
    once: OnceOrNot = None
    rate: float | None = None
    dry_run: bool = False
    fresh: bool = False
    reason: str = ""
    yes: bool = False


def _meant(what: str, handler: str | None) -> tuple[Service | None, Handler | None]:
    """The service and the handler that are named by their code; nothing where only the position is."""
    if handler is None and ":" not in what:
        if what.count(".") != 1 or not all(what.split(".")):
            raise CommandError(f"{what!r} is no handler: service.handler, or module:service handler", Status.USAGE)
        return None, None
    service = find_service(what)
    for one in service.handlers:
        if handler in (one.name, one.position):
            return service, one
    names = ", ".join(one.name for one in service.handlers) or "none"
    given = f"has no handler {handler!r}" if handler else "is a service; which of its handlers is meant"
    raise CommandError(f"{what} {given}; its handlers: {names}", Status.CONFIGURATION)


async def obey(broker: Broker, order: Order, out: Out, started: Callable[[], Stopped]) -> int:
    """Look, or ask and replay. Returns the exit status.

    Raises:
        ConfigurationError: there is no such handler, or the broker keeps no history.
    """
    types = await types_of(broker, order.position)
    if order.dry_run:
        return await _count(broker, order, types, out)
    earlier = [one for one in await known(broker, order.position) if one.asked == order.asked]
    under_way = [one for one in earlier if one.state == "running"]
    if under_way and not order.fresh:
        replay = under_way[-1]
        out.tell(f"takes up {_named(replay)}: {replay.copied:,} copies so far", **_record(replay), taken_up=True)
    else:
        await _confirm(order, earlier)
        replay = await begin(
            broker,
            order.position,
            since=order.since,
            until=order.until,
            again=order.again,
            asked=order.asked,
            by=who(),
            reason=order.reason,
        )
        out.tell(f"begins {_named(replay)}: {_meaning(order)}", **_record(replay), once=order.once)
    return await _carry_out(broker, order, replay, types, out, started())


async def _carry_out(
    broker: Broker, order: Order, replay: Replay, types: frozenset[str], out: Out, stopped: Stopped
) -> int:
    with Progress(out, f"replay {replay.id[:SHORT]}", None, replay.copied) as progress:
        told = False

        def waits(count: int) -> None:
            nonlocal told
            if not told:
                progress.say(f"{order.position} has {count:,} copies to work off, and the replay waits. Does it run?")
            told = True

        runner = Replayer(broker, replay, types, pace=pace_of(order.rate), stopped=stopped, waits=waits)
        async for copied in runner.run():
            told = False
            progress.step(copied - progress.done)
    out.tell(_end(replay), **_record(replay))
    return Status.OK if replay.state == "done" else Status.INTERRUPTED


async def _count(broker: Broker, order: Order, types: frozenset[str], out: Out) -> int:
    until = order.until or datetime.now(UTC)
    span = Replay(
        id="",
        position=order.position,
        stream=next(iter(types)).partition(".")[0],
        since=order.since.timestamp(),
        until=until.timestamp(),
    )
    with Progress(out, "looked at", None) as progress:
        found = await look(broker, span, types, lambda found: progress.step(found.events - progress.done))
    between = f", stored from {_shown(found.first)} to {_shown(found.last)}" if found.events else ""
    left_out = f"; {found.unreadable:,} that cannot be read would be left out" if found.unreadable else ""
    out.tell(
        f"would give {found.events:,} events to {order.position}{between}{left_out}; nothing was changed",
        handler=order.position,
        events=found.events,
        unreadable=found.unreadable,
        dry_run=True,
    )
    return Status.OK


async def _confirm(order: Order, earlier: list[Replay]) -> None:
    """Where effects are repeated it is asked for twice: by --yes, or by answering."""
    repeats = order.again or order.once is False
    if order.yes or not repeats:
        return
    before = f" It was replayed like that before, {earlier[-1].began}." if earlier else ""
    text = f"this applies every event of that time to {order.position} once more.{before}"
    await ask(f"{text} Go on?", f"{text} If that is meant, add --yes", refused="nothing was replayed")


def _meaning(order: Order) -> str:
    if order.once is False:
        return "the handler does not apply events once (idempotent=True), so every effect is repeated"
    if order.again:
        return "every event is applied once more, and what it causes is published anew"
    if order.once is None:
        return "what was applied before is not repeated, unless the handler is idempotent=True: then all of it is"
    return "what was applied before is not repeated"


def _named(replay: Replay) -> str:
    return (
        f"replay {replay.id[:SHORT]} of {replay.position}, stored from {_shown(replay.since)} to {_shown(replay.until)}"
    )


def _end(replay: Replay) -> str:
    text = f"{replay.copied:,} {'copy is' if replay.copied == 1 else 'copies are'} with {replay.position}"
    if replay.unreadable:
        text += f"; left out, because they cannot be read: {replay.unreadable:,}"
    if replay.refused:
        text += f"; left out, too large for the retry route: {replay.refused:,}"
    if replay.state != "done":
        text += f"; not at the end. To go on: the same command with {shlex.join(shlex.split(replay.asked))}"
    return text


def _shown(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds") if moment else "?"


def _record(replay: Replay) -> dict[str, object]:
    times = {"from": _shown(replay.since), "to": _shown(replay.until)}
    counts = {"copied": replay.copied, "unreadable": replay.unreadable, "refused": replay.refused}
    return {
        "replay": replay.id,
        "handler": replay.position,
        **times,
        "again": replay.again,
        "state": replay.state,
        **counts,
    }
