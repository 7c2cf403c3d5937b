"""The server's configuration in docs/howto/run-in-production.md is enough for a service, and no more than that."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import pytest

from tests.integration.nats.conftest import until
from tests.integration.nats.server import NatsServer
from tests.unit.test_docs import ROOT, blocks
from tidings import BrokerUnavailable, ConfigurationError, Dead, Event, Retry, Service
from tidings.brokers.nats.broker import NatsBroker
from tidings.dead_letters import list_letters
from tidings.observe import Observability
from tidings.ports import Plan
from tools.services.ports import free_port

pytestmark = pytest.mark.server


class OrderPlaced(Event, type="order.placed", version=1, key="order_id"):
    order_id: str


class StockReserved(Event, type="stock.reserved", version=1, key="order_id"):
    order_id: str


def block(comment: str) -> str:
    page = ROOT / "docs" / "howto" / "run-in-production.md"
    (text,) = [one.text for one in blocks(page) if one.comment == comment]
    return text


def server_of_the_page(folder: Path) -> NatsServer:
    """The server of the page, but for the folder and the ports."""
    made = NatsServer(folder)
    text = block("nats-server.conf").replace("0.0.0.0:4222", f"127.0.0.1:{made.port}")
    text = text.replace("/var/lib/nats", str(folder / "js"))
    text = text.replace('http: "127.0.0.1:8222"\n', "").replace("100GB", "100MB")
    (made.folder / "server.conf").write_text(text)
    return made


@pytest.fixture
def server(tmp_path: Path) -> NatsServer:
    return server_of_the_page(tmp_path / "server")


async def test_three_servers_of_the_page_are_a_cluster(tmp_path: Path) -> None:
    names = ("nats-1", "nats-2", "nats-3")
    servers = {name: server_of_the_page(tmp_path / name) for name in names}
    inner: dict[str, int] = {}
    for name in names:
        inner[name] = free_port()
    for name, server in servers.items():
        text = block("nats-cluster.conf").replace("0.0.0.0:6222", f"127.0.0.1:{inner[name]}")
        text = text.replace('server_name: "nats-1"', f'server_name: "{name}"')
        for other, port in inner.items():
            text = text.replace(f"nats://{other}:6222", f"nats://127.0.0.1:{port}")
        configuration = server.folder / "server.conf"
        configuration.write_text(f"{configuration.read_text()}\n{text}")
    seen: list[str] = []
    try:
        await asyncio.gather(*(asyncio.to_thread(server.start) for server in servers.values()))
        where = ",".join(f"127.0.0.1:{server.port}" for server in servers.values())
        url = f"nats://stock:stock-password@{where}?inbox=_INBOX_stock&replicas=3"
        stock = Service("stock", broker=url, publishes=[StockReserved])

        @stock.on(StockReserved, idempotent=True, name="reserve")
        async def reserve(reserved: StockReserved) -> None:
            seen.append(reserved.order_id)

        async with stock.running():
            await stock.publish(StockReserved(order_id="with all three"))
            await asyncio.to_thread(servers["nats-1"].stop)
            await stock.publish(StockReserved(order_id="with two"), timeout=30)
            await until(lambda: set(seen) == {"with all three", "with two"}, 30)
    finally:
        for server in servers.values():
            server.stop()


@pytest.mark.parametrize("order", ["key", None])
async def test_the_permissions_of_the_page_are_enough_and_no_more(
    server: NatsServer, order: Literal["key"] | None, caplog: pytest.LogCaptureFixture
) -> None:
    server.start()
    try:
        where = f"127.0.0.1:{server.port}"
        seen: list[str] = []
        stock = Service("stock", broker=f"nats://stock:stock-password@{where}?inbox=_INBOX_stock")

        @stock.on(OrderPlaced, idempotent=True, order=order, retry=Retry(attempts=2, first=0.05))
        async def reserve(order: OrderPlaced) -> StockReserved:
            seen.append(order.order_id)
            if order.order_id == "bad":
                raise Dead("no such shelf")
            if order.order_id == "flaky" and seen.count("flaky") == 1:
                raise ConnectionError("try again")
            return StockReserved(order_id=order.order_id)

        orders = Service("orders", broker=f"nats://ops:ops-password@{where}", publishes=[OrderPlaced])
        sight = Observability(stock, port=None, every=0.2)
        async with orders.running(), sight, stock.running():
            for name in ("good", "bad", "flaky"):
                await orders.publish(OrderPlaced(order_id=name))
            await until(lambda: len(seen) == 4)
            await until(lambda: 'tidings_dead_letters_held{handler="reserve",service="stock"} 1.0' in page(sight), 30)
            await stock.publish(StockReserved(order_id="by hand"))
            (letter,) = await list_letters(orders.active.broker)
            assert letter.key == "bad"
            assert not stock.active.broker.trouble
        assert "permissions violation" not in caplog.text.lower()
        await _is_kept_out(where)
    finally:
        server.stop()


def page(sight: Observability) -> str:
    return sight.metrics.text().decode()


async def _is_kept_out(where: str) -> None:
    """The user of the stock publishes to no stream but its own, and reads no log."""
    intruder = Service(
        "stock", broker=f"nats://stock:stock-password@{where}?inbox=_INBOX_stock", publishes=[OrderPlaced]
    )
    async with intruder.running():
        with pytest.raises(ConfigurationError, match="may not publish on order"):
            await intruder.publish(OrderPlaced(order_id="forged"), timeout=1.0)
    broker = NatsBroker(f"nats://stock:stock-password@{where}?inbox=_INBOX_stock")
    await broker.open(Plan(service="stock"))
    try:
        with pytest.raises((BrokerUnavailable, TimeoutError)):
            async with asyncio.timeout(3.0):
                await list_letters(broker)
    finally:
        await broker.close()
