"""Events that newer code of a handler asks for, where older code gets them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from tests.unit.parts import Bench, Doing, RecordingBroker, batch, delivery, ids
from tests.walk.virtual import in_virtual_time
from tidings import newer
from tidings.delivery import ACK, Delivery, Done, Release, Retried
from tidings.errors import BrokerUnavailable
from tidings.newer import PUT_OFF, Newer
from tidings.order import Holds

ASKED = "order.placed"
GAINED = "order.cancelled"
AWAY = BrokerUnavailable("away")


class Remembering(RecordingBroker):
    """One that says which types a position takes, or fails to, or says nothing."""

    def __init__(self, answer: Collection[str] | Exception | None) -> None:
        super().__init__()
        self.answer = answer
        self.questions = 0

    async def taken(self, position: str) -> Collection[str]:
        self.questions += 1
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer or ()

    async def remember(self, position: str, types: Collection[str]) -> None:
        raise AssertionError("nobody changes what a position takes here")


class Sifting:
    """A feed that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Collection[str], float]] = []

    def sift(self, theirs: Collection[str], until: float) -> None:
        self.told.append((theirs, until))


def bench_with(broker: Remembering, doing: Doing, **rules: object) -> Bench:
    bench = Bench(doing, **rules)  # type: ignore[arg-type]
    bench.pipeline.newer = Newer("stock.step", [ASKED], broker)
    return bench


def cancelled(order_id: str, number: int) -> Delivery:
    return delivery(order_id, number, kind=GAINED)


async def test_P3_P13_what_newer_code_asks_for_is_put_off_and_not_counted() -> None:
    doing = Doing()
    bench = bench_with(Remembering((ASKED, GAINED)), doing)
    assert await bench.pipeline.process([cancelled("a", 1), *batch("b2")]) == ([], "")
    assert doing.seen == ["b2"]
    assert dict(bench.broker.verdicts()) == {"a1": Release(PUT_OFF), "b2": ACK}
    assert bench.broker.published == []
    (outcome,) = [outcome for event, outcome in bench.watcher.outcomes if event == "a1"]
    assert isinstance(outcome, Retried)
    assert not outcome.counted


async def test_P13_what_no_code_asks_for_is_passed_over() -> None:
    bench = bench_with(Remembering((ASKED, "order.other")), Doing())
    await bench.pipeline.process([cancelled("a", 1)])
    assert bench.watcher.outcomes == [("a1", Done(skipped=True))]
    assert bench.broker.verdicts() == [("a1", ACK)]


@pytest.mark.parametrize("answer", [AWAY, None], ids=["fails", "says nothing"])
async def test_P3_where_nobody_answers_it_is_put_off_and_the_rest_is_handled(
    answer: Exception | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(newer, "PATIENCE", 0.05)
    doing, broker = Doing(), Remembering(answer)
    bench = bench_with(broker, doing)
    for number in range(3):
        await bench.pipeline.process([cancelled("a", number), *batch(f"b{number}")])
    assert doing.seen == ["b0", "b1", "b2"]
    assert [verdict for event, verdict in bench.broker.verdicts() if event[0] == "a"] == [Release(PUT_OFF)] * 3
    assert broker.questions == 1, "it is not asked for each batch"
    assert caplog.text.count("nobody says whether newer code does") == 1


@in_virtual_time(newer)
async def test_an_answer_is_believed_for_some_seconds_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newer, "BELIEVED", 0.2)
    broker = Remembering((ASKED,))
    bench = bench_with(broker, Doing())
    bench.pipeline.newer.feed = feed = Sifting()
    before = asyncio.get_running_loop().time()
    for number in range(3):
        await bench.pipeline.process([cancelled("a", number)])
    assert broker.questions == 1
    ((theirs, until),) = feed.told
    assert theirs == frozenset()
    assert before + 0.2 <= until <= asyncio.get_running_loop().time() + 0.2
    await asyncio.sleep(0.25)
    broker.answer = (ASKED, GAINED)
    await bench.pipeline.process([cancelled("a", 4)])
    assert broker.questions == 2
    assert bench.broker.verdicts()[-1] == ("a4", Release(PUT_OFF))
    assert feed.told[1][0] == {GAINED}


async def test_several_lanes_ask_one_question() -> None:
    broker = Remembering((ASKED, GAINED))
    bench = bench_with(broker, Doing())
    await asyncio.gather(*(bench.pipeline.process([cancelled("a", number)]) for number in range(5)))
    assert broker.questions == 1
    assert [verdict for _, verdict in bench.broker.verdicts()] == [Release(PUT_OFF)] * 5


async def test_P8_in_order_it_keeps_its_place_in_its_key_and_holds_up_no_other() -> None:
    doing, holds = Doing(), Holds()
    bench = bench_with(Remembering((ASKED, GAINED)), doing, ordered=True)
    came = [*batch("a1"), cancelled("a", 2), *batch("a3"), cancelled("b", 4), *batch("c5")]
    assert await bench.pipeline.process(came, holds) == ([], "")
    assert doing.seen == ["a1", "c5"]
    put_off = {event: outcome for event, outcome in bench.watcher.outcomes if not isinstance(outcome, Done)}
    assert sorted(put_off) == ["a2", "b4"]
    assert not any(outcome.counted for outcome in put_off.values() if isinstance(outcome, Retried))
    assert sorted(ids(list(holds.deliveries()))) == ["a2", "a3", "b4"]
    loop = asyncio.get_running_loop()
    assert [one for one in ids(list(holds.release(loop.time() + PUT_OFF))) if one[0] == "a"] == ["a2", "a3"]


async def test_P8_what_fails_before_it_stays_before_it() -> None:
    doing, holds = Doing(a1=ValueError("not yet")), Holds()
    bench = bench_with(Remembering((ASKED, GAINED)), doing, ordered=True)
    await bench.pipeline.process([*batch("a1"), cancelled("a", 2), *batch("a3")], holds)
    assert ids(list(holds.deliveries())) == ["a1", "a2", "a3"]


@in_virtual_time(newer)
async def test_it_is_asked_from_time_to_time_only_while_something_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newer, "LOOK", 0.02)
    monkeypatch.setattr(newer, "BELIEVED", 0.0)
    broker = Remembering((ASKED,))
    bench = bench_with(broker, Doing())
    bench.pipeline.newer.feed = feed = Sifting()
    looking = asyncio.create_task(bench.pipeline.newer.run())
    try:
        await bench.pipeline.process([cancelled("a", 1)])
        await asyncio.sleep(0.1)
        assert broker.questions == 1
        broker.answer = (ASKED, GAINED)
        await bench.pipeline.process([cancelled("a", 2)])
        await asyncio.sleep(0.1)
        assert broker.questions > 3
        broker.answer = (ASKED,)
        await asyncio.sleep(0.1)
        assert feed.told[-1][0] == frozenset(), "what waits at the feed is told that it need not"
        asked = broker.questions
        await asyncio.sleep(0.1)
        assert broker.questions == asked
    finally:
        looking.cancel()
