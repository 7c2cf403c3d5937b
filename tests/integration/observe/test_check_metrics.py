"""What a live endpoint serves is what promtool wants, while a service works and while it only starts."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.integration.nats.server import NatsServer
from tests.unit.observe.shop import Placed
from tidings import Service
from tidings.observe import Observability
from tools.services.prometheus import promtool

pytestmark = pytest.mark.server


async def test_promtool_finds_nothing_wrong_with_a_live_endpoint(tmp_path: Path) -> None:
    nats = NatsServer(tmp_path / "nats").start()
    service = Service("shop", broker=nats.url, store=f"sqlite:///{tmp_path}/shop.db", publishes=[Placed])
    seen = asyncio.Event()

    @service.on(Placed, name="handle")
    async def handle(event: Placed, db: AsyncConnection) -> None:
        seen.set()

    try:
        sight = Observability(service, port=0)
        async with sight:
            checked(await asyncio.to_thread(scrape, sight.url))
            async with service.running():
                await service.publish(Placed(order_id="1"))
                async with asyncio.timeout(20):
                    await seen.wait()
                await sight.look()
                text = await asyncio.to_thread(scrape, sight.url)
                checked(text)
    finally:
        nats.stop()
    for name in ("reconnects_total", "stream_keep_seconds", "outbox_waiting", "stage_seconds_bucket"):
        assert f"tidings_{name}{{" in text, name


def scrape(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def checked(text: str) -> None:
    promtool("check", "metrics", stdin=text)
