"""How a batch goes through its transaction, what it causes, when it closes, and how it is cancelled."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from tests.unit.parts import Bench, Doing, Placed, Shipped, ToldStore, batch, delivery, ids
from tests.walk.virtual import in_virtual_time
from tidings import calls
from tidings.context import derived_id
from tidings.delivery import ACK, Release, Retried, Route
from tidings.errors import BrokerUnavailable, Contention, Dead, EventTooLarge, StoreUnavailable
from tidings.order import Holds
from tidings.pipeline import CRASH_PAUSE
from tidings.settling import COPY_PAUSE

FOREVER = 60.0


# ── a shared transaction ────────────────────────────────────────────────────────────────────────────────────────────


async def test_P4_a_failure_takes_back_its_transaction_and_the_rest_is_applied_together_again() -> None:
    store, doing = ToldStore(transactional=True), Doing(c3=ValueError("x"))
    bench = Bench(doing, store=store)
    await bench.pipeline.process(batch("a1", "b2", "c3", "d4"))
    assert store.asked == [["a1", "b2", "c3", "d4"], ["a1", "b2", "d4"]]
    assert isinstance(store.claims[0].closed, Exception)
    assert store.claims[1].closed == "cleanly"
    assert bench.outcomes == {"a1": "done", "b2": "done", "c3": "retry", "d4": "done"}


async def test_P4_nothing_is_acknowledged_before_the_commit() -> None:
    store = ToldStore(transactional=True)
    store.exit.append(StoreUnavailable("the connection broke"))
    bench = Bench(Doing(), store=store)
    rest, trouble = await bench.pipeline.process(batch("a1", "b2"))
    assert ids(rest) == ["a1", "b2"]
    assert "the connection broke" in trouble
    assert bench.broker.settled == []
    assert bench.watcher.outcomes == []


async def test_P4_the_events_that_were_caused_go_through_the_transaction_and_not_to_the_broker() -> None:
    store = ToldStore(transactional=True)
    bench = Bench(Doing(a1=Shipped(order_id="a")), store=store)
    await bench.pipeline.process(batch("a1"))
    assert [one.id for one in store.claims[0].emitted or ()] == [derived_id("a1", "stock.step", 0)]
    assert bench.broker.published == []


async def test_P8_what_fails_behind_an_event_of_its_key_does_not_overtake_it() -> None:
    store, doing = ToldStore(transactional=True), Doing(a2=[ValueError("x"), ValueError("x")])
    bench, holds = Bench(doing, store=store, ordered=True), Holds()
    await bench.pipeline.process(batch("a1", "a2", "b3", "a4"), holds)
    assert [outcome.kind for _, outcome in bench.watcher.outcomes] == ["done", "retry", "done"]
    assert [event for event, _ in bench.watcher.outcomes] == ["a1", "a2", "b3"]
    assert ids(list(holds.release(asyncio.get_running_loop().time() + 1.0))) == ["a2", "a4"]


async def test_P8_after_a_letter_the_events_of_its_key_go_on() -> None:
    for transactional in (True, False):
        doing = Doing(a1=Dead("no"))
        bench, holds = Bench(doing, store=ToldStore(transactional=transactional), ordered=True), Holds()
        await bench.pipeline.process(batch("a1", "a2"), holds)
        await bench.pipeline.settler.settled()
        await bench.pipeline.process(list(holds.release(asyncio.get_running_loop().time())), holds)
        assert bench.outcomes == {"a1": "dead", "a2": "done"}
        assert len(holds) == 0


async def test_an_error_that_does_not_tell_whose_fault_it_was_makes_each_event_go_alone() -> None:
    store, doing = ToldStore(transactional=True), Doing()
    store.exit.extend([RuntimeError("constraint"), None, RuntimeError("constraint")])
    bench = Bench(doing, store=store)
    await bench.pipeline.process(batch("a1", "b2", "c3"))
    assert store.asked == [["a1", "b2", "c3"], ["a1"], ["b2"], ["c3"]]
    assert bench.outcomes == {"a1": "done", "b2": "retry", "c3": "done"}


@pytest.mark.parametrize("error", [StoreUnavailable("gone"), Contention("a lock")])
async def test_an_error_of_the_lent_connection_is_the_worlds_and_no_failure(error: Exception) -> None:
    bench = Bench(Doing(b2=error), store=ToldStore(transactional=True))
    rest, trouble = await bench.pipeline.process(batch("a1", "b2"))
    assert ids(rest) == ["a1", "b2"]
    assert str(error) in trouble
    assert [one.failures for one in rest] == [0, 0]


async def test_contention_makes_the_batch_small_and_peace_doubles_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidings.grouping.PEACE", 0.0)
    store = ToldStore(transactional=True)
    store.enter.extend([Contention("a lock"), Contention("a lock")])
    bench = Bench(Doing(), store=store, together=4)
    rest = batch("a1", "b2", "c3", "d4", "e5", "f6", "g7", "h8")
    for _ in range(2):
        rest, trouble = await bench.pipeline.process(rest)
        assert len(rest) == 8
        assert "a lock" in trouble
    await bench.pipeline.process(rest)
    assert [len(asked) for asked in store.asked] == [4, 1, 1, 2, 4, 1]


async def test_a_failure_halves_the_group_and_success_doubles_it_again() -> None:
    store = ToldStore(transactional=True)
    bench = Bench(Doing(c3=ValueError("x")), store=store, together=4)
    await bench.pipeline.process(batch("a1", "b2", "c3", "d4", "e5", "f6", "g7", "h8"))
    assert [len(asked) for asked in store.asked] == [4, 2, 4, 1]


async def test_an_event_that_failed_alone_took_nobody_with_it_and_halves_nothing() -> None:
    store = ToldStore(transactional=True)
    bench = Bench(Doing(a1=ValueError("x")), store=store, together=4)
    await bench.pipeline.process(batch("a1"))
    await bench.pipeline.process(batch("b2", "c3", "d4", "e5"))
    assert [len(asked) for asked in store.asked] == [1, 4]


async def test_what_has_failed_before_is_handled_alone_while_others_fail_too() -> None:
    store = ToldStore(transactional=True)
    bench = Bench(Doing(a1=ValueError("x"), b2=ValueError("x")), store=store)
    await bench.pipeline.process(batch("a1", "b2", "c3"))
    store.asked.clear()
    again = batch("d4", "e5", "f6")
    again[1].failures = 1
    await bench.pipeline.process(again)
    assert store.asked == [["d4"], ["e5"], ["f6"]]


async def test_what_has_failed_before_is_handled_with_others_where_all_goes_well() -> None:
    store = ToldStore(transactional=True)
    bench = Bench(Doing(), store=store)
    again = batch("d4", "e5", "f6")
    again[1].failures = 1
    await bench.pipeline.process(again)
    assert store.asked == [["d4", "e5", "f6"]]


async def test_P5_an_event_of_a_store_that_cannot_take_effects_back_fails_alone() -> None:
    store, doing = ToldStore(), Doing(b2=ValueError("x"))
    bench = Bench(doing, store=store)
    await bench.pipeline.process(batch("a1", "b2", "c3"))
    assert doing.seen == ["a1", "b2", "c3"]
    assert store.claims[0].failed == [1]
    assert store.claims[0].closed == "cleanly"


async def test_a_cancellation_that_the_store_made_up_is_trouble_and_ends_no_lane() -> None:
    for where in ("enter", "exit"):
        store = ToldStore()
        getattr(store, where).append(asyncio.CancelledError())
        rest, trouble = await Bench(Doing(), store=store).pipeline.process(batch("a1"))
        assert len(rest) == 1
        assert "cancelled" in trouble


# ── publish ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_P3_without_an_outbox_the_broker_has_stored_what_was_caused_before_the_claim_closes() -> None:
    store = ToldStore()
    bench = Bench(Doing(a1=Shipped(order_id="a")), store=store)
    closed_at_publish = []
    bench.broker.refuse_publish = lambda message: closed_at_publish.append(store.claims[0].closed)
    await bench.pipeline.process(batch("a1"))
    assert closed_at_publish == [""]
    assert [one.id for one in bench.broker.published] == [derived_id("a1", "stock.step", 0)]


async def test_P1_what_caused_an_event_that_was_not_stored_is_handled_again_and_the_rest_is_done() -> None:
    store = ToldStore()
    bench = Bench(Doing(**{name: Shipped(order_id=name[0]) for name in ("a1", "b2", "c3")}), store=store)
    bench.broker.refuse_publish = lambda message: BrokerUnavailable("no leader") if message.key == "b" else None
    await bench.pipeline.process(batch("a1", "b2", "c3"))
    assert dict(bench.broker.verdicts()) == {"a1": ACK, "b2": Release(COPY_PAUSE), "c3": ACK}
    assert store.claims[0].failed == [1]
    assert dict(bench.watcher.outcomes)["b2"] == Retried(COPY_PAUSE, "BrokerUnavailable: no leader", counted=False)


async def test_an_event_that_caused_what_may_not_travel_is_dead() -> None:
    bench = Bench(Doing(a1=Shipped(order_id="a")))
    bench.broker.refuse_publish = lambda message: EventTooLarge("2 MB") if message.route is Route.EVENT else None
    await bench.pipeline.process(batch("a1"))
    assert bench.outcomes == {"a1": "dead"}


async def test_P8_what_follows_an_event_whose_own_was_not_stored_is_handled_again_after_it() -> None:
    store, doing = ToldStore(), Doing(a1=Shipped(order_id="a"))
    bench, holds = Bench(doing, store=store, ordered=True), Holds()
    bench.broker.refuse_publish = lambda message: BrokerUnavailable("no leader")
    await bench.pipeline.process(batch("a1", "b2", "a3"), holds)
    assert store.claims[0].failed == [0, 2]
    assert ids(list(holds.release(asyncio.get_running_loop().time() + COPY_PAUSE))) == ["a1", "a3"]
    assert bench.outcomes == {"a1": "retry", "b2": "done"}


async def test_P4_a_twin_is_no_duplicate_of_an_event_whose_own_was_not_stored() -> None:
    store, doing = ToldStore(), Doing(a1=Shipped(order_id="a"))
    bench = Bench(doing, store=store)
    refusals = [BrokerUnavailable("no leader"), None]
    bench.broker.refuse_publish = lambda message: refusals.pop(0)
    await bench.pipeline.process([*batch("a1"), delivery("a", 1)])
    assert doing.seen == ["a1", "a1"]
    assert [outcome.kind for _, outcome in bench.watcher.outcomes] == ["retry", "done"]


async def test_P4_a_transaction_without_an_outbox_is_taken_back_when_what_was_caused_is_not_stored() -> None:
    store = ToldStore(transactional=True, outbox=False)
    bench = Bench(Doing(a1=Shipped(order_id="a")), store=store)
    bench.broker.refuse_publish = lambda message: EventTooLarge("2 MB") if message.route is Route.EVENT else None
    await bench.pipeline.process(batch("a1"))
    assert isinstance(store.claims[0].closed, Exception)
    assert bench.outcomes == {"a1": "dead"}


# ── a batch closes ──────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time()
async def test_a_batch_closes_after_its_time_and_what_is_left_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "BATCH_SECONDS", 0.01)
    store, doing = ToldStore(transactional=True), Doing(b2=0.02)
    bench = Bench(doing, store=store)
    await bench.pipeline.process(batch("a1", "b2", "c3", "d4"))
    assert store.claims[0].failed == [2, 3]
    assert store.asked[1] == ["c3", "d4"]
    assert doing.seen == ["a1", "b2", "c3", "d4"]
    assert bench.broker.waves == [2, 2]


async def test_a_batch_whose_time_is_over_before_it_begins_still_handles_one_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "BATCH_SECONDS", -1.0)
    doing = Doing()
    bench = Bench(doing, store=ToldStore(transactional=True))
    async with asyncio.timeout(5):
        await bench.pipeline.process(batch("a1", "b2"))
    assert doing.seen == ["a1", "b2"]


@in_virtual_time()
async def test_P8_what_a_closing_batch_leaves_out_is_not_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "BATCH_SECONDS", 0.01)
    store, doing = ToldStore(), Doing(a1=0.02)
    bench = Bench(doing, store=store, ordered=True)
    await bench.pipeline.process(batch("a1", "b2", "b3", "b2"), Holds())
    assert doing.seen == ["a1", "b2", "b3"]
    assert [event for event, _ in bench.watcher.outcomes] == ["a1", "b2", "b3", "b2"]


async def test_P9_a_stop_ends_the_batch_after_the_event_that_runs() -> None:
    bench = Bench(lambda event: _stop(bench, seen, event), store=ToldStore(transactional=True))
    seen: list[str] = []
    rest, trouble = await bench.pipeline.process(batch("a1", "b2", "c3"))
    assert seen == ["a1"]
    assert ids(rest) == ["b2", "c3"]
    assert trouble == ""
    assert bench.broker.verdicts() == [("a1", ACK)]


async def _stop(bench: Bench, seen: list[str], event: Placed) -> None:
    seen.append(event.order_id + str(event.number))
    bench.pipeline.calls.stopping = True


# ── cancelled ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("store", [None, ToldStore(), ToldStore(transactional=True)])
@in_virtual_time()
async def test_P9_a_cancelled_batch_is_given_back_at_once_and_counts_no_failure(store: ToldStore | None) -> None:
    bench = Bench(Doing(b2=FOREVER), store=store)
    deliveries = batch("a1", "b2", "c3")
    task = asyncio.create_task(bench.pipeline.process(deliveries))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert dict(bench.broker.verdicts()) == {"a1": Release(0.0), "b2": Release(0.0), "c3": Release(0.0)}
    assert bench.broker.published == []
    assert [one.failures for one in deliveries] == [0, 0, 0]


@in_virtual_time()
async def test_P2_a_lane_cancelled_while_it_settles_ends_what_it_began_and_gives_back_the_rest_once() -> None:
    bench = Bench(Doing(b2=Dead("no")), together=1)
    bench.broker.gate = asyncio.Event()
    task = asyncio.create_task(bench.pipeline.process(batch("a1", "b2")))
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    bench.broker.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.broker.verdicts() == [("a1", ACK), ("b2", Release(0.0))]


@in_virtual_time()
async def test_P2_a_lane_cancelled_twice_while_it_settles_still_gives_back_the_rest_once() -> None:
    bench = Bench(Doing(), together=1)
    bench.broker.gate = asyncio.Event()
    task = asyncio.create_task(bench.pipeline.process(batch("a1", "b2")))
    await asyncio.sleep(0.02)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0.01)
    bench.broker.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.01)
    assert Counter(ids([one for one, _ in bench.broker.settled])) == {"a1": 1, "b2": 1}


@in_virtual_time()
async def test_P8_a_cancelled_lane_keeps_what_follows_a_held_event_behind_it() -> None:
    bench, holds = Bench(Doing(a1=ValueError("x")), ordered=True, together=2), Holds()
    bench.broker.gate = asyncio.Event()
    task = asyncio.create_task(bench.pipeline.process(batch("a1", "b2", "a3", "c4"), holds))
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.sleep(0.01)
    bench.broker.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ids(holds.clear()) == ["a1", "a3"]
    assert dict(bench.broker.verdicts()) == {"b2": ACK, "c4": Release(0.0)}


async def test_P2_a_mistake_of_our_own_gives_back_what_was_not_decided_and_nothing_twice() -> None:
    bench = Bench(Doing(a1=Dead("no")), together=1)

    def broken(error: Exception, work: object) -> Any:
        raise RuntimeError("a mistake of our own")

    await bench.pipeline.process(batch("z9"))
    bench.pipeline.calls.decide = broken  # type: ignore[method-assign]  # a mistake of our own
    with pytest.raises(RuntimeError, match="of our own"):
        await bench.pipeline.process(batch("b1", "a1", "c2"))
    assert bench.broker.verdicts() == [
        ("z9", ACK),
        ("b1", ACK),
        ("a1", Release(CRASH_PAUSE)),
        ("c2", Release(CRASH_PAUSE)),
    ]


async def test_an_empty_batch_is_no_work() -> None:
    bench = Bench(Doing())
    assert await bench.pipeline.process([]) == ([], "")
    assert bench.broker.waves == []
