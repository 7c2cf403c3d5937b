"""Suspects: alone in their handler, one at a time in a process, in their place, and buried when they killed enough."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.parts import Doing, Placed, ToldStore, batch, delivery, ids, until
from tests.unit.test_worker import Run
from tests.walk.virtual import in_virtual_time
from tidings import alone
from tidings.copies import plain_text
from tidings.counting import SUSPICIOUS, Counts
from tidings.delivery import ACK, Delivery, Header, Message, Release, Route
from tidings.errors import BrokerUnavailable, StoreUnavailable
from tidings.notes import Notes
from tidings.policy import Retry, killed, often

TWICE = Retry(attempts=2, first=0.01, most=0.01)


def suspects(*names: str, delivered: int = SUSPICIOUS + 1) -> list[Delivery]:
    made = batch(*names)
    for one in made:
        one.delivered = delivered
    return made


class Beside(Doing):
    """Keeps which events ran at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []
        self.beside: dict[str, set[str]] = {}

    async def __call__(self, event: Placed) -> None:
        name = f"{event.order_id}{event.number}"
        self.running.append(name)
        for one in self.running:
            self.beside.setdefault(one, set()).update(self.running)
        await asyncio.sleep(0.02)
        self.running.remove(name)
        self.seen.append(name)


@in_virtual_time()
async def test_a_suspect_runs_alone_in_its_handler_and_the_healthy_run_together() -> None:
    beside = Beside()
    async with Run(beside, lanes=3, size=2) as run:
        run.give(*batch("a1", "b2"), *suspects("c3"), *batch("d4", "e5", "f6", "g7", "h8"))
        await run.settled(8)
    assert beside.beside["c3"] == {"c3"}
    assert any(len(others) > 1 for others in beside.beside.values())


@in_virtual_time()
async def test_what_arrives_while_a_suspect_runs_waits_until_it_has_ended() -> None:
    beside = Beside()
    async with Run(beside, lanes=3, size=1) as run:
        run.give(*suspects("c3"))
        await until(lambda: beside.running)
        run.give(*batch("a1", "b2"))
        await run.settled(3)
    assert beside.beside["c3"] == {"c3"}


@in_virtual_time()
async def test_of_two_handlers_only_one_has_a_suspect_that_runs() -> None:
    beside = Beside()
    async with Run(beside) as one, Run(beside) as two:
        one.give(*suspects("a1", "a2"))
        two.give(*suspects("b1", "b2"))
        await one.settled(2)
        await two.settled(2)
    assert beside.beside == {name: {name} for name in ("a1", "a2", "b1", "b2")}


async def test_P8_a_suspect_keeps_its_place_among_the_events_of_its_lane() -> None:
    doing = Doing(a2=[ValueError("x")])
    async with Run(doing, ordered=True, retry=Retry(attempts=3, first=0.01, most=0.01)) as run:
        run.give(*batch("a1"), *suspects("a2"), *batch("a3"), *suspects("a4"), *batch("b5"))
        await run.settled(5)
    assert [one for one in doing.seen if one[0] == "a"] == ["a1", "a2", "a2", "a3", "a4"]
    assert set(run.bench.outcomes.values()) == {"done"}


async def test_P7_what_killed_its_process_as_often_as_it_has_attempts_is_a_letter_and_is_not_handled_again() -> None:
    doing = Doing()
    async with Run(doing, retry=TWICE) as run:
        for _ in range(2):
            (one,) = suspects("a1")
            counts = Counts(run.broker, "stock.step")
            await counts.ready([one], in_place=False)
            await counts.begin_alone(one)  # and there it dies
        run.give(*suspects("a1", "b2"))
        await run.settled(2)
    assert await Notes(run.broker, "stock.step").read() == {}
    assert doing.seen == ["b2"]
    (letter,) = [one for one in run.broker.published if one.route is Route.DEAD]
    assert letter.headers[Header.ERROR] == "killed"
    assert letter.headers[Header.FAILURES] == "2"
    assert letter.type == "order.placed"
    assert plain_text(letter.headers[Header.REASON]) == "killed its process 2 times while it was handled alone"


async def test_P7_what_killed_its_process_and_cannot_be_read_is_buried_unread() -> None:
    async with Run(Doing(), retry=Retry(attempts=1)) as run:
        one = delivery(body=b"not json")
        one.delivered = 9
        await Counts(run.broker, "stock.step").begin_alone(one)
        again = delivery(body=b"not json")
        again.delivered = 10
        run.give(again)
        await run.settled(1)
    (letter,) = [one for one in run.broker.published if one.route is Route.DEAD]
    assert (letter.body, letter.headers[Header.ERROR]) == (b"not json", "killed")


@in_virtual_time()
async def test_P9_a_suspect_that_waits_when_its_handler_stops_goes_back_and_has_killed_nobody() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow(event: Placed) -> None:
        entered.set()
        await leave.wait()

    run = Run(slow, lanes=2, size=1)
    await run.worker.start()
    run.give(*batch("a1"), *suspects("b2"))
    await entered.wait()
    await asyncio.sleep(0.01)
    stopping = asyncio.create_task(run.worker.stop(5.0))
    await asyncio.sleep(0.01)
    leave.set()
    await stopping
    assert dict(run.broker.verdicts()) == {"a1": ACK, "order@2": Release()}
    assert [name for name in await Notes(run.broker, "stock.step").read()] == ["alive/order@2"]


