"""Servers that go away and stores that are locked: what is told meanwhile, and that nothing is lost."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from contextlib import closing

import nats
import nats.js.api
import pytest

from tests.acceptance.services import Placed
from tests.acceptance.stage import Stage
from tests.acceptance.test_handlers import probe
from tidings import NotStored, Service
from tidings.errors import BrokerUnavailable
from tools.drill_shop import backlog

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="nats", store="sqlite")]

OUTAGE = 10.0


def orders(count: int) -> list[Placed]:
    return [Placed(order_id=f"order-{number % 10}", number=number) for number in range(count)]


async def test_P10_a_server_that_is_away_for_ten_seconds_comes_back_to_everybody(stage: Stage) -> None:
    events = orders(300)
    worker = await stage.run("stock")
    publishing = asyncio.create_task(stage.publish(events, per_second=100))
    await stage.applied("stock.reserve", 50)
    await asyncio.to_thread(stage.server.stop, signal.SIGKILL)
    await asyncio.sleep(OUTAGE / 2)
    assert (await probe(worker, "live"))[0] == 200, "a restart of the process brings no server back"
    status, said = await probe(worker, "ready")
    assert status == 503
    assert "no connection to" in said
    await asyncio.sleep(OUTAGE / 2)
    await asyncio.to_thread(stage.server.start)
    await publishing
    await stage.judge("stock.reserve", events)
    assert (await probe(worker, "ready"))[0] == 200
    assert await stage.letters() == []


async def test_P2_what_could_not_be_settled_is_reported_and_applied_once(stage: Stage) -> None:
    """The server hangs while acknowledgements are on their way: they are told as unsettled, and it delivers again."""
    stage.broker = f"{stage.server.url}?ack_wait=6s"  # less than the outage; nobody is kept up for so long otherwise
    events = orders(400)
    worker = await stage.run("stock")
    publishing = asyncio.create_task(stage.publish(events, per_second=200))
    for reached in (50, 150):
        await stage.applied("stock.reserve", reached)
        stage.server.pause()
        await asyncio.sleep(OUTAGE if reached == 50 else 1.0)
        stage.server.resume()
    await publishing
    await stage.judge("stock.reserve", events)
    outcomes = [record for record in worker.records if "outcome" in record]
    unsettled = {record["event_id"] for record in outcomes if record["outcome"] == "unsettled"}
    known = {record["event_id"] for record in outcomes if record["outcome"] == "duplicate"}
    assert known <= unsettled, "applied before, and its acknowledgement was not reported as unsettled"
    assert await stage.letters() == []


async def test_P3_nothing_is_acknowledged_while_the_store_is_locked(stage: Stage) -> None:
    events = orders(40)
    worker = await stage.run("stock")
    with closing(sqlite3.connect(stage.database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        await stage.publish(events)
        async with asyncio.timeout(60):
            while (await probe(worker, "ready"))[0] != 503:  # noqa: ASYNC110  # another process turns red
                await asyncio.sleep(0.2)
        assert await asyncio.to_thread(backlog, stage.server.url) == len(events)
        assert (await probe(worker, "live"))[0] == 200
        other.execute("ROLLBACK")
    await stage.judge("stock.reserve", events)
    assert await stage.letters() == []


async def test_P1_a_publish_that_nothing_stores_raises(stage: Stage) -> None:
    async with Service("front", broker=stage.broker, publishes=[Placed]).running() as front:
        await front.publish(Placed(order_id="stored"))
        client = await nats.connect(stage.server.url)
        jetstream = client.jetstream()
        config = (await jetstream.stream_info("order")).config
        await jetstream.update_stream(nats.js.api.StreamConfig(**{**vars(config), "max_msgs": 1}))
        with pytest.raises(NotStored, match="full"):
            await front.publish(Placed(order_id="full"))
        assert (await jetstream.stream_info("order")).state.messages == 1
        await jetstream.delete_stream("order")
        with pytest.raises(NotStored, match="there is no stream 'order'"):
            await front.publish(Placed(order_id="nowhere"))
        await client.close()
        await asyncio.to_thread(stage.server.stop)
        with pytest.raises(BrokerUnavailable):
            await front.publish(Placed(order_id="nobody"), timeout=1.0)
