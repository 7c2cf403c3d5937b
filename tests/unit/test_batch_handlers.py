"""Handlers that take a list of events: what is in it, what becomes of each, and what a failure costs the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.unit.parts import (
    SOON,
    Placed,
    RecordingBroker,
    Shipped,
    ToldClaim,
    ToldStore,
    Tx,
    UndoingClaim,
    Watcher,
    batch,
    ids,
)
from tests.walk.virtual import in_virtual_time
from tidings import (
    ConfigurationError,
    Dead,
    DeclarationError,
    Delivery,
    Event,
    FailedEvents,
    RetryAfter,
    Service,
    calls,
)
from tidings.claims import Claimer
from tidings.context import derived_id
from tidings.delivery import Done, Duplicate
from tidings.errors import Contention, MisuseError, StoreUnavailable
from tidings.handler import Rules, make_handler
from tidings.handling import Handling
from tidings.order import Holds
from tidings.pipeline import Pipeline
from tidings.ports import Claimed, State
from tidings.publisher import Wrapper
from tidings.running import Running
from tidings.settling import Settler

DONE_BEFORE, HELD = Claimed(State.DONE), Claimed(State.BUSY)


class Whole:
    """A batch handler that keeps its lists, fails over some names, and returns what it is told."""

    def __init__(self, *fails: str, returns: Any = None, error: type[BaseException] = ValueError) -> None:
        self.fails = set(fails)
        self.returns, self.error = returns, error
        self.seen: list[list[str]] = []

    async def __call__(self, events: list[Placed]) -> Any:
        names = [f"{event.order_id}{event.number}" for event in events]
        self.seen.append(names)
        if bad := self.fails.intersection(names):
            raise self.error(f"no stock for {min(bad)}")
        return self.returns(events) if callable(self.returns) else self.returns


class Bench:
    """A pipeline around a batch handler."""

    def __init__(
        self, call: Callable[[list[Placed]], Awaitable[Any]], store: ToldStore | None, *, ordered: bool = False,
        timeout: float = 5.0, together: int = 64,
    ) -> None:  # fmt: skip
        async def handle(events: list[Placed]) -> list[Shipped] | None: ...

        rules = Rules(once=store is not None, ordered=ordered, concurrency=1, timeout=timeout, batch=None, retry=SOON,
                      conflict="duplicate", start="all")  # fmt: skip
        self.handler = make_handler("stock", handle, (Placed,), "step", rules, batches=True)
        self.broker, self.watcher = RecordingBroker(), Watcher()
        wrap = Wrapper("stock", [Shipped], "structured").caused
        self.pipeline = Pipeline(
            self.handler,
            broker=self.broker,
            claimer=Claimer(self.handler, store, Tx if store is not None else None),
            handling=Handling(self.handler, lambda events, claim, deliveries: call(events), wrap),
            settler=Settler("stock.step", self.broker, observers=[self.watcher]),
            together=together,
        )

    @property
    def outcomes(self) -> dict[str, str]:
        return {event: outcome.kind for event, outcome in self.watcher.outcomes}


def in_sql() -> ToldStore:
    return ToldStore(transactional=True)


async def test_P12_a_batch_handler_that_panics_with_what_is_no_exception_is_searched_for_the_culprit() -> None:
    class Panic(BaseException):
        """As drivers raise that are written in Rust."""

    bench = Bench(Whole("b2", error=Panic), in_sql())
    assert await bench.pipeline.process(batch("a1", "b2", "c3")) == ([], "")
    assert bench.outcomes == {"a1": "done", "b2": "retry", "c3": "done"}


async def test_P4_a_batch_handler_gets_what_is_new_in_one_list_and_one_transaction() -> None:
    store, whole = in_sql(), Whole()
    store.states.update(b2=DONE_BEFORE, d4=HELD)
    bench = Bench(whole, store)
    await bench.pipeline.process(batch("a1", "b2", "c3", "d4", "e5", "a1"))
    assert whole.seen[0] == ["a1", "c3", "e5"]
    assert len(store.claims) == 1
    kinds = [(event, outcome.kind) for event, outcome in bench.watcher.outcomes]
    assert kinds == [("a1", "done"), ("b2", "duplicate"), ("c3", "done"), ("d4", "retry"), ("e5", "done"),
                     ("a1", "duplicate")]  # fmt: skip


async def test_a_batch_of_nothing_new_calls_nobody() -> None:
    store, whole = in_sql(), Whole()
    store.states.update(a1=DONE_BEFORE)
    bench = Bench(whole, store)
    await bench.pipeline.process(batch("a1"))
    assert whole.seen == []
    assert bench.watcher.outcomes == [("a1", Duplicate())]


async def test_P8_what_follows_a_busy_key_is_not_in_the_list() -> None:
    store, whole = in_sql(), Whole()
    store.states.update(a1=HELD)
    bench, holds = Bench(whole, store, ordered=True), Holds()
    await bench.pipeline.process(batch("a1", "b2", "a3"), holds)
    assert whole.seen == [["b2"]]
    assert ids(holds.clear()) == ["a1", "a3"]


async def test_P3_a_failed_batch_is_halved_until_the_culprit_is_alone_and_the_rest_is_applied(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, whole = in_sql(), Whole("c3")
    bench = Bench(whole, store)
    with caplog.at_level(logging.WARNING, "tidings.pipeline"):
        await bench.pipeline.process(batch("a1", "b2", "c3", "d4", "e5", "f6", "g7", "h8"))
    assert [len(names) for names in whole.seen] == [8, 4, 2, 2, 1, 1, 4]
    assert [claim.closed == "cleanly" for claim in store.claims] == [False, False, True, False, False, True, True]
    assert bench.outcomes == {**dict.fromkeys(["a1", "b2", "d4", "e5", "f6", "g7", "h8"], "done"), "c3": "retry"}
    assert [record.getMessage() for record in caplog.records] == [
        "stock.step: 8 events failed together and are handled in halves, to find the one that fails: ValueError: no"
        " stock for c3"
    ]


@pytest.mark.parametrize("error", [BaseException, SystemExit, GeneratorExit])
@pytest.mark.parametrize("transactional", [True, False])
async def test_P3_the_culprit_of_a_base_exception_is_found_as_any_other_and_the_rest_is_applied(
    error: type[BaseException], transactional: bool
) -> None:
    store = in_sql() if transactional else None
    bench = Bench(Whole("c3", error=error), store)
    assert await bench.pipeline.process(batch("a1", "b2", "c3", "d4")) == ([], "")
    assert bench.outcomes == {**dict.fromkeys(["a1", "b2", "d4"], "done"), "c3": "retry"}


EIGHT = ("a1", "b2", "c3", "d4", "e5", "f6", "g7", "h8")


def that_undoes() -> ToldStore:
    return ToldStore(transactional=True, claims=UndoingClaim)


async def test_P3_the_culprit_of_a_batch_that_has_sent_nothing_is_looked_for_in_one_transaction() -> None:
    store, whole = (
        that_undoes(),
        Whole("c3", "g7", returns=lambda events: [Shipped(order_id=e.order_id) for e in events]),
    )
    bench = Bench(whole, store)
    await bench.pipeline.process(batch(*EIGHT))
    assert [len(names) for names in whole.seen] == [8, 4, 2, 2, 1, 1, 4, 2, 2, 1, 1]
    (claim,) = store.claims
    assert (claim.closed, sorted(claim.failed)) == ("cleanly", [2, 6])
    assert len(claim.emitted or ()) == 6
    assert bench.outcomes == {**dict.fromkeys(set(EIGHT) - {"c3", "g7"}, "done"), "c3": "retry", "g7": "retry"}
    await bench.pipeline.process(batch("a2", "b3", "d5"))
    assert whole.seen[-1] == ["a2", "b3", "d5"], "and groups are as large as before"


async def test_P4_a_batch_that_has_sent_something_before_it_failed_is_taken_back_whole() -> None:
    store = that_undoes()
    bench = Bench(Whole("c3"), store)

    class Sent(UndoingClaim):
        def undo(self) -> bool:
            return False

    store._claims = Sent
    await bench.pipeline.process(batch(*EIGHT))
    assert [claim.closed == "cleanly" for claim in store.claims] == [False, False, True, False, False, True, True]
    assert bench.outcomes == {**dict.fromkeys(set(EIGHT) - {"c3"}, "done"), "c3": "retry"}


async def test_P8_what_follows_the_culprit_of_a_part_is_in_no_later_part() -> None:
    store, whole = that_undoes(), Whole("a3")
    bench, holds = Bench(whole, store, ordered=True), Holds()
    await bench.pipeline.process(batch("a1", "b2", "a3", "b4", "a5", "c6", "a7", "b8"), holds)
    assert whole.seen[-1] == ["c6", "b8"]
    assert ids(holds.clear()) == ["a3", "a5", "a7"]
    assert {event for event, kind in bench.outcomes.items() if kind == "done"} == {"a1", "b2", "b4", "c6", "b8"}


async def test_P3_the_same_event_twice_in_a_batch_is_no_duplicate_of_one_that_failed() -> None:
    store, whole = that_undoes(), Whole("a1")
    bench = Bench(whole, store)
    await bench.pipeline.process(batch("a1", "b2", "a1", "c3"))
    assert [outcome.kind for event, outcome in bench.watcher.outcomes if event == "a1"] == ["retry", "retry"]
    assert whole.seen == [["a1", "b2", "c3"], ["a1"], ["b2", "c3"], ["a1"]]


async def test_what_is_known_of_a_key_is_told_also_behind_one_that_failed() -> None:
    store, whole = that_undoes(), Whole("b2")
    store.states.update(d4=DONE_BEFORE)
    bench = Bench(whole, store)
    await bench.pipeline.process(batch("a1", "b2", "d4"))
    assert bench.outcomes == {"a1": "done", "b2": "retry", "d4": "duplicate"}
    assert len(store.claims) == 1


def _slowly(whole: Whole) -> Callable[[list[Placed]], Awaitable[Any]]:
    """Longer than the time for which a search goes on here."""

    async def slow(events: list[Placed]) -> Any:
        await asyncio.sleep(0.03)
        return await whole(events)

    return slow


@in_virtual_time()
async def test_P9_a_search_ends_when_its_time_is_over_and_goes_on_in_the_next_transaction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "BATCH_SECONDS", 0.02)
    store, whole = that_undoes(), Whole("c3")
    bench = Bench(_slowly(whole), store)
    await bench.pipeline.process(batch(*EIGHT))
    assert bench.outcomes == {**dict.fromkeys(set(EIGHT) - {"c3"}, "done"), "c3": "retry"}
    assert [len(names) for names in whole.seen] == [8, 4, 2, 2, 1, 1, 4]
    assert len(store.claims) == len(whole.seen)
    assert [claim.closed == "cleanly" for claim in store.claims].count(False) == 1, "that of the culprit, alone"


@in_virtual_time()
async def test_P3_the_same_event_twice_is_no_duplicate_of_one_that_a_search_had_no_time_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "BATCH_SECONDS", 0.02)
    store, whole = that_undoes(), Whole("c3")
    bench = Bench(_slowly(whole), store)
    await bench.pipeline.process(batch("a1", "b2", "c3", "a1"))
    first, _ = (outcome.kind for event, outcome in bench.watcher.outcomes if event == "a1")
    assert first == "done", "only then its repeat may be acknowledged"


async def test_P3_a_lock_in_a_part_takes_back_the_whole_and_blames_nobody() -> None:
    store = that_undoes()

    async def handle(events: list[Placed]) -> None:
        seen.append(len(events))
        if len(events) == 4:
            raise ValueError("not four")
        if len(seen) == 3:
            raise Contention("a lock")

    seen: list[int] = []
    bench = Bench(handle, store)
    rest, trouble = await bench.pipeline.process(batch("a1", "b2", "c3", "d4"))
    assert (ids(rest), trouble) == (["a1", "b2", "c3", "d4"], "Contention: a lock")
    assert bench.outcomes == {}


def naming(**errors: Exception) -> Callable[[list[Placed]], Awaitable[Any]]:
    """A batch handler that says which events failed."""

    async def handle(events: list[Placed]) -> None:
        seen.append([f"{event.order_id}{event.number}" for event in events])
        bad = [(event, errors[name]) for event, name in zip(events, seen[-1], strict=True) if name in errors]
        if bad:
            raise FailedEvents(bad)

    seen: list[list[str]] = []
    handle.seen = seen  # type: ignore[attr-defined]  # for the test to look at
    return handle


@pytest.mark.parametrize("store", [True, False], ids=["sql", "none"])
async def test_P3_events_that_the_handler_names_come_to_their_ends_and_the_others_are_handled_once_more_together(
    caplog: pytest.LogCaptureFixture, store: bool
) -> None:
    call: Any = naming(b2=Dead("no such product"), d4=ValueError("no stock"), f6=RetryAfter(60, "rate limited"))
    sql = in_sql()
    bench = Bench(call, sql if store else None, together=8)
    with caplog.at_level(logging.WARNING, "tidings.pipeline"):
        await bench.pipeline.process(batch("a1", "b2", "c3", "d4", "e5", "f6", "g7", "h8"))
    assert [len(names) for names in call.seen] == [8, 5]
    assert bench.outcomes == {
        **dict.fromkeys(["a1", "c3", "e5", "g7", "h8"], "done"), "b2": "dead", "d4": "retry", "f6": "retry",
    }  # fmt: skip
    assert {
        event: getattr(outcome, "reason", "") for event, outcome in bench.watcher.outcomes if outcome.kind != "done"
    } == {
        "b2": "Dead: no such product",
        "d4": "ValueError: no stock",
        "f6": "RetryAfter: rate limited (again after 60 s)",
    }
    assert caplog.records == [], "nobody had to look for them"
    if store:
        assert [claim.closed == "cleanly" for claim in sql.claims] == [False, True]
    await bench.pipeline.process(batch("a2", "b3", "c4", "d5", "e6", "f7"))
    assert call.seen[-1] == ["a2", "b3", "c4", "d5", "e6", "f7"], "and groups are as large as before"


async def test_P8_an_event_that_the_handler_names_waits_for_an_earlier_one_of_its_key() -> None:
    call: Any = naming(a2=Dead("no"))
    store, holds = in_sql(), Holds()
    bench = Bench(call, store, ordered=True)
    await bench.pipeline.process(batch("a1", "a2", "b3", "a4"), holds)
    await bench.pipeline.settler.settled()
    await bench.pipeline.process(list(holds.release(asyncio.get_running_loop().time())), holds)
    ends = [(event, outcome.kind) for event, outcome in bench.watcher.outcomes if event.startswith("a")]
    assert ends == [("a1", "done"), ("a2", "dead"), ("a4", "done")]


async def test_events_named_that_are_not_in_the_list_are_a_mistake_and_kill_nobody() -> None:
    async def handle(events: list[Placed]) -> None:
        raise FailedEvents((Placed(order_id=event.order_id, number=event.number), Dead("no")) for event in events)

    bench = Bench(handle, in_sql())
    await bench.pipeline.process(batch("a1", "b2"))
    assert bench.outcomes == {"a1": "retry", "b2": "retry"}
    (first, _) = [outcome for _, outcome in bench.watcher.outcomes]
    assert "Name the very objects" in getattr(first, "reason", "")


async def test_P1_a_store_that_is_away_is_the_fault_of_no_event_that_is_named() -> None:
    call: Any = naming(b2=StoreUnavailable("gone"))
    bench = Bench(call, in_sql())
    rest, trouble = await bench.pipeline.process(batch("a1", "b2"))
    assert ids(rest) == ["a1", "b2"]
    assert "gone" in trouble


async def test_P3_nothing_of_a_failed_batch_is_acknowledged_before_it_is_applied() -> None:
    store, whole = in_sql(), Whole("b2")
    bench = Bench(whole, store)
    applied: set[str] = set()
    bench.broker.refuse_settle = lambda verdict: applied.update(
        name for names, claim in zip(whole.seen, store.claims, strict=True) if claim.closed == "cleanly"
        for name in names
    )  # fmt: skip
    await bench.pipeline.process(batch("a1", "b2", "c3"))
    told = [delivery.event_id for delivery, _ in bench.broker.settled]
    assert sorted(told) == ["a1", "b2", "c3"]
    assert applied == {"a1", "c3"}


async def test_P8_behind_the_culprit_its_key_waits_and_other_keys_go_on() -> None:
    store, whole = in_sql(), Whole("a2")
    bench, holds = Bench(whole, store, ordered=True), Holds()
    await bench.pipeline.process(batch("a1", "a2", "b3", "a4", "c5"), holds)
    assert bench.outcomes == {"a1": "done", "a2": "retry", "b3": "done", "c5": "done"}
    assert ids(holds.clear()) == ["a2", "a4"]


@pytest.mark.parametrize("store", [None, ToldStore(transactional=True)])
async def test_each_event_causes_its_own_whatever_else_is_in_the_batch(store: ToldStore | None) -> None:
    def answer(events: list[Placed]) -> list[Any]:
        shipped = [Shipped(order_id=event.order_id, number=event.number) for event in events]
        return [[one, one] if one.order_id == "a" else None if one.order_id == "b" else one for one in shipped]

    bench = Bench(Whole(returns=answer), store)
    await bench.pipeline.process(batch("a1", "b2", "c3"))
    published = bench.broker.published if store is None else store.claims[0].emitted or []
    expected = [derived_id("a1", "stock.step", 0), derived_id("a1", "stock.step", 1), derived_id("c3", "stock.step", 0)]
    assert [one.id for one in published] == expected
    other = Bench(Whole(returns=answer), None)
    await other.pipeline.process(batch("c3"))
    assert [one.id for one in other.broker.published] == [expected[2]]


@pytest.mark.parametrize(
    ("returns", "said"),
    [
        (lambda events: [Shipped(order_id="x")], "a list of 1 for 2 events"),
        (Shipped(order_id="x"), "a Shipped for 2 events"),
        (lambda events: [Shipped(order_id="x"), "text"], "returned str"),
    ],
)
async def test_what_is_not_one_result_for_each_event_is_refused(
    returns: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = in_sql()
    bench = Bench(Whole(returns=returns), store)
    await bench.pipeline.process(batch("a1", "b2"))
    assert said in caplog.text
    assert isinstance(store.claims[0].closed, Exception)


@in_virtual_time()
async def test_the_time_limit_is_for_the_call_and_the_culprit_is_found() -> None:
    async def hang(events: list[Placed]) -> None:
        await asyncio.sleep(10 if any(event.order_id == "b" for event in events) else 0)

    bench = Bench(hang, in_sql(), timeout=0.05)
    await bench.pipeline.process(batch("a1", "b2", "c3"))
    assert bench.outcomes == {"a1": "done", "b2": "retry", "c3": "done"}


async def test_a_store_that_is_down_is_no_failure_of_a_batch() -> None:
    whole = Whole("a1", error=StoreUnavailable)
    rest, trouble = await Bench(whole, in_sql()).pipeline.process(batch("a1", "b2"))
    assert ids(rest) == ["a1", "b2"]
    assert "no stock" in trouble
    assert len(whole.seen) == 1


async def test_without_a_store_a_failed_batch_is_repeated_in_halves() -> None:
    whole = Whole("b2")
    bench = Bench(whole, None)
    await bench.pipeline.process(batch("a1", "b2"))
    assert whole.seen == [["a1", "b2"], ["a1"], ["b2"]]
    assert bench.outcomes == {"a1": "done", "b2": "retry"}


async def test_a_batch_handler_that_publishes_has_no_cause_to_name() -> None:
    wrapper = Wrapper("stock", [Shipped], "structured")

    async def publish(events: list[Placed]) -> None:
        from tidings.context import current

        with pytest.raises(MisuseError, match=r"nothing says which of its events is the cause\. Return a list"):
            wrapper.message(Shipped(order_id="a"), current.get())

    bench = Bench(publish, in_sql())
    await bench.pipeline.process(batch("a1"))
    assert bench.watcher.outcomes == [("a1", Done())]


# ── declared ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def one(order: Placed) -> None: ...


async def many(orders: list[Placed]) -> None: ...


async def others(orders: list[Shipped]) -> None: ...


async def with_one_delivery(orders: list[Placed], delivery: Delivery) -> None: ...


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (one, r"handles batches, but its first parameter takes <class .*Placed'>. Write: events: list\[Placed\]"),
        (others, r"registered for Placed, but its first parameter takes list\[.*Shipped\]. Write: events: list\[Pl"),
        (with_one_delivery, r"there is a delivery for each event. Write: delivery: list\[Delivery\]"),
    ],
)
def test_a_batch_handler_of_the_wrong_shape_is_refused_where_it_is_written(function: Any, match: str) -> None:
    with pytest.raises(DeclarationError, match=match):
        Service("stock").on_batch(Placed)(function)


def test_a_plain_handler_that_takes_a_list_is_sent_to_on_batch() -> None:
    with pytest.raises(DeclarationError, match=r"called with one event.*Write: event: Placed, or register.*on_batch"):
        Service("stock").on(Placed)(many)


def test_the_rules_of_a_batch_handler_are_those_of_any_other() -> None:
    stock = Service("stock")
    assert stock.on_batch(Placed, name="all", once="order_id", batch=7, timeout=9)(many) is many
    (handler,) = stock.handlers
    assert handler.batches
    assert (handler.position, handler.batch, handler.rules.once, handler.rules.timeout) == (
        "stock.all",
        7,
        "order_id",
        9,
    )
    with pytest.raises(DeclarationError, match=r"@stock.on_batch takes event classes"):
        stock.on_batch(many)  # type: ignore[arg-type]  # as by @stock.on_batch without parentheses


def test_what_each_event_causes_is_declared_by_the_annotation() -> None:
    async def reserve(orders: list[Placed]) -> list[Shipped | None] | None: ...

    stock = Service("stock")
    stock.on_batch(Placed)(reserve)
    assert stock.published == (Shipped,)


async def with_sqlalchemy(orders: list[Placed], db: AsyncConnection) -> None: ...


def test_a_batch_handler_that_asks_for_the_connection_of_another_store_is_told_which() -> None:
    stock = Service("stock")
    stock.on_batch(Placed)(with_sqlalchemy)
    running = Running(stock, RecordingBroker(), ToldStore())  # type: ignore[arg-type]  # no relay
    with pytest.raises(ConfigurationError, match=r"gives no AsyncConnection \(db\).*write postgresql\+asyncpg://"):
        running._checked_store()


async def with_all(orders: list[Placed], deliveries: list[Delivery], db: Tx) -> None:
    with_all_got.append((orders, deliveries, db))


with_all_got: list[tuple[list[Placed], list[Delivery], Tx]] = []


@pytest.mark.parametrize("transactional", [True, False])
async def test_a_batch_handler_gets_the_deliveries_and_the_connection_of_a_sql_store(transactional: bool) -> None:
    from tidings.calling import make_call

    stock, store = Service("stock"), ToldStore(transactional=transactional)
    stock.on_batch(Placed)(with_all)
    running = Running(stock, RecordingBroker(), store)  # type: ignore[arg-type]  # no relay
    if not transactional:
        with pytest.raises(ConfigurationError, match=r"stock.with-all handles batches.*idempotent=True"):
            running._checked_store()
        return
    assert running._checked_store() is not None
    deliveries = batch("a1", "b2")
    events: list[Event] = [Placed(order_id="a"), Placed(order_id="b")]
    await make_call(stock.handlers[0], store, None)(events, ToldClaim([]), deliveries)
    ((got, and_deliveries, db),) = with_all_got
    assert got is events
    assert and_deliveries is deliveries
    assert isinstance(db, Tx)


async def test_P4_a_batch_handler_that_does_not_ask_for_the_connection_does_not_start_unless_it_may_repeat() -> None:
    for idempotent in (False, True):
        stock = Service("stock")
        stock.on_batch(Placed, idempotent=idempotent)(many)
        running = Running(stock, RecordingBroker(), ToldStore(transactional=True))  # type: ignore[arg-type]  # no relay
        if idempotent:
            running._checked_store()
        else:
            with pytest.raises(ConfigurationError, match=r"ask for the connection of a SQL store"):
                running._checked_store()
