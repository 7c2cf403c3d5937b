"""``tidings dead``: what could not be handled, and the ways to put it right."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from cyclopts import Parameter

from tidings import dead_letters
from tidings.brokers import broker_from
from tidings.cli.failures import CommandError, Status, one_line
from tidings.cli.options import CLI_SERVICE, BrokerUrl, Json, broker_url
from tidings.cli.output import Out
from tidings.dead_letters import Letter
from tidings.errors import TidingsError
from tidings.ports import Broker, Plan

AT_ONCE: Final = 100
"""Whole letters that are held in memory at a time."""
SHORT: Final = 10
"""Characters of an id that a list shows; a beginning is enough to name a letter."""

Handler = Annotated[str | None, Parameter(help="Only letters of this handler, service.name or name.")]
Type = Annotated[str | None, Parameter(help="Only letters of this event type.")]
Code = Annotated[str | None, Parameter(help="Only letters that died of this: failed, rejected, bad-data, …")]
Ids = Annotated[tuple[str, ...], Parameter(help="Ids of letters, or beginnings of them.", show_default=False)]
DryRun = Annotated[bool, Parameter(help="Only say which letters it would be.")]
Yes = Annotated[bool, Parameter(name=["--yes", "-y"], help="Do not ask, also for many.")]
State = Literal["dead", "redriven", "discarded", "all"]


class Filter(msgspec.Struct, frozen=True):
    """Which letters are meant."""

    handler: str | None
    type: str | None
    code: str | None

    def __bool__(self) -> bool:
        return any((self.handler, self.type, self.code))

    def __call__(self, letter: Letter) -> bool:
        return (
            self.handler in (None, letter.position, letter.position.partition(".")[2])
            and self.type in (None, letter.type)
            and self.code in (None, letter.code)
        )


def list_(
    *,
    handler: Handler = None,
    type: Type = None,
    code: Code = None,
    state: Annotated[State, Parameter(help="dead, redriven, discarded, or all.")] = "dead",
    each: Annotated[bool, Parameter(help="A line for each letter instead of one for those that died alike.")] = False,
    broker: BrokerUrl = None,
    json: Json = False,
) -> int:
    """List dead letters, those that died of the same thing together."""
    out, which = Out(json), Filter(handler, type, code)

    async def work(broker: Broker) -> int:
        found = await dead_letters.list_letters(broker, state=None if state == "all" else state, where=which)
        for letter in found:
            out.record(**_record(letter))
        if not found:
            out.text(f"no dead letters{' like that' if which or state != 'dead' else ''}")
        elif each:
            out.table(_EACH, [_row(letter) for letter in found])
        else:
            out.table(_GROUPED, _grouped(found))
        return Status.OK

    return _run(broker, work)


def show(
    ids: Annotated[tuple[str, ...], Parameter(help="Ids of letters, or beginnings of them.")],
    /,
    *,
    broker: BrokerUrl = None,
    json: Json = False,
) -> int:
    """Show whole letters: what happened, the headers, the body as JSON or in hex, and the traceback."""
    out = Out(json)

    async def work(broker: Broker) -> int:
        from tidings.cli.letters import story

        for letter in await dead_letters.find(broker, ids):
            out.record(**_record(letter), headers=letter.headers, traceback=letter.traceback, **_body(letter))
            out.text(story(letter))
        return Status.OK

    return _run(broker, work)


def redrive(
    ids: Ids = (),
    /,
    *,
    handler: Handler = None,
    type: Type = None,
    code: Code = None,
    dry_run: DryRun = False,
    again: Annotated[bool, Parameter(help="Also letters that were redriven or discarded before.")] = False,
    yes: Yes = False,
    broker: BrokerUrl = None,
    json: Json = False,
) -> int:
    """Give letters back to the handler that failed, and to no other. With a store each is applied at most once."""
    change = Change("redrive", "redriven", dead_letters.redrive, dry_run=dry_run, again=again, yes=yes)
    return _change(change, ids, Filter(handler, type, code), broker, Out(json))


def discard(
    ids: Ids = (),
    /,
    *,
    handler: Handler = None,
    type: Type = None,
    code: Code = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    broker: BrokerUrl = None,
    json: Json = False,
) -> int:
    """Say that letters need nothing any more. They leave the list; their bytes stay in the log."""
    change = Change("discard", "discarded", dead_letters.discard, dry_run=dry_run, again=False, yes=yes)
    return _change(change, ids, Filter(handler, type, code), broker, Out(json))


class Change(msgspec.Struct, frozen=True):
    """What is to be done to letters, and how carefully."""

    verb: str
    past: str
    apply: Callable[[Broker, Letter], Awaitable[None]]
    dry_run: bool = False
    again: bool = False
    yes: bool = False


def _change(change: Change, ids: Sequence[str], which: Filter, broker: str | None, out: Out) -> int:
    if bool(ids) == bool(which):
        raise CommandError(
            f"which letters? Write tidings dead {change.verb} with ids, or with --handler, --type or --code;"
            " tidings dead list shows them",
            Status.USAGE,
        )

    async def work(broker: Broker) -> int:
        wanted = await _wanted(broker, change, ids, which, out)
        if change.dry_run or not wanted:
            for letter in wanted:
                out.tell(f"would {change.verb} {letter.id}  {letter.fingerprint}", **_record(letter), dry_run=True)
            return Status.OK
        await asyncio.to_thread(_confirm, change, len(wanted), bool(ids))
        return await apply_to(broker, change, [letter.id for letter in wanted], out)

    return _run(broker, work)


async def _wanted(broker: Broker, change: Change, ids: Sequence[str], which: Filter, out: Out) -> list[Letter]:
    """The letters that are meant; those that are done with already are named and left out."""
    if not ids:
        found = await dead_letters.list_letters(broker, state=None if change.again else "dead", where=which)
        if not found:
            out.tell("no dead letters like that", changed=0)
        return found
    wanted = []
    for letter in await dead_letters.find(broker, ids):
        if letter.state == "dead" or change.again:
            wanted.append(letter)
        else:
            remedy = "; --again does it once more" if change.verb == "redrive" else ""
            out.tell(f"{letter.id} was {letter.state} before{remedy}", id=letter.id, state=letter.state, changed=False)
    return wanted


async def apply_to(broker: Broker, change: Change, ids: Sequence[str], out: Out) -> int:
    """Change letters one after the other; what fails is told, and the rest goes on. Returns the exit status."""
    changed, failures = 0, 0
    for at in range(0, len(ids), AT_ONCE):
        for letter in await dead_letters.find(broker, ids[at : at + AT_ONCE]):
            try:
                await change.apply(broker, letter)
            except TidingsError as error:
                failures += 1
                text = one_line(str(error))
                out.tell(f"{letter.id}: not {change.past}: {text}", id=letter.id, changed=False, error=text)
            else:
                changed += 1
                out.record(id=letter.id, state=change.past, changed=True)
    out.text(f"{changed} {change.past}" + (f", {failures} failed" if failures else ""))
    return Status.WORLD if failures else Status.OK


def _confirm(change: Change, count: int, named: bool) -> None:
    """Many at once are asked for twice: by --yes, or by answering."""
    if change.yes or named or count == 1:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CommandError(f"this would {change.verb} {count} letters. If that is meant, add --yes", Status.USAGE)
    sys.stderr.write(f"{change.verb} {count} letters? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was changed")


def _run(url: str | None, work: Callable[[Broker], Awaitable[int]]) -> int:
    async def main() -> int:
        broker = broker_from(broker_url(url))
        try:
            await broker.open(Plan(service=CLI_SERVICE))
            return await work(broker)
        finally:
            await broker.close()

    return asyncio.run(main())


# ── what is printed ─────────────────────────────────────────────────────────────────────────────────────────────────

_EACH: Final = ("id", "handler", "type", "key", "code", "attempts", "last failure", "reason")
_GROUPED: Final = ("letters", "handler", "type", "code", "last failure", "ids", "reason")


def _row(letter: Letter) -> Sequence[str]:
    return (
        letter.id[:SHORT],
        letter.position,
        letter.type or "?",
        letter.key or "-",
        letter.code,
        str(letter.failures),
        letter.last_failure,
        letter.reason,
    )


def _grouped(letters: Sequence[Letter]) -> list[Sequence[str]]:
    """The letters by handler and fingerprint, the most frequent death of a handler first."""
    groups: dict[str, list[Letter]] = {}
    for letter in letters:
        groups.setdefault(letter.fingerprint, []).append(letter)
    rows: list[Sequence[str]] = []
    for group in sorted(groups.values(), key=lambda group: (group[0].position, -len(group))):
        newest = group[-1]
        ids = " ".join(one.id[:SHORT] for one in group[-3:]) + (" …" if len(group) > 3 else "")
        rows.append(
            (str(len(group)), newest.position, newest.type or "?", newest.code, newest.last_failure, ids, newest.reason)
        )
    return rows


def _record(letter: Letter) -> dict[str, Any]:
    fields = {name: getattr(letter, name) for name in letter.__struct_fields__}
    for name in ("body", "whole", "headers", "traceback"):
        del fields[name]
    return {**fields, "fingerprint": letter.fingerprint}


def _body(letter: Letter) -> dict[str, Any]:
    try:
        return {"body": msgspec.json.decode(letter.body)}
    except (msgspec.MsgspecError, RecursionError):
        return {"body_hex": letter.body.hex()}
