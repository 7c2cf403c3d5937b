"""The life of a delivery, case by case; the walk under tests/walk takes the combinations."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.parts import Bench, Doing, Placed, ToldStore, batch, delivery, ids, until
from tests.walk.virtual import in_virtual_time
from tidings.calling import make_call
from tidings.context import current
from tidings.delivery import ACK, Done, Duplicate, Header, Release, Retried, Route
from tidings.errors import Dead, StoreUnavailable
from tidings.event import Event
from tidings.handling import Handling
from tidings.limit import Limit
from tidings.order import Holds
from tidings.pipeline import CRASH_PAUSE
from tidings.policy import Retry
from tidings.ports import Claimed, State
from tidings.turn import Failed

BUSY = Claimed(State.BUSY)
FOREVER = 60.0


# ── read ────────────────────────────────────────────────────────────────────────────────────────────────────────────

BAD_BYTES = [
    (b"", "empty"),
    (b"x" * (1024 * 1024 + 1), "too-large"),
    (b"[" * 100 + b"]" * 100, "too-deep"),
    (b"{'no': json", "not-json"),
    (b'{"some": "json"}', "not-an-envelope"),
    (b'{"specversion":"1.0","id":"","source":"s","type":"order.placed","version":"v1","data":{}}', "bad-attribute"),
    (b'{"specversion":"1.0","id":"1","source":"s","type":"order.placed","version":"v9","data":{}}', "unknown-version"),
    (b'{"specversion":"1.0","id":"1","source":"s","type":"order.placed","version":"v1","data":{}}', "bad-data"),
]


@pytest.mark.parametrize(("body", "code"), BAD_BYTES, ids=[code for _, code in BAD_BYTES])
async def test_P2_P13_bytes_that_cannot_be_read_are_dead_and_the_rest_of_their_batch_is_handled(
    body: bytes, code: str
) -> None:
    doing = Doing()
    bench = Bench(doing)
    rest, trouble = await bench.pipeline.process([*batch("a1"), delivery("b", 2, body=body), *batch("c3")])
    assert (rest, trouble) == ([], "")
    assert doing.seen == ["a1", "c3"]
    assert {part.headers[Header.ERROR] for part in bench.broker.published} == {code}
    assert b"".join(part.body for part in bench.broker.published) == body
    assert [verdict for _, verdict in bench.broker.settled] == [ACK] * 3


async def test_P13_a_type_that_nobody_asked_for_is_passed_over() -> None:
    doing = Doing()
    bench = Bench(doing)
    await bench.pipeline.process([delivery("a", 1, kind="order.cancelled"), *batch("b2")])
    assert doing.seen == ["b2"]
    assert bench.watcher.outcomes[0] == ("a1", Done(skipped=True))
    assert bench.broker.published == []
    assert len(bench.broker.settled) == 2


async def test_P6_the_failures_of_a_retry_copy_are_read_from_it_and_those_of_an_event_are_not() -> None:
    bench = Bench(Doing(a1=ValueError("x"), b2=ValueError("x")))
    headers = {Header.FAILURES: "1"}
    copy, event = delivery("a", 1, route=Route.RETRY, headers=headers), delivery("b", 2, headers=headers)
    await bench.pipeline.process([copy, event])
    assert {one.headers[Header.ID]: one.headers[Header.FAILURES] for one in bench.broker.published} == {
        "a1": "2",
        "b2": "1",
    }


async def test_P6_a_held_copy_keeps_counting_and_does_not_go_back_to_what_its_header_says() -> None:
    bench = Bench(Doing(a1=[ValueError("x")] * 5), ordered=True, retry=Retry(attempts=9, first=0.0, most=0.0))
    holds = Holds()
    rest = [delivery("a", 1, route=Route.RETRY, headers={Header.FAILURES: "1"})]
    for failures in (2, 3, 4):
        await bench.pipeline.process(rest, holds)
        rest = list(holds.release(asyncio.get_running_loop().time()))
        assert rest[0].failures == failures


class Empty(Event, type="order.empty", version=1):
    """An event that counts as false."""

    def __len__(self) -> int:
        return 0


async def test_an_event_that_counts_as_false_is_an_event() -> None:
    seen: list[Event] = []

    async def handle(event: Empty) -> None:
        seen.append(event)

    body = b'{"specversion":"1.0","id":"e1","source":"s","type":"order.empty","version":"v1","data":{}}'
    bench = Bench(handle, store=ToldStore(), event=Empty)
    await bench.pipeline.process([delivery(body=body)])
    assert seen == [Empty()]
    assert bench.outcomes == {"e1": "done"}


# ── claim ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_P4_what_was_applied_is_a_duplicate_and_not_handled() -> None:
    store, doing = ToldStore(), Doing()
    store.states = {"a1": Claimed(State.DONE, "a1"), "b2": Claimed(State.DONE, "other")}
    bench = Bench(doing, store=store)
    await bench.pipeline.process(batch("a1", "b2", "c3"))
    assert doing.seen == ["c3"]
    assert dict(bench.watcher.outcomes) == {"a1": Duplicate(), "b2": Duplicate(of="other"), "c3": Done()}


async def test_another_event_under_an_applied_key_is_kept_as_a_letter_where_that_was_asked_for() -> None:
    store = ToldStore()
    store.states = {"a1": Claimed(State.DONE, "a1"), "b2": Claimed(State.DONE, "other")}
    bench = Bench(Doing(), store=store, conflict="dead")
    await bench.pipeline.process(batch("a1", "b2"))
    assert bench.outcomes == {"a1": "duplicate", "b2": "dead"}
    (letter,) = bench.broker.published
    assert letter.headers[Header.ERROR] == "conflict"
    assert "other" in letter.headers[Header.REASON]


async def test_P5_a_key_that_another_worker_holds_is_asked_for_again_and_is_no_failure() -> None:
    store, doing = ToldStore(), Doing()
    store.states = {"a1": BUSY}
    bench = Bench(doing, store=store)
    await bench.pipeline.process(batch("a1", "b2"))
    assert doing.seen == ["b2"]
    assert dict(bench.broker.verdicts()) == {"a1": Release(0.25), "b2": ACK}
    assert bench.broker.published == []


@pytest.mark.parametrize("transactional", [True, False])
async def test_P8_what_follows_a_busy_key_waits_behind_it(transactional: bool) -> None:
    store, doing = ToldStore(transactional=transactional), Doing()
    store.states = {"a1": BUSY}
    bench, holds = Bench(doing, store=store, ordered=True), Holds()
    await bench.pipeline.process(batch("a1", "a2", "b3", "a4"), holds)
    assert doing.seen == ["b3"]
    assert store.claims[0].failed == [1, 3]
    assert ids(list(holds.release(asyncio.get_running_loop().time() + 1.0))) == ["a1", "a2", "a4"]


async def test_P4_of_two_deliveries_of_an_event_the_second_waits_for_what_becomes_of_the_first() -> None:
    store, doing = ToldStore(), Doing(a1=[ValueError("x")])
    bench = Bench(doing, store=store)
    await bench.pipeline.process([*batch("a1"), delivery("a", 1)])
    assert doing.seen == ["a1", "a1"]
    assert [outcome.kind for _, outcome in bench.watcher.outcomes] == ["retry", "done"]
    assert store.claims[0].failed == [0]


async def test_P4_only_what_is_new_is_given_back_to_the_store() -> None:
    store, doing = ToldStore(), Doing(a1=ValueError("x"))
    store.states = {"a2": Claimed(State.DONE, "a2")}
    bench, holds = Bench(doing, store=store, ordered=True), Holds()
    await bench.pipeline.process(batch("a1", "a2", "a3"), holds)
    assert store.claims[0].failed == [0, 2]


async def test_P8_what_waits_makes_wait_what_shares_a_key_with_it() -> None:
    """b3 is to be applied once per order, and shares that with a2, which waits for a1 by its event key."""
    store, doing = ToldStore(), Doing(a1=[ValueError("x")])
    bench = Bench(doing, store=store, ordered=True)
    names = {"a1": ["key a", "once 1"], "a2": ["key a", "once 2"], "b3": ["key b", "once 2"], "c4": ["key c"]}
    bench.pipeline.calls.names = lambda work: names[work.delivery.event_id]  # type: ignore[method-assign]
    holds = Holds()
    store.states = {"b3": Claimed(State.DONE, "a2")}
    await bench.pipeline.process(batch("a1", "a2", "b3", "c4"), holds)
    assert doing.seen == ["a1", "c4"]
    assert store.asked[1] == ["b3"]


# ── handle ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time()
async def test_P12_a_handler_that_runs_too_long_fails_and_the_others_are_handled() -> None:
    doing = Doing(b2=FOREVER)
    bench = Bench(doing, timeout=0.02)
    await bench.pipeline.process(batch("a1", "b2", "c3"))
    assert doing.seen == ["a1", "b2", "c3"]
    assert bench.outcomes == {"a1": "done", "b2": "retry", "c3": "done"}
    assert "longer than 0.02 s" in bench.broker.published[0].headers[Header.REASON]


async def test_a_handler_that_raises_cancelled_by_itself_fails_and_ends_nothing() -> None:
    bench = Bench(Doing(a1=asyncio.CancelledError()))
    assert await bench.pipeline.process(batch("a1", "b2")) == ([], "")
    assert bench.outcomes == {"a1": "retry", "b2": "done"}
    assert "by itself" in bench.broker.published[0].headers[Header.REASON]


class Panic(BaseException):
    """What an extension raises that broke: no ``except Exception`` sees it."""


NO_EXCEPTIONS = [BaseException("b"), SystemExit(3), GeneratorExit("g"), Panic("p"), BaseExceptionGroup("x", [Panic()])]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("transactional", [None, False, True])
@pytest.mark.parametrize("error", NO_EXCEPTIONS, ids=lambda error: type(error).__name__)
async def test_P2_P3_a_base_exception_of_a_handler_is_a_failure_of_its_event_like_any_other(
    error: BaseException, transactional: bool | None, ordered: bool
) -> None:
    store = None if transactional is None else ToldStore(transactional=transactional)
    bench, holds = Bench(Doing(a1=error), store=store, ordered=ordered), Holds() if ordered else None
    assert await bench.pipeline.process(batch("a1", "b2"), holds) == ([], "")
    assert bench.outcomes == {"a1": "retry", "b2": "done"}
    outcome = next(outcome for event, outcome in bench.watcher.outcomes if event == "a1")
    assert isinstance(outcome, Retried)
    assert outcome.counted
    assert f"the handler raised what is no Exception: {type(error).__name__}" in outcome.reason
    assert outcome.error is not None
    assert outcome.error.__cause__ is error  # so that a letter shows where it came from
    if store is not None and transactional:
        assert isinstance(store.claims[0].closed, Failed)
        assert all(claim.closed == "cleanly" for claim in store.claims[1:])


async def test_P2_what_a_store_panics_over_is_given_back_and_counts_for_nothing() -> None:
    store = ToldStore(transactional=True)
    store.enter.append(Panic("index out of bounds"))
    bench = Bench(Doing(), store=store)
    with pytest.raises(Panic):  # so that its lane is seen to fail
        await bench.pipeline.process(batch("a1", "b2"))
    assert bench.watcher.outcomes == [
        (name, Retried(after=CRASH_PAUSE, reason="Panic: index out of bounds", counted=False)) for name in ("a1", "b2")
    ]


async def test_a_call_whose_loop_has_gone_is_told_to_close_and_is_no_failure() -> None:
    handler = Bench(Doing()).handler
    handling = Handling(handler, make_call(handler, None, None), lambda result, scope: ())
    with Limit(FOREVER) as limit:
        assert isinstance(handling.meant(GeneratorExit(), limit), RuntimeError)
        assert await asyncio.create_task(meant_elsewhere(handling, limit)) is None


async def meant_elsewhere(handling: Handling, limit: Limit) -> Exception | None:
    return handling.meant(GeneratorExit(), limit)


def test_an_interrupt_from_the_keyboard_ends_the_process_and_no_event() -> None:
    bench = Bench(Doing(a1=KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(bench.pipeline.process(batch("a1")))
    assert bench.outcomes == {}


@in_virtual_time()
async def test_a_handler_that_answers_its_timeout_with_another_error_fails_with_that_one() -> None:
    async def stubborn(event: Placed) -> None:
        try:
            await asyncio.sleep(FOREVER)
        except asyncio.CancelledError:
            raise ValueError("instead") from None

    bench = Bench(stubborn, timeout=0.02)
    await bench.pipeline.process(batch("a1"))
    assert "instead" in bench.broker.published[0].headers[Header.REASON]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@in_virtual_time()
async def test_a_handler_that_swallows_its_timeout_and_returns_has_done_its_work() -> None:
    async def stubborn(event: Placed) -> None:
        try:
            await asyncio.sleep(FOREVER)
        except asyncio.CancelledError:
            pass

    bench = Bench(stubborn, timeout=0.02)
    await bench.pipeline.process(batch("a1"))
    assert bench.outcomes == {"a1": "done"}


@in_virtual_time()
async def test_a_timeout_that_was_swallowed_is_not_counted_against_the_next_event() -> None:
    async def stubborn(event: Placed) -> None:
        try:
            await asyncio.sleep(0.015 if event.order_id == "b" else FOREVER)
        except asyncio.CancelledError:
            pass

    bench = Bench(stubborn, store=ToldStore(), timeout=0.03, abandon_after=0.005)
    assert await bench.pipeline.process(batch("a1", "b2")) == ([], "")
    assert not bench.pipeline.leaving.aside, "the call for the second was given up for the first one's time"
    assert bench.outcomes == {"a1": "done", "b2": "done"}


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize("error", [Mute(), ValueError("half a character: \udc80")])
async def test_P2_an_error_that_can_hardly_be_told_is_a_failure_like_any_other(
    error: Exception, transactional: bool
) -> None:
    bench = Bench(Doing(a1=error), store=ToldStore(transactional=transactional))
    assert await bench.pipeline.process(batch("a1", "b2")) == ([], "")
    assert bench.outcomes == {"a1": "retry", "b2": "done"}


async def test_the_running_delivery_is_known_to_whoever_the_handler_calls_and_to_nobody_after() -> None:
    seen = []

    async def handle(event: Placed) -> None:
        scope = current.get()
        assert scope is not None
        seen.append((scope.delivery.event_id, scope.position))
        if event.number == 1:
            raise ValueError

    await Bench(handle).pipeline.process(batch("a1", "b2"))
    assert seen == [("a1", "stock.step"), ("b2", "stock.step")]
    assert current.get() is None


async def test_a_result_that_is_no_event_is_dead_at_once() -> None:
    async def handle(event: Placed) -> str:
        return "done"

    bench = Bench(handle)
    await bench.pipeline.process(batch("a1"))
    assert bench.broker.published[0].headers[Header.ERROR] == "rejected"


async def test_an_error_that_is_raised_on_purpose_makes_a_letter_at_once() -> None:
    bench = Bench(Doing(a1=Dead("no such article")))
    await bench.pipeline.process(batch("a1"))
    assert bench.outcomes == {"a1": "dead"}


@pytest.mark.parametrize("error", [StoreUnavailable("gone"), RuntimeError("odd")], ids=["world", "odd"])
@in_virtual_time()
async def test_P2_P12_what_waits_for_its_call_does_so_although_its_claim_could_not_be_closed(error: Exception) -> None:
    go, called = asyncio.Event(), list[str]()

    async def hold(event: Placed) -> None:
        called.append(event.order_id)
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                pass

    bench = Bench(hold, store=ToldStore(), timeout=0.02, abandon_after=0.02)
    assert bench.store is not None
    bench.store.exit.append(error)
    try:
        rest, trouble = await bench.pipeline.process(batch("a1"))
        assert rest == []
        assert ("gone" in trouble) == isinstance(error, StoreUnavailable)
        assert len(bench.pipeline.leaving.aside) == 1
        assert bench.broker.settled == [], "it is neither given back nor put off: it is still at work"
        (waits,) = bench.pipeline.leaving.aside
    finally:
        go.set()
    await until(lambda: not bench.pipeline.leaving.aside)
    assert await bench.pipeline.process([waits]) == ([], "")
    assert called == ["a"]
    assert bench.outcomes == {"a1": "done"}
