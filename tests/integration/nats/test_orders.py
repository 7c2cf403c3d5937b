"""Orders to a handler whose process does not hear them when they are given."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.nats.conftest import until
from tests.integration.nats.server import NatsServer, Proxy
from tests.integration.shop import Placed
from tidings import Service, control
from tidings.brokers.nats.api import Api
from tidings.brokers.nats.broker import NatsBroker
from tidings.brokers.nats.names import NOTE_STREAM
from tidings.ports import Plan


async def test_P10_P12_a_paused_handler_goes_on_that_was_cut_off_for_as_long_as_the_end_of_its_pause_is_remembered(
    server: NatsServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidings.brokers.nats.reading.ANSWER", 2.0)
    monkeypatch.setitem(Api.call.__kwdefaults__ or {}, "patience", 0.5)
    operator = NatsBroker(server.url)
    await operator.open(Plan(service="ops"))
    stock, seen = Service("stock", publishes=[Placed]), list[str]()

    @stock.on(Placed, idempotent=True, order=None)
    async def reserve(event: Placed) -> None:
        seen.append(event.order_id)

    async with stock.running(broker=proxy.url):
        (worker,) = stock.active.workers
        await control.pause(operator, "stock.reserve")
        await until(lambda: worker.paused)
        proxy.hold()
        proxy.cut()
        await until(lambda: stock.active.broker.trouble)
        assert await control.resume(operator, "stock.reserve") is not None
        await asyncio.sleep(9.0)  # until whoever followed the orders has given up
        # What the server does by itself an hour after a note was taken back.
        await operator._api.call(f"STREAM.PURGE.{NOTE_STREAM}", {})
        proxy.release()
        await until(lambda: not stock.active.broker.trouble, 30.0)
        await stock.publish(Placed(order_id="a", number=1))
        await until(lambda: seen == ["a"], 30.0)
        assert not worker.paused
    await operator.close()
