"""One trace of an order through the three services of the demo, over any broker: its retries and its duplicate too."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

from examples.shop import ledger, trouble
from examples.shop.events import OrderPlaced
from examples.shop.orders import orders
from examples.shop.payments import payments
from examples.shop.stock import stock
from tests.spans import Spans, id_of, parent_of, traces_of
from tidings import Service
from tidings.delivery import Message
from tidings.envelope import envelope_of, to_structured


def of(span: ReadableSpan, name: str) -> object:
    return (span.attributes or {}).get(name)


async def until(true: object, seconds: float = 60.0) -> None:
    assert callable(true)
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  # an exporter tells nobody
            await asyncio.sleep(0.05)


async def one_trace_through_the_demo(url: str, system: str, folder: Path, spans: Spans) -> None:
    """An order that fails twice, and comes once more when it was applied: what an exporter has to have of it."""
    front = Service("orders-front", publishes=[OrderPlaced])
    order = OrderPlaced(order_id="order-1", sku="flaky", quantity=2, placed_at=datetime.now(UTC))
    async with AsyncExitStack() as stack:
        for service in (stock, payments, orders):
            path = folder / f"{service.name}.db"
            ledger.create(path)
            await stack.enter_async_context(service.running(broker=url, store=f"sqlite:///{path}"))
        await stack.enter_async_context(front.running(broker=url))
        with trace.get_tracer("web").start_as_current_span("POST /orders"):
            await front.publish(order)
        await until(lambda: spans.all("process payment"))
        await front.active.broker.publish([repeated(order, spans.one("send order"))], timeout=5)
        await until(lambda: spans.all("settle order", tidings__outcome="duplicate"))
    applied = [
        ledger.effects(folder / f"{name}.db", handler)
        for name, handler in (("stock", "stock.reserve"), ("payments", "payments.take"), ("orders", "orders.close"))
    ]
    assert applied == [{"order-1": 1}] * 3

    every = [one for one in spans.all() if one.name != "POST /orders"]
    assert len(traces_of(spans.all())) == 1, "one trace"
    request, send = spans.one("POST /orders"), spans.one("send order")
    first, second, third = spans.all("process order")
    assert parent_of(send) == id_of(request)
    assert [parent_of(one) for one in (first, second, third)] == [id_of(send)] * 3, "each attempt is one of this event"
    assert [of(one, "tidings.attempt") for one in (first, second, third)] == [1, 2, 3]
    assert [of(one, "error.type") for one in (first, second, third)] == ["ConnectionError", "ConnectionError", None]
    reserved, paid = spans.one("create stock"), spans.one("create payment")
    taken, closed = spans.one("process stock"), spans.one("process payment")
    assert parent_of(reserved) == id_of(third)
    assert parent_of(taken) == id_of(reserved)
    assert parent_of(paid) == id_of(taken)
    assert parent_of(closed) == id_of(paid)
    outcomes = [of(one, "tidings.outcome") for one in spans.all("settle order")]
    assert outcomes == ["retry", "retry", "duplicate"]
    assert {of(one, "tidings.service") for one in every} == {"orders-front", "stock", "payments", "orders"}
    assert {of(one, "messaging.system") for one in every} == {system}


def repeated(order: OrderPlaced, send: ReadableSpan) -> Message:
    """The same event with the context that it was sent in, under an id that the broker does not know."""
    context = send.get_span_context()
    assert context is not None
    carried = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
    body = to_structured(envelope_of(order, "orders-front", traceparent=carried))
    return msgspec.structs.replace(trouble.duplicate(order, 1), body=body)
