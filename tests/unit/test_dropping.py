"""Types that newer code asks for are taken away only where nobody who lives asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

import pytest

from tests.unit.parts import RecordingBroker, until
from tests.walk.virtual import in_virtual_time
from tidings import dropping
from tidings.dropping import DROP, Dropping
from tidings.errors import BrokerUnavailable
from tidings.notes import Notes

POSITION = "stock.reserve"
OLD, NEW = "order.placed", "order.cancelled"
AWAY = BrokerUnavailable("away")


class Remembering(RecordingBroker):
    """It remembers what the position takes; `fails` says how often it does not answer yet."""

    def __init__(self, *types: str) -> None:
        super().__init__()
        self.types = set(types)
        self.asked = 0
        self.fails = 0
        self.silent = False
        self.after: Callable[[], Awaitable[None]] | None = None
        """What happens in the moment in which types are remembered."""

    async def taken(self, position: str) -> Collection[str]:
        self.asked += 1
        if self.silent:
            await asyncio.sleep(60)
        if self.fails:
            self.fails -= 1
            raise AWAY
        return set(self.types)

    async def remember(self, position: str, types: Collection[str]) -> None:
        self.types = set(types)
        if (after := self.after) is not None:
            self.after = None
            await after()

    async def notes(self) -> dict[str, str]:
        return await Notes(self, POSITION).read()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropping, "LOOK", 0.01)
    monkeypatch.setattr(dropping, "STANDS", 0.4)


@asynccontextmanager
async def process(broker: Remembering, *asked: str, deaf: bool = False) -> AsyncIterator[Dropping]:
    """One that asks for these types, and hears the notes unless it is deaf."""
    one = Dropping(POSITION, asked, broker)
    await one.start()

    async def hear() -> None:
        one.begin()
        known: dict[str, str] = {}
        while True:
            for name, text in (found := await broker.notes()).items():
                if known.get(name) != text:
                    await one.heard(name, text)
            known = found
            await asyncio.sleep(0.005)

    tasks = [asyncio.create_task(one.run())] + ([] if deaf else [asyncio.create_task(hear())])
    if deaf:
        one.begin()
    try:
        yield one
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@in_virtual_time(dropping)
async def test_P3_P13_an_old_process_that_starts_again_takes_nothing_from_newer_code_that_lives() -> None:
    broker = Remembering(OLD, NEW)
    async with process(broker, OLD, NEW), process(broker, OLD):
        await until(lambda: any(one.key == DROP + NEW for one in broker.published))
        await asyncio.sleep(3 * dropping.STANDS)
        assert broker.types == {OLD, NEW}
        assert DROP + NEW not in await broker.notes()


@in_virtual_time(dropping)
async def test_P13_what_nobody_asks_for_any_more_is_taken_away_once_it_was_asked_who_does() -> None:
    broker = Remembering(OLD, NEW)
    async with process(broker, OLD), process(broker, OLD):
        await until(lambda: any(one.key == DROP + NEW for one in broker.published))
        assert broker.types == {OLD, NEW}, "not before that"
        await until(lambda: broker.types == {OLD})
        await asyncio.sleep(0.1)
        assert await broker.notes() == {}, "nor does anybody who comes later hear of it"


@in_virtual_time(dropping)
async def test_P13_what_newer_code_asked_for_is_taken_away_when_that_has_gone_later() -> None:
    broker = Remembering(OLD, NEW)
    async with process(broker, OLD):
        async with process(broker, OLD, NEW):
            await asyncio.sleep(1.5 * dropping.STANDS)
        assert broker.types == {OLD, NEW}
        await until(lambda: broker.types == {OLD})


@in_virtual_time(dropping)
async def test_P3_newer_code_that_starts_while_it_is_asked_for_keeps_its_types() -> None:
    broker = Remembering(OLD, NEW)
    async with process(broker, OLD):
        await until(lambda: any(one.key == DROP + NEW for one in broker.published))
        await asyncio.sleep(dropping.STANDS / 2)
        assert broker.types == {OLD, NEW}, "there is time to start"
        async with process(broker, OLD, NEW):
            await asyncio.sleep(2 * dropping.STANDS)
            assert broker.types == {OLD, NEW}


@in_virtual_time(dropping)
async def test_P3_what_was_taken_away_in_the_moment_of_a_start_is_taken_again(caplog: pytest.LogCaptureFixture) -> None:
    broker = Remembering(OLD)
    async with process(broker, OLD, NEW):
        await until(lambda: broker.types == {OLD, NEW})
    assert f"{NEW} had been taken from the handler" in caplog.text


@in_virtual_time(dropping)
async def test_P3_who_answers_too_late_takes_again_what_was_taken_away() -> None:
    broker = Remembering(OLD, NEW)
    async with process(broker, OLD, NEW) as one:
        await until(lambda: broker.asked == 2 and not one._doubt.is_set())
        await Notes(broker, POSITION).write({DROP + NEW: "another"})
        await until(lambda: len(broker.published) == 2)  # the answer
        broker.types = {OLD}
        await until(lambda: broker.types == {OLD, NEW})


@in_virtual_time(dropping)
async def test_an_old_process_takes_away_nothing_that_was_added_after_its_start() -> None:
    """What was started last counts: a deployment that rolls on must not be stopped by those that it replaces."""
    broker = Remembering(OLD)
    async with process(broker, OLD):
        broker.types.add(NEW)
        await asyncio.sleep(3 * dropping.STANDS)
    assert broker.types == {OLD, NEW}
    assert not broker.published


@in_virtual_time(dropping)
async def test_nobody_is_asked_anything_where_the_types_are_those_of_the_code() -> None:
    broker = Remembering(OLD)
    async with process(broker, OLD):
        await asyncio.sleep(3 * dropping.STANDS)
    assert (broker.asked, broker.published) == (2, []), "at the start, and whether that has changed in that moment"


@in_virtual_time(dropping)
async def test_a_broker_that_is_away_is_asked_again() -> None:
    broker = Remembering(OLD, NEW)
    broker.fails = 3
    async with process(broker, OLD):
        await until(lambda: broker.types == {OLD})
    assert broker.asked >= 4


@in_virtual_time(dropping)
async def test_P3_who_was_overtaken_by_another_that_asks_does_not_take_the_answer_to_that_for_its_own() -> None:
    """The note of one was taken back; that of another stands, which nobody has had time to answer."""
    broker = Remembering(OLD, NEW)
    async with process(broker, OLD, deaf=True) as one:
        await until(lambda: one._since is not None)
        await Notes(broker, POSITION).write({DROP + NEW: "another"})
        await until(lambda: one._since is None)
        assert broker.types == {OLD, NEW}


@in_virtual_time(dropping)
async def test_P3_who_hears_only_that_a_note_was_taken_back_looks_whether_its_type_was_taken_away() -> None:
    """Its loop was blocked for longer than a minute, and of a note that changed twice only the last text came."""
    broker = Remembering(OLD, NEW)
    async with process(broker, OLD, NEW, deaf=True) as one:
        await until(lambda: not one._doubt.is_set())
        broker.types = {OLD}
        await one.heard(DROP + NEW, "")
        await until(lambda: broker.types == {OLD, NEW})


@in_virtual_time(dropping)
async def test_P3_a_doubt_that_comes_while_a_type_is_taken_again_is_none_of_before() -> None:
    broker = Remembering(OLD)
    async with process(broker, OLD, NEW, deaf=True) as one:
        once_more = asyncio.Event()

        async def taken_once_more() -> None:
            await one.heard(DROP + NEW, "another")
            broker.types = {OLD}
            once_more.set()

        broker.after = taken_once_more
        await until(once_more.is_set)
        await until(lambda: broker.types == {OLD, NEW})


@in_virtual_time(dropping)
async def test_P3_who_was_cut_off_while_the_living_were_asked_asks_them_again() -> None:
    """The broker was away: those who live may come back to it later than the one who asks."""
    broker = Remembering(OLD, NEW)
    async with process(broker, OLD, deaf=True) as one:
        await until(lambda: one._since is not None)
        first = one._since
        await asyncio.sleep(dropping.STANDS / 2)
        one.begin()
        await until(lambda: one._since not in (None, first))
        await asyncio.sleep(dropping.STANDS * 0.75)
        assert broker.types == {OLD, NEW}, "they have a whole minute"
        await until(lambda: broker.types == {OLD})


@in_virtual_time(dropping)
async def test_a_start_waits_no_longer_for_a_broker_that_went_away_than_for_one_question() -> None:
    """Fifty handlers may ask one behind the other."""
    broker = Remembering(OLD, NEW)
    broker.silent = True
    async with asyncio.timeout(2):
        async with process(broker, OLD):
            broker.silent = False
            await until(lambda: broker.types == {OLD})


@in_virtual_time(dropping)
async def test_other_notes_and_brokers_that_remember_nothing_are_left_alone() -> None:
    broker = RecordingBroker()
    one = Dropping(POSITION, [NEW], broker)
    await one.run()
    await one.heard(DROP + NEW, "a")
    assert not broker.published
    remembering = Remembering(OLD, NEW)
    two = Dropping(POSITION, [NEW], remembering)
    for name, text in (("control/paused", "a"), (DROP + OLD, "a"), (DROP + NEW, "")):
        await two.heard(name, text)
    assert not remembering.published
