"""Where the time of an event goes, what is published, what is repeated, and what the world refuses is counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.unit.observe.shop import Placed, shop
from tidings import Delivery, Service
from tidings.delivery import DeadLettered, Done, Envelope, Retried
from tidings.errors import BrokerUnavailable, Contention, NotStored, StoreUnavailable
from tidings.observe import Observability
from tidings.observe.metrics import Metrics
from tidings.ports import Settled
from tidings.sight import Fill
from tidings.testing import MemoryBroker

STEPS = ("outbox", "transit", "queue", "claim", "handler", "commit", "settle")


def metrics_of_shop() -> Metrics:
    return Metrics("shop", lambda: shop().handlers)


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(name, {"service": "shop", **labels})
    return -1.0 if found is None else found


async def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  # metrics tell nobody
            await asyncio.sleep(0.02)


def delivery(*, failures: int = 0, delivered: int = 1, made: float = 0.0) -> Delivery:
    envelope = Envelope(
        id="1",
        source="s",
        type="order.placed",
        version="v1",
        time=datetime.fromtimestamp(made, UTC) if made else None,
        data=msgspec.Raw(b"{}"),
    )
    found = Delivery(body=b"", stream="order", origin=("order", 1), token=None, envelope=envelope, delivered=delivered)
    found.failures = failures
    return found


async def test_P14_the_time_of_an_event_is_split_into_its_steps(tmp_path: Path) -> None:
    broker, service = MemoryBroker(), Service("shop", store=f"sqlite:///{tmp_path}/shop.db", publishes=[Placed])

    @service.on(Placed, name="handle", order=None)
    async def handle(event: Placed, db: AsyncConnection) -> None:
        await asyncio.sleep(0.1)

    sight = Observability(service, port=None)
    async with sight, service.running(broker=broker):
        await service.publish(Placed(order_id="1"))
        await broker.idle()
    where = {"handler": "handle"}
    for step in STEPS:
        assert value(sight.metrics, "tidings_stage_seconds_count", **where, stage=step) == 1, step
    took = {step: value(sight.metrics, "tidings_stage_seconds_sum", **where, stage=step) for step in STEPS}
    assert took["handler"] >= 0.1
    assert all(seconds >= 0 for seconds in took.values())
    assert value(sight.metrics, "tidings_event_seconds_count", **where) == 1
    assert value(sight.metrics, "tidings_event_seconds_sum", **where) >= 0.1
    assert value(sight.metrics, "tidings_published_total", way="direct") == 1
    assert value(sight.metrics, "tidings_publish_seconds_count", way="direct") == 1


async def test_what_leaves_through_the_outbox_is_counted_as_such(tmp_path: Path) -> None:
    broker, service = MemoryBroker(), Service("shop", store=f"sqlite:///{tmp_path}/shop.db", publishes=[Placed])
    sight = Observability(service, port=None)
    async with sight, service.running(broker=broker):
        async with service.transaction(AsyncConnection) as tx:
            await service.publish(Placed(order_id="1"), tx=tx)
        await until(lambda: value(sight.metrics, "tidings_published_total", way="outbox") == 1)
    assert len(broker.published(Placed)) == 1
    assert value(sight.metrics, "tidings_published_total", way="direct") == -1


async def test_P1_publishing_that_fails_is_counted_by_why() -> None:
    metrics = metrics_of_shop()
    metrics.published("direct", [None, BrokerUnavailable("away"), NotStored("full")], 0.5)
    assert value(metrics, "tidings_published_total", way="direct") == 1
    assert value(metrics, "tidings_publish_failures_total", way="direct", error="unavailable") == 1
    assert value(metrics, "tidings_publish_failures_total", way="direct", error="refused") == 1


async def test_publishing_that_fails_for_real_is_seen() -> None:
    broker, service = MemoryBroker(), shop()
    sight = Observability(service, port=None)
    async with sight, service.running(broker=broker):
        broker.fail_publish(NotStored("full"))
        with pytest.raises(NotStored):
            await service.publish(Placed(order_id="1"))
    assert value(sight.metrics, "tidings_publish_failures_total", way="direct", error="refused") == 1


def test_repeats_attempts_and_what_cannot_be_read_are_counted() -> None:
    metrics = metrics_of_shop()
    batch = [
        Settled(delivery(), Done()),
        Settled(delivery(delivered=2), Done()),
        Settled(delivery(delivered=2, failures=1), Retried(after=1, reason="it waits in place, and is no repeat")),
        Settled(delivery(failures=9), DeadLettered(reason="r", code="failed")),
        Settled(delivery(), DeadLettered(reason="r", code="not-json")),
    ]
    metrics.settled("shop.handle", batch, 0.01)
    where = {"handler": "handle"}
    assert value(metrics, "tidings_redeliveries_total", **where) == 1
    attempts = {name: value(metrics, "tidings_attempts_total", **where, attempt=name) for name in ("1", "2", "more")}
    assert attempts == {"1": 3, "2": 1, "more": 1}
    assert value(metrics, "tidings_decode_failures_total", **where, code="not-json") == 1
    assert value(metrics, "tidings_decode_failures_total", **where, code="failed") == -1


def test_a_repeat_does_not_count_into_the_time_on_the_way() -> None:
    metrics = metrics_of_shop()
    long_ago = time.time() - 1000
    for one in (delivery(failures=1, made=long_ago), delivery(delivered=2, made=long_ago)):
        one.stored = one.arrived = long_ago
        metrics.settled("shop.handle", [Settled(one, Done())], 0.01)
    assert value(metrics, "tidings_stage_seconds_count", handler="handle", stage="queue") == 0
    assert value(metrics, "tidings_event_seconds_count", handler="handle") == 0


def test_a_clock_that_is_behind_makes_no_negative_time() -> None:
    metrics = metrics_of_shop()
    ahead = delivery(made=time.time() + 100)
    ahead.arrived, ahead.stored = time.time(), time.time() + 50
    metrics.settled("shop.handle", [Settled(ahead, Done())], 0.01)
    for step in ("outbox", "transit"):
        assert value(metrics, "tidings_stage_seconds_sum", handler="handle", stage=step) >= 0, step


def test_what_the_store_refuses_is_counted_by_why() -> None:
    metrics = metrics_of_shop()
    for error in (StoreUnavailable("gone"), Contention("locked"), Contention("locked")):
        metrics.refused("shop.handle", error)
    for kind, count in (("unavailable", 1), ("contention", 2)):
        assert value(metrics, "tidings_store_errors_total", handler="handle", error=kind) == count


async def test_a_store_that_is_locked_is_seen(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "shop.db"
    broker = MemoryBroker()
    service = Service("shop", store=f"sqlite:///{path}", publishes=[Placed])

    @service.on(Placed, name="handle", order=None)
    async def handle(event: Placed, db: AsyncConnection) -> None: ...

    sight = Observability(service, port=None)
    async with sight, service.running(broker=broker):
        locking = sqlite3.connect(path, isolation_level=None)
        locking.execute("BEGIN IMMEDIATE")
        await service.publish(Placed(order_id="1"))
        await until(
            lambda: any(
                value(sight.metrics, "tidings_store_errors_total", handler="handle", error=kind) > 0
                for kind in ("contention", "unavailable")
            )
        )
        locking.execute("ROLLBACK")
        locking.close()
        await broker.idle(20)


def test_a_dead_letter_is_seen_to_be_the_first() -> None:
    """A counter that begins with 1 has not risen, for Prometheus: so each begins with 0."""
    metrics = metrics_of_shop()
    metrics.prepare()
    for kind in ("order.placed", "other"):
        for outcome in ("done", "duplicate", "retry", "dead", "unsettled"):
            assert value(metrics, "tidings_outcomes_total", handler="handle", type=kind, outcome=outcome) == 0


async def test_P12_the_age_of_the_oldest_event_and_a_call_past_its_time_are_seen() -> None:
    broker, service = MemoryBroker(), Service("shop", publishes=[Placed])
    gate = asyncio.Event()

    @service.on(Placed, name="handle", idempotent=True, order=None, timeout=0.2)
    async def handle(event: Placed) -> None:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                pass  # it does not end when it is told to

    sight = Observability(service, port=None)
    async with sight, service.running(broker=broker):
        await service.publish(Placed(order_id="1"))
        async with asyncio.timeout(20):
            while True:
                await sight.look()
                overdue = value(sight.metrics, "tidings_call_overdue_seconds", handler="handle")
                if overdue > 0.2:
                    break
                await asyncio.sleep(0.05)
        assert value(sight.metrics, "tidings_backlog_oldest_seconds", handler="handle") > 0.2
        gate.set()
        await broker.idle()
        await sight.look()
        assert value(sight.metrics, "tidings_call_overdue_seconds", handler="handle") == 0
        assert value(sight.metrics, "tidings_backlog_oldest_seconds", handler="handle") == 0


async def test_how_full_a_stream_is_and_how_often_it_was_connected_anew_are_seen_where_the_broker_says_so() -> None:
    class Telling(MemoryBroker):
        reconnects = 3

        async def fill(self, stream: str) -> Fill:
            return Fill(0.25, 60.0)

    service, broker = shop(), Telling()
    sight = Observability(service, port=None)
    async with sight, service.running(broker=broker):
        await sight.look()
        assert value(sight.metrics, "tidings_stream_full_ratio", stream="order") == 0.25
        assert value(sight.metrics, "tidings_stream_keep_seconds", handler="handle") == 60
        assert value(sight.metrics, "tidings_reconnects_total") == 3


async def test_health_is_a_metric_too() -> None:
    service, broker = shop(), MemoryBroker()
    sight = Observability(service, port=None)
    async with sight:
        assert value(sight.metrics, "tidings_live") == 1
        assert value(sight.metrics, "tidings_ready") == 0
        async with service.running(broker=broker):
            sight.health.look()
            assert value(sight.metrics, "tidings_ready") == 1


async def test_an_observer_that_fails_changes_nothing() -> None:
    class Clumsy:
        def received(self, position: str, count: int) -> None: ...

        def settled(self, position: str, batch: object, seconds: float) -> None: ...

        def stage(self, position: str, stage: str, seconds: float) -> None:
            raise RuntimeError("no")

        def refused(self, position: str, error: Exception) -> None:
            raise RuntimeError("no")

        def published(self, way: str, answers: object, seconds: float) -> None:
            raise RuntimeError("no")

    service, broker = shop(), MemoryBroker()
    service.observers.append(Clumsy())
    async with service.running(broker=broker):
        await service.publish(Placed(order_id="1"))
        await broker.idle()
    assert len(broker.published(Placed)) == 1
    assert not broker.dead_letters
