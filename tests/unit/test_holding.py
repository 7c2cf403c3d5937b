"""Held keys, one write at a time: what a process that died before, between or after two of them leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime

import pytest

from tests.unit.parts import RecordingBroker, delivery
from tidings.dead_letters import Letter
from tidings.delivery import DeadLettered, Delivery, Done, Header, Route
from tidings.errors import BrokerUnavailable
from tidings.grouping import Work
from tidings.holding import Held, Holding, held_keys
from tidings.releasing import Releaser, _line

POSITION = "stock.step"
DEAD = DeadLettered(reason="x", code="rejected")


def event(number: int) -> Delivery:
    return delivery("a", number, read=True)


def copy(number: int, place: int) -> Delivery:
    """What a redriven letter comes as."""
    letter = {Header.LETTER: f"L{place}", Header.REDRIVE: "1", Header.ORIGIN: f"order%40{number}"}
    return delivery("a", number, headers={Header.PLACE: str(place), **letter}, route=Route.RETRY, read=True)


def discarded(place: int) -> Delivery:
    headers = {Header.PLACE: str(place), Header.MARKER: "discarded"}
    return delivery("a", 90 + place, headers=headers, route=Route.RETRY, read=True)


class Process:
    """What one process knows of the held keys; another one begins with the notes."""

    def __init__(self, broker: RecordingBroker, *, blocks: bool = False) -> None:
        self.holding = Holding(broker, POSITION, blocks=blocks)

    async def __call__(self) -> Process:
        await self.holding.refresh()
        return self

    def passes(self, *deliveries: Delivery) -> list[bool]:
        works = [Work(one) for one in deliveries]
        self.holding.keep_back(works, None)
        return [work.decision is None for work in works]

    async def bury(self, *deliveries: Delivery) -> list[str]:
        """Note their places, and say which they are; no letter is stored by this."""
        await self.holding.note([(one, DEAD) for one in deliveries])
        return [self.holding.headers(one)[Header.PLACE] for one in deliveries]

    async def done(self, *deliveries: Delivery) -> None:
        concerned = [(one, Done()) for one in deliveries if self.holding.concerns(one, Done())]
        if concerned:
            await self.holding.note(concerned)

    def goes_on(self) -> bool:
        return self.held is not None and self.held.going

    @property
    def held(self) -> Held | None:
        return self.holding.keys.get("a")


@pytest.fixture
def broker() -> RecordingBroker:
    return RecordingBroker()


async def test_P8_a_follower_whose_letter_was_not_stored_gets_its_place_once_more(broker: RecordingBroker) -> None:
    before = await Process(broker)()
    assert await before.bury(event(1)) == ["1"]
    assert await before.bury(event(2), event(3)) == ["2", "3"]
    after = await Process(broker)()  # and nothing was stored or acknowledged
    assert after.passes(event(2), event(1), event(3), event(4)) == [False, True, False, False]
    assert after.passes(event(1), event(2), event(4)) == [True, True, False], "the first may be applied this time"
    assert await after.bury(event(1), event(2), event(3), event(4)) == ["1", "2", "3", "4"]
    again = event(2)
    assert after.holding.headers(again) == {}
    await after.bury(again)
    first = after.held.first if after.held else ""
    assert after.holding.headers(again) == {Header.PLACE: "2", Header.BEHIND: first}


async def test_P8_the_first_may_still_succeed_when_it_comes_again_and_lets_its_key_go(broker: RecordingBroker) -> None:
    await (await Process(broker)()).bury(event(1))
    after = await Process(broker)()
    assert after.passes(event(1)) == [True]
    await after.done(event(1))
    assert after.held is None
    assert (await Process(broker)()).held is None


async def test_what_was_acknowledged_is_not_remembered_for_longer_than_needed(broker: RecordingBroker) -> None:
    one = await Process(broker)()
    await one.bury(event(1), event(2))
    one.holding.acknowledged([event(1), event(2)])
    await one.bury(event(3))
    assert one.held is not None
    assert list(one.held.recent.values()) == [3]


async def test_P8_copies_pass_in_their_turn_and_a_run_of_them_together(broker: RecordingBroker) -> None:
    one = await Process(broker)()
    await one.bury(event(1), event(2), event(3))
    assert one.passes(copy(2, 2)) == [False]
    assert one.passes(copy(1, 1), copy(2, 2), event(4), copy(3, 3)) == [True, True, False, True]
    assert one.passes(copy(1, 1), copy(3, 3), copy(2, 2)) == [True, False, True]
    await one.done(copy(1, 1), copy(2, 2))
    after = await Process(broker)()
    assert after.passes(copy(1, 1), copy(3, 3)) == [True, True], "what comes again has passed; it is a duplicate"
    await after.done(copy(1, 1), copy(3, 3))
    assert (await Process(broker)()).held is None


async def test_P8_a_discarded_place_counts_when_its_turn_has_come(broker: RecordingBroker) -> None:
    one = await Process(broker, blocks=True)()
    await one.bury(event(1), event(2), event(3))
    await one.done(discarded(2))
    assert one.held is not None
    assert (one.held.settled, one.held.going) == (0, False)
    assert one.passes(copy(1, 1), copy(3, 3)) == [True, True]
    await one.done(discarded(1))
    assert (one.held.settled, one.held.going) == (2, True)
    await one.done(copy(3, 3))
    assert one.held is None


async def test_P8_one_that_dies_in_its_turn_becomes_the_first(broker: RecordingBroker) -> None:
    one = await Process(broker, blocks=True)()
    await one.bury(event(1), event(2), event(3))
    await one.done(copy(1, 1))
    assert one.goes_on()
    assert await one.bury(copy(2, 2)) == ["2"]
    assert not one.goes_on()
    third = copy(3, 3)
    assert await one.bury(third) == ["3"]
    assert one.holding.headers(third)[Header.BEHIND] == (one.held.first if one.held else "")
    assert not one.goes_on()


async def test_P8_what_has_passed_and_could_not_be_noted_is_noted_when_it_comes_again(broker: RecordingBroker) -> None:
    one = await Process(broker)()
    await one.bury(event(1))
    broker.refuse_publish = lambda message: BrokerUnavailable("away")
    with pytest.raises(BrokerUnavailable):
        await one.done(copy(1, 1))
    broker.refuse_publish = lambda message: None
    assert one.passes(copy(1, 1)) == [True]
    await one.done(copy(1, 1))
    assert (await Process(broker)()).held is None


async def test_P8_a_place_that_could_not_be_noted_is_the_same_the_next_time(broker: RecordingBroker) -> None:
    one = await Process(broker)()
    broker.refuse_publish = lambda message: BrokerUnavailable("away")
    with pytest.raises(BrokerUnavailable):
        await one.bury(event(1), event(2))
    broker.refuse_publish = lambda message: None
    assert await one.bury(event(1), event(2), event(3)) == ["1", "2", "3"]


async def test_P8_a_copy_whose_line_is_forgotten_begins_a_new_one(broker: RecordingBroker) -> None:
    one = await Process(broker)()
    assert one.passes(copy(7, 7)) == [True]
    assert await one.bury(copy(7, 7)) == ["1"]
    assert (await Process(broker)()).passes(copy(7, 7), event(8)) == [True, False]


def test_a_note_that_cannot_be_read_holds_nothing() -> None:
    assert held_keys({"held/a": "?", "failed/x": "1", "held/b": '{"first": "L"}'}) == {"b": Held(first="L")}


def letters(**states: str) -> dict[int, Letter]:
    made = {}
    for name, state in states.items():
        place = int(name[1:])
        made[place] = Letter(
            id=name,
            position=POSITION,
            stream="order",
            type="order.placed",
            key="a",
            event_id="",
            code="behind",
            reason="",
            failures=0,
            first_failure="",
            last_failure="",
            origin="",
            place=place,
            state=state,  # type: ignore[arg-type]  # a table
        )
    return made


@pytest.mark.parametrize(
    ("held", "known", "line"),
    [
        (Held(first="", placed=3, settled=1), letters(L2="dead", L3="dead"), ["L2", "L3"]),
        (Held(first="", placed=4, settled=1), letters(L2="dead", L4="dead"), ["L2"]),
        (Held(first="", placed=4, settled=1, gone=[3]), letters(L2="dead", L4="dead"), ["L2", "L4"]),
        (Held(first="", placed=4, settled=1), letters(L2="redriven", L3="discarded", L4="dead"), ["L4"]),
        (Held(first="", placed=2, settled=0), letters(L1="redriven", L2="redriven"), []),
    ],
)
def test_P8_followers_are_given_back_up_to_the_first_whose_letter_is_not_there(
    held: Held, known: dict[int, Letter], line: list[str]
) -> None:
    assert _line(held, known) == line


class Away(RecordingBroker):
    """Does not answer the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    async def read(
        self, route: Route, stream: str = "", *, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[Delivery]:
        self.reads += 1
        if self.reads == 1:
            raise BrokerUnavailable("away")
        async for one in super().read(route, stream, since=since, follow=follow):
            yield one


async def test_P10_followers_wait_for_a_broker_that_is_away_and_are_looked_for_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tidings.releasing.ROUND", 0.01)
    broker = Away()
    holding = Holding(broker, POSITION, blocks=True)
    task = asyncio.create_task(Releaser(POSITION, broker, holding).run())
    for _ in range(500):
        if broker.reads >= 2:
            break
        await asyncio.sleep(0.005)
    assert broker.reads >= 2
    assert "the followers of its held keys wait: BrokerUnavailable: away" in caplog.text
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
