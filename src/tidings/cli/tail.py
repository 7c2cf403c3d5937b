"""``tidings tail``: the events of a stream or of a type, as they stand in the log."""

from __future__ import annotations

import base64
import re
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
from cyclopts import Parameter

from tidings.cli.at_broker import at_broker
from tidings.cli.failures import CommandError, Status
from tidings.cli.moments import moment_of
from tidings.cli.options import BrokerUrl, Json, broker_url
from tidings.cli.output import Out
from tidings.delivery import Delivery, Route
from tidings.envelope import read_envelope, to_structured
from tidings.errors import UndecodableEvent
from tidings.event import TYPE_PATTERN
from tidings.ports import Broker

_STREAM: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")


def tail(
    what: Annotated[str, Parameter(help="A stream (order) or a type (order.placed).")],
    /,
    *,
    since: Annotated[str | None, Parameter(help="From this time on: 2026-01-31T12:00:00Z, or 10m, 2h, 3d ago.")] = None,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], help="Go on with what comes, until Ctrl-C.")] = False,
    limit: Annotated[int | None, Parameter(help="End after so many events.")] = None,
    last: Annotated[int | None, Parameter(help="Only the last so many of what is stored.")] = None,
    broker: BrokerUrl = None,
    json: Json = False,
) -> int:
    """Print events, oldest first, without taking a position: nobody else sees a difference."""
    stream, _, rest = what.partition(".")
    if not (TYPE_PATTERN.fullmatch(what) if rest else _STREAM.fullmatch(what)):
        raise CommandError(f"{what!r} is neither a stream (order) nor a type (order.placed)", Status.USAGE)
    if last is not None and (follow or last < 1):
        raise CommandError("--last takes a number from 1, and does not go with --follow", Status.USAGE)
    if limit is not None and limit < 1:
        raise CommandError("--limit takes a number from 1", Status.USAGE)
    out = Out(json)
    log = Log(stream, what if rest else "", moment_of("--since", since, out), follow)
    return at_broker(broker_url(broker), lambda broker: _tail(broker, log, limit, last, out))


class Log(msgspec.Struct, frozen=True):
    """What is to be read."""

    stream: str
    type: str
    since: datetime | None
    follow: bool

    async def events(self, broker: Broker) -> AsyncIterator[Delivery]:
        async for delivery in broker.read(Route.EVENT, self.stream, since=self.since, follow=self.follow):
            try:
                delivery.envelope = read_envelope(delivery.body, delivery.headers)
            except UndecodableEvent:
                pass  # shown as it is: garbage is what one looks for
            if not self.type or delivery.envelope is None or delivery.envelope.type == self.type:
                yield delivery


async def _tail(broker: Broker, log: Log, limit: int | None, last: int | None, out: Out) -> int:
    if not await print_events(broker, log, limit, last, out):
        what = f"event of type {log.type}" if log.type else "event"
        out.aside(f"no {what} stands in the stream {log.stream}{' since then' if log.since else ''}")
    return Status.OK


async def print_events(broker: Broker, log: Log, limit: int | None, last: int | None, out: Out) -> int:
    """Print what `log` says, up to `limit` events, or only the `last` ones. Returns how many there were."""
    kept: deque[Delivery] = deque(maxlen=last)
    count = 0
    async for delivery in log.events(broker):
        if last is not None:
            kept.append(delivery)
            continue
        _print(delivery, out)
        count += 1
        if count == limit:
            return count
    for delivery in list(kept)[:limit]:
        _print(delivery, out)
    return count + len(kept)


def _print(delivery: Delivery, out: Out) -> None:
    envelope = delivery.envelope
    if envelope is None:
        try:
            read_envelope(delivery.body, delivery.headers)
        except UndecodableEvent as error:
            text = f"{delivery.origin_text}  unreadable ({error.code}): {error}"
            record: dict[str, Any] = {"unreadable": error.code, "origin": delivery.origin_text}
            out.tell(text, **record, body_base64=base64.b64encode(delivery.body).decode())
        return
    if out.json:
        out.write(to_structured(envelope).decode())
        return
    time = envelope.time.astimezone(UTC).isoformat(timespec="milliseconds") if envelope.time else "-"
    data = bytes(envelope.data).decode("utf-8", "replace")
    out.text(
        f"{time}  {envelope.type} {envelope.version}  {envelope.key or '-'}  {envelope.id}  {' '.join(data.split())}"
    )
