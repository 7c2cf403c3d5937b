"""``tidings dead``: what could not be handled, and the ways to put it right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter

from tidings import dead_letters
from tidings.bulk import Bulk, Choice, Verb, in_order
from tidings.cli.asking import ask
from tidings.cli.at_broker import Stopped, at_broker, from_now_on, pace_of
from tidings.cli.failures import CommandError, Status, one_line
from tidings.cli.letters import EACH, GROUPED, body_of, grouped, record_of, row_of, story
from tidings.cli.moments import moment_of
from tidings.cli.options import BrokerUrl, Json, broker_url
from tidings.cli.output import Out
from tidings.cli.progress import Progress
from tidings.cli.signals import Stop
from tidings.cli.who import who
from tidings.dead_letters import Audit, Letter
from tidings.ports import Broker, Positions
from tidings.replay import found_at

Handler = Annotated[str | None, Parameter(help="Only letters of this handler, service.name or name.")]
Type = Annotated[str | None, Parameter(help="Only letters of this event type.")]
Code = Annotated[str | None, Parameter(help="Only letters that died of this: failed, rejected, bad-data, …")]
Error = Annotated[
    str | None, Parameter(help="Only letters that died alike: the error of a list, or a part of what it says.")
]
Key = Annotated[str | None, Parameter(help="Only letters of this key.")]
Since = Annotated[str | None, Parameter(help="Only letters that died then or later: a time, or 10m, 2h, 3d ago.")]
Until = Annotated[str | None, Parameter(help="Only letters that died then or before.")]
Ids = Annotated[tuple[str, ...], Parameter(help="Ids of letters, or beginnings of them.", show_default=False)]
DryRun = Annotated[bool, Parameter(help="Only say which letters it would be, in the order in which they would go.")]
Rate = Annotated[float | None, Parameter(help="So many a second at most.")]
Reason = Annotated[str, Parameter(help="Why. It is kept in the log, beside who did it and when.")]
Yes = Annotated[bool, Parameter(name=["--yes", "-y"], help="Do not ask, also for many.")]
State = Literal["dead", "redriven", "discarded", "all"]


def list_(
    *,
    handler: Handler = None,
    type: Type = None,
    code: Code = None,
    error: Error = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    state: Annotated[State, Parameter(help="dead, redriven, discarded, or all.")] = "dead",
    each: Annotated[bool, Parameter(help="A line for each letter instead of one for those that died alike.")] = False,
    broker: BrokerUrl = None,
    json: Json = False,
) -> int:
    """List dead letters, those that died of the same thing together."""
    out = Out(json)
    which = _choice(out, handler, type, code, error, key, since, until)

    async def work(broker: Broker) -> int:
        found = await dead_letters.list_letters(broker, state=None if state == "all" else state, where=which)
        for letter in found:
            out.record(**record_of(letter))
        if not found:
            out.text(f"no dead letters{' like that' if which or state != 'dead' else ''}")
        elif each:
            out.table(EACH, [row_of(letter) for letter in found])
        else:
            out.table(GROUPED, grouped(found))
        return Status.OK

    return at_broker(broker_url(broker), work)


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
        for letter in await dead_letters.find(broker, ids):
            out.record(
                **record_of(letter),
                headers=letter.headers,
                traceback=letter.traceback,
                marks=[msgspec.to_builtins(mark) for mark in letter.marks],
                **body_of(letter),
            )
            out.text(story(letter))
        return Status.OK

    return at_broker(broker_url(broker), work)


def redrive(
    ids: Ids = (),
    /,
    *,
    handler: Handler = None,
    type: Type = None,
    code: Code = None,
    error: Error = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    dry_run: DryRun = False,
    again: Annotated[bool, Parameter(help="Also letters that were redriven or discarded before.")] = False,
    rate: Rate = None,
    reason: Reason = "",
    yes: Yes = False,
    broker: BrokerUrl = None,
    json: Json = False,
) -> int:
    """Give letters back to the handler that failed, and to no other. With a store each is applied at most once."""
    out = Out(json)
    which = _choice(out, handler, type, code, error, key, since, until)
    order = Order("redrive", "redriven", ids, which, dry_run=dry_run, again=again, rate=rate, reason=reason, yes=yes)
    return _change(order, broker, out)


def discard(
    ids: Ids = (),
    /,
    *,
    handler: Handler = None,
    type: Type = None,
    code: Code = None,
    error: Error = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    dry_run: DryRun = False,
    rate: Rate = None,
    reason: Reason = "",
    yes: Yes = False,
    broker: BrokerUrl = None,
    json: Json = False,
) -> int:
    """Say that letters need nothing any more. They leave the list; their bytes stay in the log."""
    out = Out(json)
    which = _choice(out, handler, type, code, error, key, since, until)
    order = Order("discard", "discarded", ids, which, dry_run=dry_run, rate=rate, reason=reason, yes=yes)
    return _change(order, broker, out)


class Order(msgspec.Struct, frozen=True):
    """What is to be done to which letters, and how carefully."""

    verb: str
    past: Verb
    ids: tuple[str, ...]
    which: Choice
    dry_run: bool = False
    again: bool = False
    rate: float | None = None
    reason: str = ""
    yes: bool = False

    @property
    def audit(self) -> Audit:
        chosen = str(self.which) if self.which else f"{len(self.ids)} by id"
        return Audit(by=who(), choice=chosen + (" --again" if self.again else ""), reason=self.reason)


def _choice(
    out: Out,
    handler: str | None,
    type: str | None,
    code: str | None,
    error: str | None,
    key: str | None,
    since: str | None,
    until: str | None,
) -> Choice:
    return Choice(
        handler=handler,
        type=type,
        code=code,
        error=error,
        key=key,
        since=moment_of("--since", since, out),
        until=moment_of("--until", until, out),
    )


def _change(order: Order, broker: str | None, out: Out) -> int:
    if bool(order.ids) == bool(order.which):
        raise CommandError(
            f"which letters? Write tidings dead {order.verb} with ids, or with --handler, --type, --code, --error,"
            " --key, --since or --until; tidings dead list shows them",
            Status.USAGE,
        )
    pace_of(order.rate)
    stop = Stop(json=out.json)
    return at_broker(broker_url(broker), lambda broker: obey(broker, order, out, lambda: from_now_on(stop)))


async def obey(broker: Broker, order: Order, out: Out, begin: Callable[[], Stopped]) -> int:
    """Find the letters that are meant, ask where there are many, and change them, or only say what would happen."""
    wanted = in_order(await _wanted(broker, order, out))
    if not wanted:
        return Status.OK
    if order.verb == "redrive":
        await _see_who_takes(broker, wanted)
    if order.dry_run:
        return _say_what_would_happen(order, wanted, out)
    await _confirm(order, len(wanted))
    return await carry_out(broker, order, wanted, out, begin())


async def _wanted(broker: Broker, order: Order, out: Out) -> list[Letter]:
    """The letters that are meant; those that are done with already are named and left out."""
    if not order.ids:
        found = await dead_letters.list_letters(broker, state=None if order.again else "dead", where=order.which)
        if not found:
            out.tell("no dead letters like that", changed=0)
        return found
    wanted: dict[str, Letter] = {}
    for letter in await dead_letters.find(broker, order.ids, bodies=False):
        if letter.state == "dead" or order.again:
            wanted[letter.id] = letter
        else:
            remedy = "; --again does it once more" if order.verb == "redrive" else ""
            out.tell(f"{letter.id} was {letter.state} before{remedy}", id=letter.id, state=letter.state, changed=False)
    return list(wanted.values())


async def _see_who_takes(broker: Broker, letters: Sequence[Letter]) -> None:
    """Where a handler is gone, what is given back to it may be stored, marked as redriven, and lie there for nobody.

    Raises:
        ConfigurationError: one of the handlers is gone.
        BrokerUnavailable: it cannot be asked.
    """
    if broker.features.positions and isinstance(broker, Positions):
        for position in sorted({one.position for one in letters}):
            await found_at(broker, position)


def _say_what_would_happen(order: Order, letters: Sequence[Letter], out: Out) -> int:
    for letter in letters:
        to = f" to {letter.position}, its redrive number {letter.redriven + 1}" if order.verb == "redrive" else ""
        text = f"would {order.verb} {letter.id}{to}: event {letter.event_id}, key {letter.key or '-'}, {letter.reason}"
        out.tell(text, **record_of(letter), dry_run=True)
    out.text(f"{len(letters)} in all; nothing was changed")
    return Status.OK


async def carry_out(
    broker: Broker, order: Order, letters: Sequence[Letter], out: Out, stopped: Stopped = lambda: False
) -> int:
    """Change letters in their order; what fails is told, and the rest goes on. Returns the exit status."""
    changed = failures = 0
    bulk = Bulk(broker, order.past, order.audit, pace=pace_of(order.rate), stopped=stopped)
    with Progress(out, order.past, len(letters)) as progress:
        async for letter, error in bulk.run(letters):
            if error is None:
                changed += 1
                out.record(id=letter.id, state=order.past, changed=True)
            else:
                failures += 1
                text = one_line(str(error))
                line = f"{letter.id}: not {order.past}: {text}"
                out.record(id=letter.id, changed=False, error=text)
                progress.say(line) if progress.drawn else out.text(line)
            progress.step()
    out.text(f"{changed} {order.past}" + (f", {failures} failed" if failures else ""))
    left = len(letters) - changed - failures
    if left:
        out.aside(_how_to_go_on(order, left))
        return Status.INTERRUPTED
    return Status.WORLD if failures else Status.OK


def _how_to_go_on(order: Order, left: int) -> str:
    if order.again:
        return f"{left} were not reached; with --again the same command begins with the first, whatever was done now"
    return f"{left} were not reached; the same command goes on with them, and does nothing twice"


async def _confirm(order: Order, count: int) -> None:
    """Many at once are asked for twice: by --yes, or by answering."""
    if order.yes or count == 1:
        return
    otherwise = f"this would {order.verb} {count} letters. If that is meant, add --yes"
    await ask(f"{order.verb} {count} letters?", otherwise, refused="nothing was changed")
