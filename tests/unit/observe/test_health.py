"""Live and ready, each way they turn red, told while the loop itself cannot."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.unit.observe.shop import Placed, shop
from tidings import ConfigurationError, Service, StoreUnavailable
from tidings.observe import Observability
from tidings.observe._looking import Looks
from tidings.observe._progress import Progress
from tidings.observe.server import MOST_REQUESTS, Answer, Server
from tidings.ports import Backlog
from tidings.testing import MemoryBroker

Answered = tuple[int, dict[str, Any]]


def get(url: str, page: str) -> Answered:
    try:
        with urllib.request.urlopen(f"{url}{page}", timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


async def ask(sight: Observability, page: str) -> Answered:
    return await asyncio.to_thread(get, sight.url, page)


async def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  # what is waited for changes on threads too
            await asyncio.sleep(0.02)


@asynccontextmanager
async def seen(service: Service, **options: Any) -> AsyncIterator[tuple[Observability, MemoryBroker]]:
    broker, sight = MemoryBroker(), Observability(service, port=0, **options)
    async with sight, service.running(broker=broker):
        await until(lambda: sight.ready().ok)
        yield sight, broker


async def test_a_service_that_starts_is_live_and_not_ready() -> None:
    service = shop()
    async with Observability(service, port=0) as sight:
        assert (await ask(sight, "/health/live"))[0] == 200
        status, body = await ask(sight, "/health/ready")
        assert (status, body["phase"], body["reasons"]) == (503, "starting", ["the service is starting"])


async def test_a_service_that_runs_is_live_and_ready() -> None:
    service = shop()
    async with seen(service) as (sight, _):
        for page in ("/health/live", "/health/ready"):
            assert await ask(sight, page) == (
                200,
                {"status": "ok", "service": "shop", "phase": "running", "reasons": []},
            )
    assert service.observers == []
    assert not [one for one in threading.enumerate() if one.name.startswith("tidings watchdog")]


async def test_P9_a_service_that_stops_is_live_and_not_ready_and_may_still_publish() -> None:
    service, broker = Service("shop", publishes=[Placed]), MemoryBroker()
    entered, go_on = asyncio.Event(), asyncio.Event()
    found: list[Answered] = []

    @service.on(Placed, idempotent=True)
    async def handle(event: Placed) -> list[Placed] | None:
        if event.wanted == "more":
            return None
        entered.set()
        await go_on.wait()
        service.active.wrapper.message(event)
        return [Placed(order_id="2", wanted="more")]

    async with Observability(service, port=0) as sight:
        async with service.running(broker=broker):
            await service.publish(Placed(order_id="1"))
            async with asyncio.timeout(20):
                await entered.wait()

            async def look() -> None:
                await until(lambda: sight.health.ready().phase == "stopping")
                found.extend([await ask(sight, "/health/ready"), await ask(sight, "/health/live")])
                go_on.set()

            looking = asyncio.create_task(look())
        await looking
    (not_ready, body), (live, _) = found
    assert (not_ready, live, body["phase"]) == (503, 200, "stopping")
    assert len(broker.published(Placed)) == 2


async def test_P10_a_broker_that_is_away_makes_it_not_ready_and_leaves_it_live() -> None:
    """Trap 155: restarting processes because of a broker's outage makes a storm."""
    async with seen(shop()) as (sight, broker):
        async with broker.outage():
            await until(lambda: not sight.ready().ok)
            status, body = await ask(sight, "/health/ready")
            assert status == 503
            assert "broker" in body["reasons"][0]
            assert (await ask(sight, "/health/live"))[0] == 200
        await until(lambda: sight.ready().ok)


async def test_an_internal_task_that_keeps_failing_makes_it_not_live() -> None:
    """Trap 153."""

    async def broken() -> None:
        raise RuntimeError("a bug of ours")

    async with seen(shop()) as (sight, _):
        sight._service.active.tasks.spawn("shop something", broken)  # type: ignore[attr-defined]  # only tests do this
        await until(lambda: not sight.live().ok)
        status, body = await ask(sight, "/health/live")
        assert status == 503
        assert body["reasons"] == ["shop something fails: RuntimeError: a bug of ours"]


async def test_a_task_that_fails_because_the_store_is_down_makes_it_not_ready_only() -> None:
    """Trap 155."""

    async def relay() -> None:
        raise StoreUnavailable("the database does not answer")

    async with seen(shop()) as (sight, _):
        sight._service.active.tasks.spawn("shop relay", relay)  # type: ignore[attr-defined]  # only tests do this
        await until(lambda: not sight.ready().ok)
        assert "the database does not answer" in sight.ready().reasons[0]
        assert sight.live().ok


