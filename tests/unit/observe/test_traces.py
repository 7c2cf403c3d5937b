"""Spans, and the context that travels with an event."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.spans import Spans, id_of, parent_of, spans, traces_of
from tests.unit.observe.shop import Placed, shop
from tidings import Event, Retry, Service
from tidings.dead_letters import list_letters, redrive
from tidings.delivery import Message
from tidings.envelope import envelope_of, read_envelope, to_structured
from tidings.errors import EventTooLarge, NotStored
from tidings.testing import MemoryBroker

__all__ = ["spans"]


class Shipped(Event, type="parcel.shipped", version=1, key="order_id"):
    order_id: str


async def test_P14_a_producer_and_a_consumer_are_one_trace_below_the_span_of_the_publisher(spans: Spans) -> None:
    service, broker = shop(), MemoryBroker()
    async with service.running(broker=broker):
        with trace.get_tracer("test").start_as_current_span("request"):
            await service.publish(Placed(order_id="1"))
        await broker.idle()
    request, send, process = spans.one("request"), spans.one("send order"), spans.one("process order")
    assert parent_of(send) == id_of(request)
    assert parent_of(process) == id_of(send)
    assert [link.context.span_id for link in process.links] == [id_of(send)]
    assert (send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert len(traces_of([request, send, process])) == 1
    said = dict(process.attributes or {})
    assert said["messaging.system"] == "memory"
    assert said["messaging.operation.type"] == "process"
    assert said["messaging.destination.name"] == "order"
    assert said["messaging.consumer.group.name"] == "shop.handle"
    assert said["messaging.message.id"] == read_envelope(*_message(broker)).id
    assert said["tidings.event.type"] == "order.placed"
    assert spans.all("settle order") == []


def _message(broker: MemoryBroker) -> tuple[bytes, dict[str, str]]:
    found = broker.messages("order.placed")[0]
    return found.body, dict(found.headers)


async def test_what_a_handler_does_and_causes_is_below_its_span(spans: Spans, tmp_path: Path) -> None:
    service = Service("shop", store=f"sqlite:///{tmp_path}/shop.db", publishes=[Placed, Shipped])

    @service.on(Placed, name="ship")
    async def ship(event: Placed, db: AsyncConnection) -> Shipped:
        with trace.get_tracer("test").start_as_current_span("work"):
            return Shipped(order_id=event.order_id)

    @service.on(Shipped, name="told", idempotent=True)
    def told(event: Shipped) -> None:
        with trace.get_tracer("test").start_as_current_span("work in a thread"):
            pass

    broker = MemoryBroker()
    async with service.running(broker=broker):
        await service.publish(Placed(order_id="1"))
        async with asyncio.timeout(10):
            while not spans.all("process parcel"):  # noqa: ASYNC110  # what is waited for has no event
                await asyncio.sleep(0.01)
    placed, create = spans.one("process order"), spans.one("create parcel")
    told_span = spans.one("process parcel")
    assert parent_of(spans.one("work")) == id_of(placed)
    assert parent_of(create) == id_of(placed)
    assert parent_of(told_span) == id_of(create)
    assert parent_of(spans.one("work in a thread")) == id_of(told_span)
    assert len(traces_of(spans.all())) == 1


async def test_an_event_of_a_transaction_belongs_to_the_span_in_which_it_was_written(
    spans: Spans, tmp_path: Path
) -> None:
    service, broker = Service("shop", store=f"sqlite:///{tmp_path}/shop.db", publishes=[Placed]), MemoryBroker()
    async with service.running(broker=broker):
        with trace.get_tracer("test").start_as_current_span("request"):
            async with service.transaction(AsyncConnection) as tx:
                await service.publish(Placed(order_id="1"), tx=tx)
        async with asyncio.timeout(10):
            while not broker.messages("order.placed"):  # noqa: ASYNC110  # what is waited for has no event
                await asyncio.sleep(0.01)
    create = spans.one("create order")
    assert parent_of(create) == id_of(spans.one("request"))
    found = read_envelope(*_message(broker)).traceparent
    assert found is not None
    assert found.split("-")[2] == f"{id_of(create):016x}"


async def test_P7_a_failure_its_retry_its_dead_letter_and_its_redrive_are_one_trace(spans: Spans) -> None:
    service, broker = Service("shop", publishes=[Placed]), MemoryBroker()
    mended = False

    @service.on(Placed, name="handle", idempotent=True, order=None, retry=Retry(attempts=2, first=0.01))
    async def handle(event: Placed) -> None:
        if not mended:
            raise RuntimeError("the shelf is broken")

    async with service.running(broker=broker):
        await service.publish(Placed(order_id="1"))
        await broker.idle()
        (letter,) = await list_letters(broker)
        mended = True
        await redrive(broker, letter)
        await broker.idle()
    first, second, third = spans.all("process order")
    assert [one.status.status_code for one in (first, second, third)] == [
        StatusCode.ERROR,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]
    assert [(one.attributes or {})["tidings.attempt"] for one in (first, second)] == [1, 2]
    assert (first.attributes or {})["error.type"] == "RuntimeError"
    assert first.events[0].name == "exception"
    outcomes = [(one.attributes or {})["tidings.outcome"] for one in spans.all("settle order")]
    assert outcomes == ["retry", "dead"]
    assert len(traces_of(spans.all())) == 1


async def test_a_batch_is_a_span_that_is_linked_to_all_of_its_events(spans: Spans) -> None:
    service, broker = Service("shop", publishes=[Placed]), MemoryBroker()
    sizes: list[int] = []

    @service.on_batch(Placed, name="handle", idempotent=True)
    async def handle(events: list[Placed]) -> list[None]:
        sizes.append(len(events))
        return [None] * len(events)

    async with service.running(broker=broker):
        await service.publish_many([Placed(order_id=str(number)) for number in range(5)])
        await broker.idle()
    batches = spans.all("process order")
    assert [(one.attributes or {})["messaging.batch.message_count"] for one in batches] == sizes
    linked = {link.context.span_id for one in batches for link in one.links}
    assert linked == {id_of(one) for one in spans.all("send order")}
    assert all(one.parent is None for one in batches)


async def test_P1_a_publish_that_fails_is_seen_to(spans: Spans) -> None:
    service, broker = shop(), MemoryBroker()
    async with service.running(broker=broker):
        broker.fail_publish(NotStored("full"))
        with pytest.raises(NotStored):
            await service.publish(Placed(order_id="1"))
    send = spans.one("send order")
    assert send.status.status_code is StatusCode.ERROR
    assert (send.attributes or {})["error.type"] == "NotStored"


async def test_what_cannot_even_be_sent_is_seen_to_as_well_and_its_span_ends(spans: Spans) -> None:
    service = shop()
    async with service.running(broker=MemoryBroker()):
        with pytest.raises(EventTooLarge):
            await service.publish_many([Placed(order_id="1"), Placed(order_id="2", wanted="x" * 2_000_000)])
    first, second = spans.all("send order")
    assert first.status.status_code is second.status.status_code is StatusCode.ERROR
    assert (first.attributes or {})["error.type"] == "EventTooLarge"


@pytest.mark.parametrize(
    "carried",
    [
        "00-" + "a" * 100_000,
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-" + "b" * 100_000,
        "nonsense\n",
        "",
    ],
    ids=["too long", "all zero", "a long tail", "nonsense", "empty"],
)
async def test_a_context_from_outside_that_is_none_begins_a_trace_of_its_own(spans: Spans, carried: str) -> None:
    """Trap 170: it may come from anybody."""
    (found,) = await _handled(carried, spans)
    assert found is None


async def test_a_context_from_outside_is_taken_up(spans: Spans) -> None:
    (found,) = await _handled("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", spans)
    assert found == 0x00F067AA0BA902B7


async def _handled(carried: str, spans: Spans) -> list[int | None]:
    """By process span, the parent that it has."""
    service, broker = shop(), MemoryBroker()
    envelope = msgspec.structs.replace(
        envelope_of(Placed(order_id="1"), "elsewhere"), traceparent=carried, tracestate="x" * 100_000
    )
    body = to_structured(envelope)
    async with service.running(broker=broker):
        message = Message(id="1", stream="order", type="order.placed", key="1", body=body)
        assert await broker.publish([message], timeout=20) == [None]
        await broker.idle()
    return [one.parent and one.parent.span_id for one in spans.all("process order")]


async def test_what_is_not_traced_upstream_is_not_traced_here(spans: Spans) -> None:
    """The flag of sampling is the publisher's to set, and the SDK's default respects it."""
    assert await _handled("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", spans) == []


def test_where_nobody_has_set_up_an_sdk_nothing_of_opentelemetry_is_imported() -> None:
    code = """
import asyncio, sys
from tidings import Event, Service
from tidings.testing import MemoryBroker
class Placed(Event, type="order.placed", version=1):
    n: int
shop = Service("shop", publishes=[Placed])
@shop.on(Placed, idempotent=True)
async def handle(event: Placed) -> None: ...
async def main():
    broker = MemoryBroker()
    async with shop.running(broker=broker):
        assert shop.active.traces is None
        await shop.publish(Placed(n=1))
        await broker.idle()
asyncio.run(main())
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
import opentelemetry.trace
async def again():
    async with shop.running(broker=MemoryBroker()):
        assert shop.active.traces is None, "the API alone traces nothing"
asyncio.run(again())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
