"""``tidings publish``: one event from the command line, or many from a file or a pipe."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from typing import IO, Annotated, Final

import msgspec
from cyclopts import Parameter

from tidings.brokers import broker_from
from tidings.cli.failures import CommandError, Status, one_line
from tidings.cli.lines import LONGEST, Lines, opened, waves
from tidings.cli.options import CLI_SERVICE, BrokerUrl, Json, broker_url
from tidings.cli.output import Out
from tidings.cli.target import find_events
from tidings.delivery import Message
from tidings.envelope import STRUCTURED_HEADERS, read_envelope, to_structured
from tidings.errors import EventError, TidingsError, UndecodableEvent
from tidings.event import Event, key_of, spec_of
from tidings.evolution import Reader
from tidings.ports import Broker, Plan, StreamPlan
from tidings.publisher import Wrapper

TIMEOUT: Final = 10.0


def publish(
    target: Annotated[str, Parameter(help="module:EventClass; or the module, or module:service, and --type.")],
    data: Annotated[
        str | None, Parameter(help="The event's data as JSON; - reads it from stdin.", allow_leading_hyphen=True)
    ] = None,
    /,
    *,
    type: Annotated[str | None, Parameter(help="The event's type, where the target holds several.")] = None,
    ndjson: Annotated[
        str | None,
        Parameter(
            help='A file, or -, with a line for each event: {"type": …, "data": {…}} or a CloudEvents envelope.',
            allow_leading_hyphen=True,
        ),
    ] = None,
    source: Annotated[str, Parameter(help="Who says it: the source of the events that have none.")] = CLI_SERVICE,
    broker: BrokerUrl = None,
    json: Json = False,
) -> int:
    """Publish events, each checked by its class; say what became of them. Exit status 5 if some of them is bad."""
    if (data is None) == (ndjson is None):
        raise CommandError("either the data of one event, or --ndjson with a file or - for stdin", Status.USAGE)
    maker = Maker(find_events(target), source)
    out = Out(json)
    if data is not None:
        text = sys.stdin.read() if data == "-" else data
        message = maker.single(type, text)
        return asyncio.run(_one(broker_url(broker), maker.plan, message, out))
    assert ndjson is not None
    return asyncio.run(_many(broker_url(broker), maker, opened(ndjson), out))


class Maker:
    """Makes messages of lines, through the event classes that were found."""

    def __init__(self, events: Sequence[type[Event]], source: str) -> None:
        self._classes = {(spec_of(event).type, spec_of(event).wire_version): event for event in events}
        newest: dict[str, type[Event]] = {}
        for event in events:
            kind = spec_of(event).type
            if kind not in newest or spec_of(newest[kind]).version < spec_of(event).version:
                newest[kind] = event
        self._newest = newest
        self._readers = {wire: Reader([event]) for wire, event in self._classes.items()}
        self._wrapper = Wrapper(source, newest.values(), "structured")
        self._source = source

    @property
    def plan(self) -> Plan:
        streams = sorted({spec_of(event).stream for event in self._newest.values()})
        return Plan(service=CLI_SERVICE, streams=tuple(StreamPlan(name=one) for one in streams))

    def single(self, kind: str | None, data: str) -> Message:
        """The message of one event given as its data."""
        if kind is None:
            if len(self._newest) > 1:
                known = ", ".join(sorted(self._newest))
                raise CommandError(
                    f"which type? The target holds {known}. Name one: --type {known.split(',')[0]}", Status.USAGE
                )
            kind = next(iter(self._newest))
        return self._wrapper.message(self._event(kind, None, _object(data.encode(), "the data")))

    def line(self, text: bytes) -> Message:
        """The message of a line: a full envelope keeps its id, time and everything else that it says.

        Raises:
            EventError: it is no event of the classes that were found.
        """
        if len(text) > LONGEST:
            raise UndecodableEvent("too-large", f"a line of more than {LONGEST} bytes")
        found = _object(text, "the line")
        if "specversion" in found:
            return self._whole(text)
        unknown = sorted(set(found) - {"type", "version", "data"})
        if unknown:
            wrong = f"a line has a type and data, and may have a version; {unknown[0]!r} is none of them"
            raise UndecodableEvent("not-an-envelope", wrong)
        kind = found.get("type")
        if not isinstance(kind, str):
            wrong = 'a line says the type of its event. Write: {"type": "order.placed", "data": {…}}'
            raise UndecodableEvent("not-an-envelope", wrong)
        return self._wrapper.message(self._event(kind, found.get("version"), found.get("data", {})))

    def line_or_error(self, text: bytes) -> Message | TidingsError:
        try:
            return self.line(text)
        except TidingsError as error:
            return error

    def _event(self, kind: str, version: object, data: object) -> Event:
        newest = self._known(kind)
        cls: type[Event] = newest
        if version is not None:
            wire = f"v{version}" if isinstance(version, int) else str(version)
            if (kind, wire) not in self._classes:
                versions = ", ".join(sorted(found for of, found in self._classes if of == kind))
                raise UndecodableEvent(
                    "unknown-version", f"{kind} has no version {wire[:20]!r} here; there are {versions}"
                )
            cls = self._classes[kind, wire]
        if isinstance(data, dict):  # what a class does not know, it passes over; here that would be lost
            known = [field.encode_name for field in msgspec.structs.fields(cls)]
            if more := sorted(set(data) - set(known)):
                wrong = f"{cls.__name__} has no {more[0]!r}; it has {', '.join(known)}"
                raise UndecodableEvent("bad-data", wrong)
        try:
            return spec_of(cls).decode(msgspec.json.encode(data))
        except (msgspec.MsgspecError, RecursionError) as error:
            raise UndecodableEvent("bad-data", f"the data does not fit {cls.__name__}: {error}") from None

    def _whole(self, text: bytes) -> Message:
        envelope = read_envelope(text, {})
        newest = self._known(envelope.type)
        # A version with a class of its own is read by that; an older one by the newest, if it has an upcast.
        reader = self._readers.get((envelope.type, envelope.version)) or Reader([newest])
        event = reader.read(envelope)
        assert event is not None
        spec, key = spec_of(event), key_of(event)
        if key is not None and envelope.key not in (None, key):
            wrong = f"its subject is {envelope.key!r}, and its key {spec.key} says {key!r}: its order would be lost"
            raise UndecodableEvent("bad-attribute", wrong)
        if envelope.key is None:
            envelope = msgspec.structs.replace(envelope, key=key)
        body = to_structured(envelope)
        return Message(
            id=envelope.id,
            stream=spec.stream,
            type=spec.type,
            key=envelope.key,
            body=body,
            headers=STRUCTURED_HEADERS,
        )

    def _known(self, kind: str) -> type[Event]:
        if kind not in self._newest:
            raise UndecodableEvent(
                "unknown-type", f"no class has the type {kind[:80]!r}; there are {', '.join(sorted(self._newest))}"
            )
        return self._newest[kind]


async def _one(url: str, plan: Plan, message: Message, out: Out) -> int:
    broker = broker_from(url)
    try:
        await broker.open(plan)
        (error,) = await broker.publish([message], timeout=TIMEOUT)
    finally:
        await broker.close()
    if error is not None:
        raise error
    out.tell(f"stored: {message.type} {message.id}", stored=True, id=message.id, type=message.type)
    return Status.OK


async def _many(url: str, maker: Maker, stream: IO[bytes], out: Out) -> int:
    broker = broker_from(url)
    try:
        await broker.open(maker.plan)
        return await publish_lines(broker, maker, waves(stream), out)
    finally:
        await broker.close()


async def publish_lines(broker: Broker, maker: Maker, lines: AsyncIterator[Lines], out: Out) -> int:
    """Publish wave by wave: what is bad is told and passed over, what the world refuses ends it. The exit status."""
    published, bad, unstored, last = 0, 0, 0, 0
    async for wave in lines:
        made = [(number, maker.line_or_error(line)) for number, line in wave]
        messages = [one for _, one in made if isinstance(one, Message)]
        answers = iter(await broker.publish(messages, timeout=TIMEOUT) if messages else [])
        for number, one in made:
            error = next(answers) if isinstance(one, Message) else one
            last = number
            if error is None and isinstance(one, Message):
                published += 1
                out.record(line=number, stored=True, id=one.id, type=one.type)
                continue
            bad += isinstance(error, EventError)
            unstored += not isinstance(error, EventError)
            text = one_line(str(error))
            out.tell(f"line {number}: {text}", line=number, stored=False, error=text)
        if unstored:
            break
    _sum_up(out, published, bad, unstored, last)
    return Status.WORLD if unstored else Status.EVENT if bad else Status.OK


def _sum_up(out: Out, published: int, bad: int, unstored: int, last: int) -> None:
    text = f"published {published}, bad {bad}, not stored {unstored}"
    if unstored:
        text += f"; ended after line {last}. Whole envelopes can be published again: what was stored is known by its id"
    out.tell(text, published=published, bad=bad, not_stored=unstored, lines=last)


def _object(text: bytes, what: str) -> dict[str, object]:
    try:
        return msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UndecodableEvent("not-json", f"{what} is no JSON object: {error}") from None
