"""From events to messages: envelopes, ids of caused events, and what may be published from where."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from tidings.context import Scope, current
from tidings.delivery import Content, Envelope, Message
from tidings.envelope import STRUCTURED_HEADERS, envelope_of, to_binary, to_structured
from tidings.errors import InvalidEvent, MisuseError
from tidings.event import Event, EventSpec, spec_of
from tidings.ports import Batches, Broker
from tidings.sight import NOBODY, Watchers, Way

RELAY_TIMEOUT: Final = 10.0
"""Seconds for which a relay waits for the broker."""


class Traced(Protocol):
    """What follows events from service to service."""

    def leaves(self, envelope: Envelope, stream: str, scope: Scope | None, *, sends: bool) -> Envelope:
        """The envelope with the context of whoever publishes it."""


async def publish(
    broker: Broker, messages: Sequence[Message], timeout: float, way: Way, watchers: Watchers
) -> Sequence[Exception | None]:
    """Publish, and let it be seen how long that took and what became of it."""
    began = time.monotonic()
    answers = await broker.publish(messages, timeout=timeout)
    if watchers:
        watchers.published(way, answers, time.monotonic() - began)
    return answers


class Outlet:
    """What a relay publishes with."""

    def __init__(self, broker: Broker, watchers: Watchers = NOBODY) -> None:
        self._broker, self._watchers = broker, watchers

    async def __call__(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        return await publish(self._broker, messages, RELAY_TIMEOUT, "outbox", self._watchers)


class BatchOutlet(Outlet):
    """The same, of a broker that can store several messages as one."""

    def __init__(self, broker: Broker, batches: Batches, watchers: Watchers = NOBODY) -> None:
        super().__init__(broker, watchers)
        self._batches = batches

    async def batch(self, messages: Sequence[Message]) -> bool:
        began = time.monotonic()
        stored = await self._batches.publish_batch(messages, timeout=RELAY_TIMEOUT)
        if stored and self._watchers:  # what was refused is published one by one, and counts then
            self._watchers.published("outbox", [None] * len(messages), time.monotonic() - began)
        return stored


def outlet_of(broker: Broker, watchers: Watchers = NOBODY) -> Outlet:
    """What the relay of a service publishes with, at its best."""
    return BatchOutlet(broker, broker, watchers) if isinstance(broker, Batches) else Outlet(broker, watchers)


class Wrapper:
    """Makes messages of events, as one service says them."""

    def __init__(
        self, service: str, declared: Iterable[type[Event]], content: Content, traces: Traced | None = None
    ) -> None:
        self._service = service
        self._traces = traces
        self._declared: Mapping[str, EventSpec] = {spec.type: spec for spec in map(spec_of, declared)}
        self._content = content

    def message(self, event: Event, scope: Scope | None = None, *, sends: bool = False) -> Message:
        """The message of an event; inside a handler (`scope`) its id is derived from what caused it.

        `sends`: it leaves now, and whoever sends it says what became of it.

        Raises:
            MisuseError: the service does not say that it publishes this event.
            EventTooLarge: more than 1 MiB.
        """
        spec = self._spec(event)
        if scope is None:
            envelope = envelope_of(event, self._service)
        else:
            cause = scope.delivery
            envelope = envelope_of(
                event,
                self._service,
                id=scope.next_id(),
                correlation_id=cause.correlation_id,
                causation_id=cause.event_id,
                traceparent=cause.envelope.traceparent if cause.envelope else None,
                tracestate=cause.envelope.tracestate if cause.envelope else None,
            )
        if self._traces is not None:
            envelope = self._traces.leaves(envelope, spec.stream, scope, sends=sends)
        if self._content == "binary":
            headers, body = to_binary(envelope)
            return Message(
                id=envelope.id, stream=spec.stream, type=spec.type, key=envelope.key, body=body, headers=headers
            )
        return Message(
            id=envelope.id,
            stream=spec.stream,
            type=spec.type,
            key=envelope.key,
            body=to_structured(envelope),
            headers=STRUCTURED_HEADERS,
        )

    def caused(self, result: Any, scope: Scope) -> Sequence[Message]:
        """The messages of what a handler returned: an event, or several of them."""
        events = (result,) if isinstance(result, Event) else result
        if not isinstance(events, (list, tuple)) or not all(isinstance(event, Event) for event in events):
            found = type(result).__name__
            if isinstance(events, (list, tuple)):
                found += f" with {next(type(one).__name__ for one in events if not isinstance(one, Event))}"
            raise InvalidEvent(
                f"{scope.position} returned {found}; a handler returns None, an event, or a list of events"
            )
        return [self.message(event, scope) for event in events]

    def _spec(self, event: Event) -> EventSpec:
        spec = spec_of(event)
        if spec.type not in self._declared:
            name = type(event).__name__
            raise MisuseError(
                f"{self._service} does not say that it publishes {name}, so nothing has prepared its stream. Write:"
                f" Service({self._service!r}, publishes=[{name}])"
            )
        return spec


def refuse_in_handler() -> None:
    """A bare publish inside a handler would leave before the effect is durable.

    Raises:
        MisuseError: a handler runs in this task.
    """
    scope = current.get()
    if scope is not None:
        raise MisuseError(
            f"{scope.position} called publish: its event would be out before the effect is durable. Return the event"
            " from the handler, or pass the transaction: publish(event, tx=db)"
        )
