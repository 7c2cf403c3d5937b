"""Spans of OpenTelemetry, where an application has set its SDK up: of producers, consumers, and what did not end well.

The context of the producer travels in the event's envelope, so it survives outbox, retry, dead letter and redrive. A
process span is its child, so that one trace runs through all services that an event and what it causes have touched.
Names and attributes are those of OpenTelemetry's conventions for messaging; what they do not know begins with tidings.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tidings.context import Scope, current
from tidings.delivery import DeadLettered, Delivery, Done, Duplicate, Envelope, Outcome, Retried, Unsettled
from tidings.observe._text import shown
from tidings.ports import Settled

log = logging.getLogger("tidings.observe")

Call = Callable[[Any, Any, Any], Awaitable[Any]]

MOST_TRACEPARENT: Final = 55
"""Characters of a `traceparent`: the standard knows no longer one."""
MOST_TRACESTATE: Final = 512
MOST_LINKS: Final = 128
"""Events of a batch that its span is linked to; OpenTelemetry's SDK keeps no more either."""
_W3C: Final = TraceContextTextMapPropagator()
_ROOT: Final = Context()


class Traces:
    """The spans of one service."""

    def __init__(self, service: str, system: str, version: str = "") -> None:
        self._service, self._system = service, system
        self._tracer = trace.get_tracer("tidings", version or None)
        self._sending: dict[str, Span] = {}

    # ── what leaves ─────────────────────────────────────────────────────────────────────────────────────────────────

    def leaves(self, envelope: Envelope, stream: str, scope: Scope | None, *, sends: bool) -> Envelope:
        """Begin the producer's span, and write its context into the envelope.

        With `sends` it lasts until `sent`; else it is that of writing the event into a transaction, or of returning it.
        """
        operation = "send" if sends else "create"
        attributes = self._attributes(operation, "send" if sends else "create", stream, envelope)
        parent = None if scope is None else _cause(scope)
        span = self._tracer.start_span(f"{operation} {stream}", parent, SpanKind.PRODUCER, attributes)
        if sends:
            self._sending[envelope.id] = span
        else:
            span.end()
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(span, _ROOT))
        if "traceparent" not in carrier:
            return envelope
        return msgspec.structs.replace(
            envelope, traceparent=carrier["traceparent"], tracestate=carrier.get("tracestate") or None
        )

    def sent(self, ids: Sequence[str], answers: Sequence[Exception | None] | None) -> None:
        """End the spans of sending; without answers nobody knows what became of it."""
        for place, one in enumerate(ids):
            if (span := self._sending.pop(one, None)) is None:
                continue
            error = None if answers is None else answers[place]
            if error is not None:
                _failed(span, error)
            elif answers is None:
                span.set_status(Status(StatusCode.ERROR, "it is not known whether it was stored"))
            span.end()

    # ── what arrives ────────────────────────────────────────────────────────────────────────────────────────────────

    def traced(self, call: Call, position: str, *, together: bool) -> Call:
        """The call of a handler, in a span: its own spans are children of it. Of a batch it is linked to all events."""

        async def one(event: Any, claim: Any, delivery: Any) -> Any:
            origin = origin_of(delivery)
            span = self._tracer.start_span(
                f"process {delivery.stream}",
                origin or _ROOT,
                SpanKind.CONSUMER,
                self._of_delivery("process", delivery, position),
                _links([delivery]),
            )
            return await _inside(span, call, event, claim, delivery)

        async def several(events: Any, claim: Any, deliveries: Any) -> Any:
            first = deliveries[0]
            attributes = {
                **self._attributes("process", "process", first.stream, None),
                "messaging.batch.message_count": len(deliveries),
                "messaging.consumer.group.name": position,
            }
            span = self._tracer.start_span(
                f"process {first.stream}", _ROOT, SpanKind.CONSUMER, attributes, _links(deliveries[:MOST_LINKS])
            )
            return await _inside(span, call, events, claim, deliveries)

        return several if together else one

    def received(self, position: str, count: int) -> None:
        """Nothing has become of them yet."""

    def settled(self, position: str, batch: Sequence[Settled], seconds: float) -> None:
        """A span of its own for each outcome but done, beside that of the call, which may not have been."""
        for one in batch:
            if type(one.outcome) is not Done:
                self._tell(position, one.delivery, one.outcome)

    def _tell(self, position: str, delivery: Delivery, outcome: Outcome) -> None:
        attributes = {**self._of_delivery("settle", delivery, position), "tidings.outcome": outcome.kind}
        if isinstance(outcome, Duplicate):
            attributes["tidings.reason"] = f"applied for event {shown(outcome.of)}" if outcome.of else "applied before"
        elif isinstance(outcome, (Retried, DeadLettered, Unsettled)):
            attributes["tidings.reason"] = shown(outcome.reason, 1000)
        if isinstance(outcome, DeadLettered):
            attributes["tidings.code"] = outcome.code
        origin = origin_of(delivery)
        span = self._tracer.start_span(
            f"settle {delivery.stream}", origin or _ROOT, SpanKind.CLIENT, attributes, _links([delivery])
        )
        if isinstance(outcome, (DeadLettered, Unsettled)):
            span.set_status(Status(StatusCode.ERROR, outcome.kind))
        span.end()

    # ── attributes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _of_delivery(self, operation: str, delivery: Delivery, position: str) -> dict[str, str | int]:
        attributes = self._attributes(operation, operation, delivery.stream, delivery.envelope)
        attributes["messaging.message.id"] = shown(delivery.event_id)
        attributes["messaging.consumer.group.name"] = position
        attributes["tidings.attempt"] = delivery.attempt
        return attributes

    def _attributes(self, name: str, operation: str, stream: str, envelope: Envelope | None) -> dict[str, str | int]:
        found: dict[str, str | int] = {
            "messaging.system": self._system,
            "messaging.operation.name": name,
            "messaging.operation.type": operation,
            "messaging.destination.name": stream,
            "tidings.service": self._service,
        }
        if envelope is not None:
            found["messaging.message.id"] = shown(envelope.id)
            found["messaging.message.conversation_id"] = shown(envelope.correlation_id or envelope.id)
            found["tidings.event.type"] = shown(envelope.type)
            if envelope.key is not None:
                found["tidings.event.key"] = shown(envelope.key)
        return found