async def test_P12_a_blocked_loop_is_seen_from_a_thread_and_its_stack_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Trap 154: a time.sleep in an async handler is reported."""
    service = Service("shop", publishes=[Placed])
    done, release = asyncio.Event(), threading.Event()

    @service.on(Placed, idempotent=True)
    async def blocks(event: Placed) -> None:
        release.wait(60)
        done.set()

    def said() -> list[logging.LogRecord]:
        """What was said from this block on: a busy machine may have kept the loop waiting before."""
        stacks = ["release.wait(60)" in (record.stack_info or "") for record in caplog.records]
        return caplog.records[stacks.index(True) :] if True in stacks else []

    found: list[Answered] = []
    async with seen(service, live_after=1.2, blocked_after=0.8) as (sight, _):

        def probe() -> None:
            end = time.monotonic() + 40
            while time.monotonic() < end and not found:
                answers = [get(sight.url, page) for page in ("/health/live", "/health/ready")]
                if all(status != 200 for status, _ in answers):
                    found.extend(answers)
                time.sleep(0.05)
            release.set()

        prober = threading.Thread(target=probe)
        with caplog.at_level(logging.WARNING, logger="tidings.health"):
            await service.publish(Placed(order_id="1"))
            prober.start()
            async with asyncio.timeout(60):
                await done.wait()
            await until(lambda: sight.live().ok)
            assert sight.health.lag() > 0.5
            await asyncio.to_thread(prober.join, 20)
            await until(lambda: len(said()) >= 2)
    (live, why), (ready, _) = found
    assert (live, ready) == (503, 503)
    assert "blocked" in why["reasons"][0]
    blocked, again, *_ = said()
    assert "def instead of async def" in blocked.getMessage()
    assert "goes on" in again.getMessage()


async def test_P12_a_call_that_does_not_end_and_holds_others_up_makes_it_not_live_and_is_counted() -> None:
    service, go = Service("shop", publishes=[Placed]), threading.Event()

    @service.on(Placed, idempotent=True, timeout=0.1, abandon_after=0.1)
    def blocks(event: Placed) -> None:
        go.wait(20)

    async with seen(service) as (sight, broker):
        await service.publish(Placed(order_id="1"))
        await until(lambda: not sight.live().ok)
        status, body = await ask(sight, "/health/live")
        assert status == 503
        assert "shop.blocks: a call for order@1 does not end" in body["reasons"][0]
        await sight.look()
        where = '{handler="blocks",service="shop"}'
        assert f"tidings_calls_left_behind{where} 1.0" in sight.metrics.text().decode()
        go.set()
        await broker.idle()
        await until(lambda: sight.ready().ok)
        await sight.look()
        assert f"tidings_calls_left_behind{where} 0.0" in sight.metrics.text().decode()
        assert f"tidings_calls_abandoned_total{where} 1.0" in sight.metrics.text().decode()


def test_events_that_wait_while_nobody_gets_any_are_trouble() -> None:
    """Trap 155: a consumer that is a zombie."""
    progress = Progress(stuck_after=0.05)
    waiting = {"shop.handle": Backlog(pending=3, in_flight=0)}
    progress.look(waiting, lambda position: 0)
    assert not progress.troubles
    time.sleep(0.06)
    progress.look(waiting, lambda position: 0)
    assert "3 events wait" in progress.troubles[0]
    progress.look(waiting, lambda position: 1)
    assert not progress.troubles
    time.sleep(0.06)
    progress.look({"shop.handle": Backlog(pending=2, in_flight=0)}, lambda position: 1)
    assert not progress.troubles, "another process works it off"
    progress.look({"shop.handle": Backlog(pending=2, in_flight=1)}, lambda position: 1)
    assert not progress.troubles


async def test_a_handler_that_somebody_paused_is_ready_however_long_its_events_wait() -> None:
    """It was asked for; and a process that begins paused could not become ready in a rolling restart."""
    service, progress = shop(), Progress(stuck_after=0.05)
    async with seen(service) as (sight, _):
        looks = Looks(service, sight.metrics, progress)
        (worker,) = service.active.workers
        await worker.pause("by somebody, at noon: the warehouse is counted")
        await service.publish(Placed(order_id="1"))
        backlog = await worker.backlog()
        assert (backlog is not None, backlog and backlog.pending) == (True, 1)
        for _ in range(3):
            await looks.look()
            await asyncio.sleep(0.06)
        sight.health.look()
        assert sight.ready().ok
        assert not progress.troubles
        assert (
            'tidings_handler_paused{by="operator",handler="handle",service="shop"} 1.0' in sight.metrics.text().decode()
        )
        await worker.resume()


async def test_a_port_in_use_is_said_with_the_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        service = shop()
        with pytest.raises(ConfigurationError, match=rf"port {port} .* in use .*--port 0"):
            async with Observability(service, port=port):
                pass
        assert not service.observers


def test_a_page_that_fails_says_so_and_other_paths_are_listed() -> None:
    def broken() -> Answer:
        raise RuntimeError("secret")

    server = Server({"/broken": broken, "/fine": lambda: Answer(200, "application/json", b"{}")})
    server.start()
    try:
        assert get(server.url, "/fine?x=1") == (200, {})
        for page, status in (("/broken", 500), ("/nowhere", 404), ("/fine/..", 404)):
            with pytest.raises(urllib.error.HTTPError) as failed:
                urllib.request.urlopen(server.url + page, timeout=20)
            with failed.value as error:
                assert error.code == status
                assert b"secret" not in error.read()
        assert server.url.startswith("http://127.0.0.1:")  # trap 173
    finally:
        server.stop()


def test_idle_connections_cannot_use_up_the_threads() -> None:
    server = Server({"/fine": lambda: Answer(200, "application/json", b"{}")})
    server.start()
    host, _, port = server.url.removeprefix("http://").partition(":")
    idle = [socket.create_connection((host, int(port)), timeout=20) for _ in range(3 * MOST_REQUESTS)]
    try:
        time.sleep(0.5)
        threads = [one for one in threading.enumerate() if "process_request_thread" in one.name]
        assert len(threads) <= MOST_REQUESTS
    finally:
        for one in idle:
            one.close()
        server.stop()
