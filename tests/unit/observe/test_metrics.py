"""What is counted, under which labels, and that strangers cannot make series."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Mapping

import msgspec
import prometheus_client
import pytest

from tests.unit.observe.shop import Placed, shop
from tidings import Delivery, Event, Service
from tidings.delivery import DeadLettered, Done, Duplicate, Envelope, Outcome, Retried, Unsettled
from tidings.observe import Observability
from tidings.observe._looking import outbox_of
from tidings.observe.metrics import Metrics
from tidings.ports import Settled
from tidings.testing import MemoryBroker

SHOP = {"service": "shop", "handler": "handle"}


def delivery(type: str | None) -> Delivery:
    envelope = Envelope(id="1", source="s", type=type, version="v1", data=msgspec.Raw(b"{}")) if type else None
    return Delivery(body=b"", stream="order", origin=("order", 1), token=None, envelope=envelope)


def counted(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, {**SHOP, **labels})


def settle(metrics: Metrics, *outcomes: Outcome, type: str | None = "order.placed") -> None:
    metrics.settled("shop.handle", [Settled(delivery(type), outcome) for outcome in outcomes], 0.02)


def test_P14_every_outcome_is_counted() -> None:
    metrics = Metrics("shop", lambda: shop().handlers)
    metrics.received("shop.handle", 9)
    settle(
        metrics,
        *[Done()] * 2,
        Done(skipped=True),
        Duplicate(),
        Duplicate(of="0"),
        Retried(after=1, reason="r"),
        Retried(after=1, reason="r", counted=False),
        DeadLettered(reason="r", code="bad-data"),
        Unsettled(Done(), "r"),
    )
    settle(metrics, Done())
    kind = {"type": "order.placed"}
    outcomes = {"done": 3, "skipped": 1, "duplicate": 2, "retry": 2, "dead": 1, "unsettled": 1}
    for outcome, count in outcomes.items():
        assert counted(metrics, "tidings_outcomes_total", **kind, outcome=outcome) == count, outcome
    assert counted(metrics, "tidings_received_total") == 9
    assert counted(metrics, "tidings_retries_total", **kind, counted="yes") == 1
    assert counted(metrics, "tidings_retries_total", **kind, counted="no") == 1
    assert counted(metrics, "tidings_dead_letters_total", **kind, code="bad-data") == 1
    assert counted(metrics, "tidings_duplicates_total", **kind, of="key") == 1
    assert counted(metrics, "tidings_batch_events_count") == 2
    assert counted(metrics, "tidings_batch_events_sum") == 10
    assert counted(metrics, "tidings_batch_seconds_count") == 2


def test_when_counting_began_is_told_unless_the_client_is_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics("shop", lambda: shop().handlers)
    settle(metrics, Done())
    began = counted(metrics, "tidings_outcomes_created", type="order.placed", outcome="done")
    assert began == pytest.approx(time.time(), abs=60)
    monkeypatch.setattr("prometheus_client.metrics._use_created", False)  # what the variable and the function set
    assert "_created" not in metrics.text().decode()
    assert counted(metrics, "tidings_outcomes_total", type="order.placed", outcome="done") == 1


def test_the_types_of_a_batch_are_told_apart() -> None:
    class Shipped(Event, type="order.shipped", version=1):
        order_id: str

    service = Service("shop")

    @service.on(Placed, Shipped, name="handle", idempotent=True, order=None)
    async def handle(event: Placed | Shipped) -> None: ...

    metrics = Metrics("shop", lambda: service.handlers)
    types = ("order.placed", "order.shipped", "order.placed", "order.lost")
    metrics.settled("shop.handle", [Settled(delivery(one), Done()) for one in types], 0.02)
    for kind, count in (("order.placed", 2), ("order.shipped", 1), ("other", 1)):
        assert counted(metrics, "tidings_outcomes_total", type=kind, outcome="done") == count, kind
    assert counted(metrics, "tidings_attempts_total", attempt="1") == 4


def test_types_that_no_handler_takes_make_no_series() -> None:
    """Trap 159: labels come from closed sets."""
    metrics = Metrics("shop", lambda: shop().handlers)
    for number in range(50):
        settle(metrics, Done(skipped=True), type=f"order.made-up-{number}")
    settle(metrics, DeadLettered(reason="r", code="not-json"), type=None)
    text = metrics.text().decode()
    assert "made-up" not in text
    assert counted(metrics, "tidings_outcomes_total", type="other", outcome="skipped") == 50
    assert counted(metrics, "tidings_outcomes_total", type="other", outcome="dead") == 1


def test_the_registry_is_its_own() -> None:
    one, two = (Metrics("shop", lambda: shop().handlers) for _ in range(2))
    settle(one, Done())
    assert counted(two, "tidings_outcomes_total", type="order.placed", outcome="done") is None
    assert "tidings" not in prometheus_client.generate_latest().decode()


async def test_P12_the_backlog_of_a_handler_that_waits_is_seen() -> None:
    service, broker = shop(), MemoryBroker()
    gate, began = asyncio.Event(), asyncio.Event()

    @service.on(Placed, name="slow", idempotent=True, order=None, batch=1)
    async def slow(event: Placed) -> None:
        began.set()
        await gate.wait()

    sight = Observability(service, port=0)
    async with sight, service.running(broker=broker):
        for number in range(20):
            await service.publish(Placed(order_id=str(number)))
        async with asyncio.timeout(20):
            await began.wait()
        await sight.look()
        found = sample(await scrape(sight.url))
        gate.set()
        await broker.idle()
        await sight.look()
        after = sample(await scrape(sight.url))
    where = '{handler="slow",service="shop"}'
    assert found[f"tidings_lanes_busy{where}"] == 1
    assert found[f"tidings_backlog_pending{where}"] + found[f"tidings_backlog_in_flight{where}"] == 20
    assert found[f"tidings_deliveries_waiting{where}"] > 0
    assert found['tidings_broker_connected{service="shop"}'] == 1
    assert found['tidings_loop_lag_seconds{service="shop"}'] >= 0
    assert after[f"tidings_backlog_pending{where}"] == after[f"tidings_backlog_in_flight{where}"] == 0
    assert after[f"tidings_lanes_busy{where}"] == 0
    assert any(name.startswith("tidings_build_info") and 'version="0' in name for name in found)
    assert found["process_resident_memory_bytes"] > 0


async def test_the_outbox_is_seen_where_the_store_tells_of_it() -> None:
    class Store:
        async def outbox_backlog(self) -> tuple[int, float, int]:
            return 7, 1.5, 0

    assert await outbox_of(Store()) == (7, 1.5, 0)
    assert await outbox_of(object()) is None


async def scrape(url: str) -> str:
    def get() -> str:
        with urllib.request.urlopen(f"{url}/metrics", timeout=20) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(get)


def sample(text: str) -> Mapping[str, float]:
    """The samples, their labels sorted by name."""
    from prometheus_client.parser import text_string_to_metric_families as families

    return {
        one.name + ("{" + ",".join(f'{k}="{v}"' for k, v in sorted(one.labels.items())) + "}" if one.labels else ""): (
            one.value
        )
        for family in families(text)
        for one in family.samples
    }
