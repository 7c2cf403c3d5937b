"""Three services that cause one another's events, over whatever broker: what an event's trace has to hold."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from opentelemetry import trace

from tests.spans import Spans, id_of, parent_of, traces_of
from tidings import Event, Retry, Service


class Asked(Event, type="chainasked.made", version=1, key="id"):
    id: str


class Answered(Event, type="chainanswered.made", version=1, key="id"):
    id: str


class Heard(Event, type="chainheard.made", version=1, key="id"):
    id: str


async def one_trace_through_three_services(url: str, system: str, spans: Spans) -> None:
    """The first fails once, so that its event comes again; each causes the event of the next."""
    front = Service("chain-front", publishes=[Asked])
    first, second, third = (Service(f"chain-{name}") for name in ("first", "second", "third"))
    failed, heard = False, asyncio.Event()

    @first.on(Asked, name="answer", idempotent=True, order=None, retry=Retry(attempts=3, first=0.1))
    async def answer(event: Asked) -> Answered:
        nonlocal failed
        if not failed:
            failed = True
            raise RuntimeError("not at once")
        return Answered(id=event.id)

    @second.on(Answered, name="hear", idempotent=True)
    async def hear(event: Answered) -> Heard:
        return Heard(id=event.id)

    @third.on(Heard, name="end", idempotent=True)
    async def end(event: Heard) -> None:
        heard.set()

    async with AsyncExitStack() as stack:
        for service in (third, second, first, front):
            await stack.enter_async_context(service.running(broker=url))
        with trace.get_tracer("web").start_as_current_span("request"):
            await front.publish(Asked(id="1"))
        async with asyncio.timeout(60):
            await heard.wait()
    assert len(traces_of(spans.all())) == 1
    send = spans.one("send chainasked")
    attempts = spans.all("process chainasked")
    assert [(one.attributes or {})["tidings.attempt"] for one in attempts] == [1, 2]
    assert {parent_of(one) for one in attempts} == {id_of(send)}
    assert parent_of(spans.one("create chainanswered")) == id_of(attempts[1])
    assert parent_of(spans.one("process chainheard")) == id_of(spans.one("create chainheard"))
    assert (spans.one("settle chainasked").attributes or {})["tidings.outcome"] == "retry"
    assert {(one.attributes or {}).get("messaging.system") for one in spans.all() if one.name != "request"} == {system}
