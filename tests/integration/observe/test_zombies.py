"""Each way of being a zombie turns the right page red, on a real server, and it turns green again where it heals.

Red means ready where the world is down, and live only where nothing but a new process helps.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nats.aio.client import Client

from tests.integration.nats.server import NatsServer, Proxy
from tests.unit.observe.shop import Placed
from tidings import Service
from tidings.observe import Observability

pytestmark = [pytest.mark.server, pytest.mark.proves("P10", "P12", broker="nats", store="none")]
SEEN = threading.Event()
"""What is blocked is so until it was seen."""
USER = 'authorization {{ user: "me", password: "{}" }}'


@asynccontextmanager
async def seen(url: str) -> AsyncIterator[tuple[Service, Observability]]:
    service = Service("shop", publishes=[Placed])

    @service.on(Placed, name="handle", idempotent=True, order=None)
    async def handle(event: Placed) -> None:
        if event.wanted == "block":
            SEEN.wait(60)

    sight = Observability(service, port=0)
    async with sight, service.running(broker=url):
        await becomes(sight, ready=True, live=True)
        yield service, sight


async def becomes(sight: Observability, *, ready: bool, live: bool, why: str = "", seconds: float = 60.0) -> None:
    """Wait until the pages say so; and what the scrape says has to be the same."""
    end = time.monotonic() + seconds
    scraped = [f'tidings_{name}{{service="shop"}} {float(value)}' for name, value in (("ready", ready), ("live", live))]
    while True:
        pages = await asyncio.to_thread(ask, sight.url)
        if pages[:2] == (ready, live) and why in pages[2] and all(line in pages[3] for line in scraped):
            return
        assert time.monotonic() < end, (scraped, pages)
        await asyncio.sleep(0.1)


def ask(url: str) -> tuple[bool, bool, str, str]:
    (ready, why), (live, _) = get(f"{url}/health/ready"), get(f"{url}/health/live")
    return ready, live, why, get(f"{url}/metrics")[1]


def get(url: str) -> tuple[bool, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return True, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return False, error.read().decode()


async def test_P10_a_server_that_falls_silent_is_seen_and_the_process_goes_on(nats: NatsServer) -> None:
    """Trap 46: the client still says that it is connected."""
    async with seen(nats.url) as (_, sight):
        nats.pause()
        try:
            await becomes(sight, ready=False, live=True, why="broker: no connection")
        finally:
            nats.resume()
        await becomes(sight, ready=True, live=True)


async def test_P10_a_connection_whose_peer_is_gone_with_bytes_unsent_is_seen(nats: NatsServer) -> None:
    """Trap 47: half open, and what was not sent holds the client's own reconnect up for ever."""
    proxy = await Proxy(nats.port).start()
    try:
        async with seen(proxy.url) as (service, sight):
            proxy.hold()
            big = [Placed(order_id=str(number), wanted="x" * 500_000) for number in range(12)]
            errors = await service.publish_many(big, timeout=1.0)
            assert all(errors)
            await becomes(sight, ready=False, live=True, why="broker: no connection")
            proxy.release()
            await becomes(sight, ready=True, live=True)
    finally:
        await proxy.stop()


async def test_P10_a_login_that_is_refused_is_seen_and_healed_without_a_restart(
    nats: NatsServer, tmp_path: Path
) -> None:
    """Trap 50: an error of the server closes the client's connection for good."""
    secret = tmp_path / "password"
    secret.write_text("old")
    change_password(nats, "old")
    async with seen(f"nats://me@127.0.0.1:{nats.port}?password_file={secret}") as (_, sight):
        change_password(nats, "new")
        await becomes(sight, ready=False, live=True, why="refused")
        secret.write_text("new")
        await becomes(sight, ready=True, live=True)


def change_password(nats: NatsServer, password: str) -> None:
    nats.configure(extra=USER.format(password))
    assert nats._process is not None
    os.kill(nats._process.pid, signal.SIGHUP)
    wait_until(lambda: nats.log.count("Reloaded server configuration") >= (1 if password == "old" else 2))


def wait_until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


async def test_P10_a_consumer_that_was_deleted_is_seen_and_not_made_anew(nats: NatsServer) -> None:
    """Trap 56: fetching from it says nothing but that nothing has come."""
    async with seen(nats.url) as (_, sight):
        client = Client()
        await client.connect(nats.url)
        await client.jetstream().delete_consumer("order", "shop_handle")
        await becomes(sight, ready=False, live=True, why="the position shop.handle is gone")
        await client.close()


async def test_P12_a_blocked_loop_is_not_live_and_lives_again(nats: NatsServer) -> None:
    SEEN.clear()
    async with seen(nats.url) as (service, sight):
        asked = asyncio.get_running_loop().run_in_executor(None, watch, sight.url)
        await service.publish(Placed(order_id="1", wanted="block"))
        worst = await asked
        assert worst[:2] == (False, False)
        assert "the event loop has been blocked" in worst[2]
        await becomes(sight, ready=True, live=True)


def watch(url: str) -> tuple[bool, bool, str, str]:
    """From another thread, until it is neither ready nor live: the two pages are asked one after the other."""
    end = time.monotonic() + 40
    try:
        while any((found := ask(url))[:2]) and time.monotonic() < end:
            time.sleep(0.1)
        return found
    finally:
        SEEN.set()