@in_virtual_time()
async def test_what_was_never_begun_and_went_back_at_every_stop_is_handled_with_the_others() -> None:
    """Each stop counts as a delivery at the broker: a few deployments over a backlog must not slow it down."""
    notes: list[Message] = []
    beside = Beside()
    for delivered in range(1, 12):
        run = Run(beside, lanes=1, size=2)
        run.broker.published += notes
        run.worker._switch.most = lambda wanted: 0  # type: ignore[method-assign]  # nothing is begun
        await run.worker.start()
        run.give(*suspects("a1", "b2", "c3", "d4", delivered=delivered))
        await run.worker.stop(1.0)
        notes = [one for one in run.broker.published if one.route is Route.NOTE]
    async with Run(beside, lanes=2, size=2) as run:
        run.broker.published += notes
        run.give(*suspects("a1", "b2", "c3", "d4", delivered=12))
        await run.settled(4)
        await until(lambda: sum(one.route is Route.NOTE and not one.body for one in run.broker.published) == 4)
    assert any(len(others) > 1 for others in beside.beside.values())
    assert await Notes(run.broker, "stock.step").read() == {}


async def test_P9_a_suspect_that_is_cancelled_when_its_handler_stops_has_killed_nobody() -> None:
    entered = asyncio.Event()

    async def stuck(event: Placed) -> None:
        entered.set()
        await asyncio.Event().wait()

    run = Run(stuck)
    await run.worker.start()
    run.give(*suspects("a1"))
    await entered.wait()
    assert set(await Notes(run.broker, "stock.step").read()) == {"alone/order@1"}
    await run.worker.stop(0.05)
    assert [verdict for _, verdict in run.broker.settled] == [Release(0.0)]
    assert await Notes(run.broker, "stock.step").read() == {}


async def test_a_suspect_whose_death_cannot_be_noted_beforehand_waits_and_is_not_lost() -> None:
    doing = Doing()
    async with Run(doing) as run:
        run.broker.refuse_publish = lambda message: BrokerUnavailable("away")
        run.give(*suspects("a1"))
        await until(lambda: "away" in run.worker.trouble)
        assert doing.seen == []
        run.broker.refuse_publish = lambda message: None
        await run.settled(1)
    assert doing.seen == ["a1"]


async def test_P5_a_suspect_that_waits_for_the_store_has_killed_nobody() -> None:
    store = ToldStore()
    store.enter.append(StoreUnavailable("down"))
    async with Run(Doing(), store=store) as run:
        run.give(*suspects("a1"))
        await run.settled(1)
    assert await Notes(run.broker, "stock.step").read() == {}
    assert run.bench.outcomes == {"a1": "done"}


@in_virtual_time()
async def test_a_lane_that_does_not_end_does_not_keep_a_suspect_and_the_others_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alone, "PATIENCE", 0.05)
    leave = asyncio.Event()

    async def slow(event: Placed) -> None:
        if event.order_id == "a":
            await leave.wait()

    async with Run(slow, lanes=3, size=1) as run:
        run.give(*batch("a1"))
        await asyncio.sleep(0.01)
        run.give(*suspects("b2"), *batch("c3", "d4"))
        await run.settled(2)
        assert sorted(ids([one for one, _ in run.broker.settled])) == ["c3", "d4"]
        await until(lambda: "beside a suspect" in run.worker.trouble)
        leave.set()
        await run.settled(4)


@in_virtual_time()
async def test_P12_a_suspect_that_hangs_does_not_keep_the_healthy_events_of_other_handlers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alone, "PATIENCE", 0.05)
    leave = asyncio.Event()

    async def hangs(event: Placed) -> None:
        await leave.wait()

    async with Run(hangs) as stuck, Run(Beside(), lanes=1, size=1) as run:
        stuck.give(*suspects("a1"))
        await asyncio.sleep(0.01)
        run.give(*suspects("b2"), *batch("c3", "d4"))
        await run.settled(2)
        assert sorted(ids([one for one, _ in run.broker.settled])) == ["c3", "d4"]
        await until(lambda: "beside a suspect" in run.worker.trouble)
        leave.set()
        await run.settled(3)
        await stuck.settled(1)


@pytest.mark.parametrize(
    ("deaths", "failures", "retry", "dead"),
    [
        (0, 9, Retry(attempts=2), False),
        (1, 1, Retry(attempts=2), False),
        (2, 2, Retry(attempts=2), True),
        (1, 3, Retry(attempts=3), True),
        (1, 1, Retry(attempts=9, within=10), True),
        (1, 1, Retry(attempts=9, within=10_000_000_000), False),
    ],
)
def test_P7_deaths_and_failures_together_are_the_attempts(deaths: int, failures: int, retry: Retry, dead: bool) -> None:
    one = delivery()
    one.failures, one.first_failed = failures, 1_000_000_000.0
    decision = killed(one, deaths, retry)
    assert (decision is not None) == dead
    if decision is not None and failures > deaths:
        assert decision.reason.endswith(f", and failed {often(failures - deaths)}")
