"""What a live endpoint serves is what promtool wants, while a service works and while it only starts; and all of it."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nats.aio.client import Client
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.integration.nats.server import NatsServer
from tests.unit.observe.shop import Placed
from tidings import Dead, Retry, Service
from tidings.delivery import Message
from tidings.envelope import envelope_of, to_structured
from tidings.observe import Observability
from tools.reference import metrics
from tools.services.prometheus import promtool

pytestmark = pytest.mark.server

REFERENCE = re.compile(r"^\| `(tidings_\w+)` \| (\w+) \|", re.MULTILINE)


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[Service, Observability]]:
    """A service whose events end as they say, on a stream that may hold so much."""
    nats = NatsServer(folder / "nats").start()
    service = Service("shop", broker=nats.url, store=f"sqlite:///{folder}/shop.db", publishes=[Placed])
    failed: set[str] = set()

    @service.on(Placed, name="handle", order=None, retry=Retry(attempts=2, first=0.1))
    async def handle(event: Placed, db: AsyncConnection) -> None:
        if event.wanted == "dead":
            raise Dead("nobody wants it")
        if event.wanted == "fail" and event.order_id not in failed:
            failed.add(event.order_id)
            raise ConnectionError("not at once")

    try:
        sight = Observability(service, port=0, every=1000.0)
        async with sight:
            checked(await asyncio.to_thread(scrape, sight.url))
            async with service.running():
                await limit(nats.url)
                yield service, sight
    finally:
        nats.stop()


async def limit(url: str) -> None:
    client = Client()
    await client.connect(url)
    stream = client.jetstream()
    config = (await stream.stream_info("order")).config
    config.max_bytes = 100_000_000
    await stream.update_stream(config)
    await client.close()


async def test_each_metric_of_the_reference_is_served_and_promtool_finds_nothing_wrong(tmp_path: Path) -> None:
    async with served(tmp_path) as (service, sight):
        again = Placed(order_id="again")
        for event in (again, Placed(order_id="dead", wanted="dead"), Placed(order_id="fail", wanted="fail")):
            await service.publish(event)
        body = to_structured(envelope_of(again, "shop"))
        twice = Message(id="another", stream="order", type="order.placed", key="again", body=body)
        bad = Message(id="bad", stream="order", type="order.placed", body=b"\xff")
        assert await service.active.broker.publish([twice, bad], timeout=10) == [None, None]
        missing = {name + ("_bucket" if kind == "histogram" else "") for name, kind in REFERENCE.findall(metrics())}
        assert len(missing) > 35
        wanted = {
            f'tidings_outcomes_total{{handler="handle",outcome="{outcome}",service="shop",type="order.placed"}} {count}'
            for outcome, count in (("done", 2.0), ("duplicate", 1.0), ("retry", 1.0), ("dead", 1.0))
        }
        async with asyncio.timeout(60):
            while missing or wanted:
                await asyncio.sleep(0.2)
                await sight.look()
                text = await asyncio.to_thread(scrape, sight.url)
                missing -= set(re.findall(r"^(tidings_\w+)\{", text, re.MULTILINE))
                wanted -= set(text.splitlines())
                checked(text)


def scrape(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def checked(text: str) -> None:
    promtool("check", "metrics", stdin=text)