async def _inside(span: Span, call: Call, event: Any, claim: Any, delivery: Any) -> Any:
    scope = current.get()
    if scope is not None:
        scope.span = span
    token = contexts.attach(trace.set_span_in_context(span))
    try:
        return await call(event, claim, delivery)
    except BaseException as error:
        _failed(span, error)
        raise
    finally:
        contexts.detach(token)
        span.end()


def _failed(span: Span, error: BaseException) -> None:
    span.record_exception(error)
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR, shown(f"{type(error).__name__}: {error}", 200)))


def _cause(scope: Scope) -> Context | None:
    """What causes an event that a handler says: its own span, or else the event that it handles."""
    if isinstance(scope.span, Span):
        return trace.set_span_in_context(scope.span, _ROOT)
    return origin_of(scope.delivery) or _ROOT


def origin_of(delivery: Delivery) -> Context | None:
    """The context of the producer, as it came with the event; None where there is none, or what stands there is none.

    It may come from anybody, so it is measured before it is read.
    """
    parent, state = _carried(delivery)
    if parent is None or len(parent) > MOST_TRACEPARENT:
        return None
    carrier = {"traceparent": parent}
    if state and len(state) <= MOST_TRACESTATE:
        carrier["tracestate"] = state
    found = _W3C.extract(carrier, _ROOT)
    return found if trace.get_current_span(found).get_span_context().is_valid else None


def _carried(delivery: Delivery) -> tuple[str | None, str | None]:
    """What stands in the envelope, or in the headers that others' clients write."""
    envelope = delivery.envelope
    if envelope is not None and envelope.traceparent is not None:
        return envelope.traceparent, envelope.tracestate
    headers: Mapping[str, str] = delivery.headers
    return headers.get("traceparent"), headers.get("tracestate")


def _links(deliveries: Sequence[Delivery]) -> list[Link]:
    origins = [origin for one in deliveries if (origin := origin_of(one)) is not None]
    return [Link(trace.get_current_span(origin).get_span_context()) for origin in origins]
