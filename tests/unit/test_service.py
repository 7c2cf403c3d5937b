"""A service: what it declares, its life, and what may be published when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from tests.unit.parts import Placed, RecordingBroker, Shipped, ToldStore, Tx, Watcher, delivery, until
from tidings.delivery import ACK, Delivery, Message, Release, Route
from tidings.errors import BrokerUnavailable, ConfigurationError, DeclarationError, MisuseError, StoreUnavailable
from tidings.event import Event
from tidings.ports import Drift, Forgotten, KeyKind, Plan, Publish, Subscription
from tidings.service import Service


class Paid(Event, type="payment.paid", version=1):
    order_id: str


class LivingStore(ToldStore):
    """The store that is told, with a life and an outbox."""

    def __init__(self, calls: list[str], **rules: Any) -> None:
        super().__init__(**rules)
        self.calls = calls
        self.written: list[Message] = []
        self.unreachable = False

    async def open(self) -> None:
        if self.unreachable:
            raise StoreUnavailable("no database there")
        self.calls.append("store open")

    async def close(self) -> None:
        self.calls.append("store close")

    async def emit(self, tx: object, messages: Sequence[Message]) -> None:
        assert isinstance(tx, Tx)
        self.written += messages

    def transaction(self, wanted: type | None = None) -> AbstractAsyncContextManager[object]:
        return self._transaction()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Tx]:
        yield Tx()

    async def forget(self, position: str, kind: KeyKind, before: float, *, after: str = "", most: int) -> Forgotten:
        self.calls.append(f"forget {position} {kind}")
        return Forgotten()

    async def relay(self, publish: Publish) -> None:
        self.calls.append("relay")
        try:
            await asyncio.Event().wait()
        finally:
            self.calls.append("relay end")


class LivingBroker(RecordingBroker):
    def __init__(self, calls: list[str] | None = None) -> None:
        super().__init__()
        self.calls = [] if calls is None else calls
        self.waiting: list[Delivery] = []
        """What arrives the moment somebody subscribes."""
        self.pause = 0.0
        self.drift: Sequence[Drift] = ()

    async def open(self, plan: Plan) -> Sequence[Drift]:
        self.calls.append("broker open")
        return self.drift

    async def subscribe(self, subscription: Subscription, sink: Any) -> Any:
        self.calls.append("subscribe")
        for one in self.waiting:
            sink(one)
        self.waiting = []
        await asyncio.sleep(self.pause)
        return Feed(self.calls)

    async def close(self) -> None:
        self.calls.append("broker close")


class Feed(RecordingBroker):
    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        self.calls = calls

    async def stop(self) -> None:
        self.calls.append("feed stop")

    async def close(self) -> None:
        self.calls.append("feed close")


async def _nothing(event: Placed) -> None: ...


# ── what it declares ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_function_stays_what_it_is_when_it_is_registered() -> None:
    service = Service("stock")
    assert service.on(Placed, idempotent=True)(_nothing) is _nothing
    assert [handler.position for handler in service.handlers] == ["stock.nothing"]


def test_the_plan_names_every_stream_and_position_and_keeps_only_its_own_streams() -> None:
    service = Service("stock", publishes=[Paid], keep=timedelta(days=1))
    service.on(Placed, idempotent=True, name="step", concurrency=2, batch=10, start="new")(_nothing)
    plan = service.plan
    assert [(one.name, one.keep) for one in plan.streams] == [("order", None), ("payment", timedelta(days=1))]
    (position,) = plan.subscriptions
    assert (position.position, position.stream, position.types) == ("stock.step", "order", ("order.placed",))
    assert (position.ordered, position.start) == (True, "new")


def test_P11_what_may_be_in_flight_is_bounded_by_batches_and_lanes() -> None:
    service = Service("stock")
    service.on(Placed, idempotent=True, name="one", batch=10, concurrency=2)(_nothing)
    service.on(Placed, name="two")(_nothing)
    one, two = (position.max_in_flight for position in service.plan.subscriptions)
    assert 10 * 2 < one <= 10 * 2 * 8
    assert two <= 4096


def test_what_a_handler_returns_by_its_annotation_is_published_by_the_service() -> None:
    async def ship(event: Placed) -> list[Shipped]: ...  # type: ignore[empty-body]  # only its annotation counts

    service = Service("stock", publishes=[Paid])
    service.on(Placed, idempotent=True)(ship)
    assert set(service.published) == {Paid, Shipped}


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        ({"concurrency": 0}, "between 1 and 64"),
        ({"concurrency": 65}, "between 1 and 64"),
        ({"timeout": 0.0}, "more than 0"),
        ({"batch": 0}, "between 1 and 1000"),
        ({"batch": 1001}, "between 1 and 1000"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_where_it_is_written(rules: dict[str, Any], match: str) -> None:
    with pytest.raises(DeclarationError, match=match):
        Service("stock").on(Placed, **rules)


def test_order_by_key_needs_events_with_keys() -> None:
    async def paid(event: Paid) -> None: ...

    with pytest.raises(DeclarationError, match="not all of its events have a key"):
        Service("stock").on(Paid, order="key")
    service = Service("stock")
    service.on(Paid, idempotent=True)(paid)
    assert service.plan.subscriptions[0].ordered is False


def test_two_handlers_of_one_name_are_refused() -> None:
    service = Service("stock")
    service.on(Placed, idempotent=True, name="step")(_nothing)
    with pytest.raises(DeclarationError, match="already"):
        service.on(Placed, idempotent=True, name="step")(_nothing)


@pytest.mark.parametrize("name", ["", "Stock", "stock.eu", "9stock", "stöck"])
def test_a_name_that_cannot_be_part_of_a_position_is_refused(name: str) -> None:
    with pytest.raises(DeclarationError, match="no name for a service"):
        Service(name)


# ── its life ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_service_starts_what_is_needed_first_and_stops_the_other_way_round() -> None:
    calls: list[str] = []

    @asynccontextmanager
    async def life(service: Service) -> AsyncIterator[str]:
        calls.append("lifespan")
        yield "shared"
        calls.append("lifespan end")

    service = Service("stock", broker=LivingBroker(calls), store=LivingStore(calls), lifespan=life)
    service.on(Placed, name="step")(_nothing)
    async with service.running():
        await asyncio.sleep(0)
        assert sorted(calls) == sorted(["store open", "broker open", "lifespan", "relay", "subscribe"])
        assert calls[:3] == ["store open", "broker open", "lifespan"]
        calls.clear()
    assert calls == ["feed stop", "feed close", "relay end", "lifespan end", "broker close", "store close"]


async def test_P4_a_handler_that_is_to_apply_once_does_not_start_without_a_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TIDINGS_STORE", raising=False)
    broker = LivingBroker()
    service = Service("stock", broker=broker)
    service.on(Placed, name="step")(_nothing)
    with pytest.raises(ConfigurationError, match="idempotent=True"):
        async with service.running():
            pass
    assert broker.calls == []


async def test_what_was_opened_is_closed_when_a_start_fails_and_it_can_be_tried_again() -> None:
    calls: list[str] = []
    store = LivingStore(calls)
    store.unreachable = True
    service = Service("stock", broker=LivingBroker(calls), store=store)
    service.on(Placed, name="step")(_nothing)
    with pytest.raises(StoreUnavailable):
        async with service.running():
            pass
    assert "broker open" not in calls
    store.unreachable = False
    async with service.running():
        pass
    assert calls[-1] == "store close"


async def test_a_service_runs_once_at_a_time() -> None:
    service = Service("stock", broker=LivingBroker())
    async with service.running():
        with pytest.raises(MisuseError, match="runs already"):
            async with service.running():
                pass
        assert service.active.broker is not None
    with pytest.raises(MisuseError, match="does not run"):
        assert service.active


async def test_run_ends_when_it_is_told_to() -> None:
    broker, until_set = LivingBroker(), asyncio.Event()
    service = Service("stock", broker=broker)
    running = asyncio.create_task(service.run(until=until_set))
    await until(lambda: "broker open" in broker.calls)
    until_set.set()
    await running
    assert broker.calls[-1] == "broker close"


async def test_P9_a_cancelled_service_gives_back_what_it_did_not_begin() -> None:
    started = asyncio.Event()

    async def slow(event: Placed) -> None:
        started.set()
        await asyncio.sleep(0.05)

    broker = LivingBroker()
    broker.waiting = [delivery("a", 1), delivery("b", 2)]
    service = Service("stock", broker=broker)
    service.on(Placed, idempotent=True, order=None, batch=1)(slow)
    running = asyncio.create_task(service.run())
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert dict((one.origin_text, verdict) for one, verdict in broker.settled) == {
        "order@1": ACK,
        "order@2": Release(0.0),
    }


# ── what leaves ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_P1_publish_returns_when_it_is_stored_and_raises_when_it_is_not() -> None:
    broker = LivingBroker()
    service = Service("stock", broker=broker, publishes=[Paid])
    with pytest.raises(MisuseError, match="does not run"):
        await service.publish(Paid(order_id="a"))
    async with service.running():
        await service.publish(Paid(order_id="a"))
        assert [message.type for message in broker.published] == ["payment.paid"]
        broker.refuse_publish = lambda message: BrokerUnavailable("no leader")
        with pytest.raises(BrokerUnavailable):
            await service.publish(Paid(order_id="b"))
        answers = await service.publish_many([Paid(order_id="c"), Paid(order_id="d")])
        assert [type(answer) for answer in answers] == [BrokerUnavailable, BrokerUnavailable]


async def test_outside_of_handlers_a_transaction_takes_events_along() -> None:
    store = LivingStore([])
    service = Service("stock", broker=LivingBroker(), store=store, publishes=[Paid])
    async with service.running():
        async with service.transaction() as tx:
            await service.publish(Paid(order_id="a"), tx=tx)
    assert [message.type for message in store.written] == ["payment.paid"]


async def test_without_a_store_there_is_no_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDINGS_STORE", raising=False)
    service = Service("stock", broker=LivingBroker(), publishes=[Paid])
    async with service.running():
        with pytest.raises(MisuseError, match="no transaction can carry"):
            await service.publish(Paid(order_id="a"), tx=object())
        with pytest.raises(MisuseError, match="has no store"):
            async with service.transaction():
                pass


async def test_a_handler_may_publish_into_its_transaction_before_the_service_has_started_all_of_itself() -> None:
    """Events may wait already when the first handler begins, and the last is still to come."""
    store, broker, watcher = LivingStore([], transactional=True), LivingBroker(), Watcher()
    service = Service("stock", broker=broker, store=store, publishes=[Shipped])
    service.observers.append(watcher)

    @service.on(Placed)
    async def step(event: Placed, tx: Tx) -> None:
        await service.publish(Shipped(order_id=event.order_id), tx=tx)

    service.on(Placed, idempotent=True, name="last")(_nothing)
    broker.waiting, broker.pause = [delivery("a", 1)], 0.05
    async with service.running():
        pass
    assert [outcome.kind for _, outcome in watcher.outcomes] == ["done"]
    assert [message.key for message in store.written] == ["a"]


async def test_a_bare_publish_in_a_handler_is_refused() -> None:
    broker, watcher = LivingBroker(), Watcher()
    service = Service("stock", broker=broker, publishes=[Shipped])
    service.observers.append(watcher)

    @service.on(Placed, idempotent=True)
    async def step(event: Placed) -> None:
        await service.publish(Shipped(order_id=event.order_id))

    broker.waiting = [delivery("a", 1)]
    async with service.running():
        await until(lambda: watcher.outcomes)
    assert "called publish" in str(watcher.outcomes[0][1])
    assert {message.route for message in broker.published} <= {Route.NOTE}
