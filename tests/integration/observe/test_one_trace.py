"""One trace of an order through the three services of the demo, on a real server: its retries and its duplicate too."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

from examples.shop import ledger, trouble
from examples.shop.events import OrderPlaced
from examples.shop.orders import orders
from examples.shop.payments import payments
from examples.shop.stock import stock
from tests.integration.nats.server import NatsServer
from tests.spans import Spans, id_of, parent_of, spans, traces_of
from tidings import Service
from tidings.delivery import Message, Route
from tidings.envelope import read_envelope, to_structured

__all__ = ["spans"]
pytestmark = pytest.mark.server


def of(span: ReadableSpan, name: str) -> object:
    return (span.attributes or {}).get(name)


async def until(true: object, seconds: float = 60.0) -> None:
    assert callable(true)
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  # an exporter tells nobody
            await asyncio.sleep(0.05)


@pytest.mark.proves("P14", broker="nats", store="sqlite")
async def test_P14_an_order_is_one_trace_through_three_services_with_its_retries_and_its_duplicate(
    spans: Spans, tmp_path: Path
) -> None:
    nats = NatsServer(tmp_path / "nats").start()
    front = Service("orders-front", publishes=[OrderPlaced])
    order = OrderPlaced(order_id="order-1", sku="flaky", quantity=2, placed_at=datetime.now(UTC))
    try:
        async with AsyncExitStack() as stack:
            for service in (stock, payments, orders):
                path = tmp_path / f"{service.name}.db"
                ledger.create(path)
                await stack.enter_async_context(service.running(broker=nats.url, store=f"sqlite:///{path}"))
            await stack.enter_async_context(front.running(broker=nats.url))
            with trace.get_tracer("web").start_as_current_span("POST /orders"):
                await front.publish(order)
            await until(lambda: spans.all("process payment"))
            await front.active.broker.publish([await repeated(front, order)], timeout=5)
            await until(lambda: spans.all("settle order", tidings__outcome="duplicate"))
    finally:
        nats.stop()
    applied = [
        ledger.effects(tmp_path / f"{name}.db", handler)
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
    assert {of(one, "messaging.system") for one in every} == {"nats"}


async def repeated(front: Service, order: OrderPlaced) -> Message:
    """The same message, as it was stored, under an id that the broker does not know."""
    async for stored in front.active.broker.read(Route.EVENT, "order"):
        envelope = read_envelope(stored.body, stored.headers)
        message = trouble.duplicate(order, 1)
        assert envelope.id in message.id
        return Message(
            id=message.id, stream="order", type="order.placed", key=order.order_id, body=to_structured(envelope)
        )
    raise AssertionError("nothing was stored")
