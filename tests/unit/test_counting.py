"""Counts that outlive their process: what is noted, what is looked up, and what is taken back."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from datetime import datetime

import pytest

from tests.unit.parts import RecordingBroker, delivery
from tidings.counting import REMEMBERED, SUSPICIOUS, Counts
from tidings.delivery import Delivery, Message, Route
from tidings.errors import BrokerUnavailable, ConfigurationError, WorldError
from tidings.notes import Notes

POSITION = "stock.step"


class Broker(RecordingBroker):
    """Counts how often its notes are read, and can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.away = False
        self.refuse_publish = self._refuse

    def _refuse(self, message: Message) -> Exception | None:
        return BrokerUnavailable("away") if self.away else None

    async def read(
        self, route: Route, stream: str = "", *, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[Delivery]:
        self.reads += 1
        if self.away:
            raise BrokerUnavailable("away")
        async for message in super().read(route, stream, since=since, follow=follow):
            yield message

    async def notes(self) -> dict[str, str]:
        return await Notes(self, POSITION).read()


def again(number: int = 1, delivered: int = 2, body: bytes | None = None) -> Delivery:
    """A delivery as a process gets it that did not have it before."""
    one = delivery("a", number, body=body)
    one.delivered = delivered
    return one


async def test_P6_a_process_that_comes_after_goes_on_counting_where_another_left_off() -> None:
    broker, first = Broker(), delivery()
    before = Counts(broker, POSITION)
    for _ in range(2):
        await before.failed([first])
    assert first.failures == 2
    next_one = again()
    after = Counts(broker, POSITION)
    await after.ready([next_one], in_place=True)
    assert next_one.failures == 2
    assert next_one.first_failed == pytest.approx(first.first_failed, abs=0.002)
    await after.failed([next_one])
    third = again(delivered=3)
    await Counts(broker, POSITION).ready([third], in_place=True)
    assert third.failures == 3
    assert abs(third.first_failed - time.time()) < 60


async def test_P6_nothing_is_looked_up_for_what_is_new_and_once_for_a_batch_that_comes_again() -> None:
    broker = Broker()
    counts = Counts(broker, POSITION)
    await counts.ready([delivery("a", 1), delivery("b", 2)], in_place=True)
    assert broker.reads == 0
    batch = [again(1), again(2), delivery("c", 3)]
    await counts.ready(batch, in_place=True)
    await counts.ready(batch, in_place=True)
    assert broker.reads == 1
    await counts.ready([again(4, SUSPICIOUS)], in_place=False)
    assert broker.reads == 1, "a copy carries its count"


async def test_P6_an_event_that_failed_here_is_not_counted_twice() -> None:
    broker, one = Broker(), again()
    counts = Counts(broker, POSITION)
    await counts.ready([one], in_place=True)
    await counts.failed([one])
    await counts.ready([one], in_place=True)
    assert one.failures == 1
    assert broker.reads == 1


async def test_what_has_come_to_its_end_leaves_no_note_and_what_has_not_keeps_its_own() -> None:
    broker, one, two = Broker(), delivery("a", 1), delivery("b", 2)
    counts = Counts(broker, POSITION)
    await counts.failed([one, two])
    assert set(await broker.notes()) == {"failed/order@1", "failed/order@2"}
    await counts.ended([one, delivery("c", 3)])
    assert set(await broker.notes()) == {"failed/order@2"}
    written = len(broker.published)
    await counts.ended([one, delivery("c", 3)])
    assert len(broker.published) == written


async def test_P6_what_another_process_noted_is_taken_back_by_the_one_that_ends_it() -> None:
    broker = Broker()
    await Counts(broker, POSITION).failed([delivery()])
    counts, one = Counts(broker, POSITION), again()
    await counts.ready([one], in_place=True)
    await counts.ended([one])
    assert await broker.notes() == {}


async def test_P6_a_failure_that_cannot_be_noted_keeps_the_next_attempt_back_until_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker, one = Broker(), delivery()
    counts = Counts(broker, POSITION)
    broker.away = True
    with caplog.at_level(logging.WARNING, "tidings"):
        await counts.failed([one])
    assert "how often an event failed is not noted yet" in caplog.text
    assert one.failures == 1
    with pytest.raises(BrokerUnavailable):
        await counts.ready([one], in_place=True)
    broker.away = False
    await counts.ready([one], in_place=True)
    assert (await broker.notes())["failed/order@1"].startswith("1 ")


async def test_P6_where_nobody_says_how_often_it_failed_an_event_is_not_begun() -> None:
    broker, one = Broker(), again()
    broker.away = True
    counts = Counts(broker, POSITION)
    with pytest.raises(WorldError):
        await counts.ready([one], in_place=True)
    broker.away = False
    await counts.ready([one], in_place=True)
    assert one.counted


async def test_a_refusal_that_is_no_outage_is_named_as_what_keeps_the_handler_waiting() -> None:
    broker = Broker()
    broker.refuse_publish = lambda message: ConfigurationError("no permission")
    counts = Counts(broker, POSITION)
    await counts.failed([delivery()])
    with pytest.raises(WorldError, match=r"the notes of stock\.step cannot be written: .*no permission"):
        await counts.ready([], in_place=True)


async def test_the_same_place_of_a_stream_that_was_made_anew_has_no_failures() -> None:
    broker = Broker()
    await Counts(broker, POSITION).failed([delivery("a", 1, body=b"one")])
    other = again(1, body=b"two")
    await Counts(broker, POSITION).ready([other], in_place=True)
    assert other.failures == 0


@pytest.mark.parametrize("text", ["", "x", "1", "1 x abc", "one 2.0 {of}", "1 two {of}"])
async def test_a_note_that_says_nothing_counts_nothing(text: str) -> None:
    broker, one = Broker(), again()
    written = Counts(broker, POSITION)
    await written.failed([delivery()])
    of = (await broker.notes())["failed/order@1"].split(" ")[2]
    await Notes(broker, POSITION).write({"failed/order@1": text.format(of=of)})
    await Counts(broker, POSITION).ready([one], in_place=True)
    assert (one.failures, one.counted) == (0, True)


# ── handled alone ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_message_is_suspect_after_three_deliveries_without_an_end() -> None:
    counts = Counts(Broker(), POSITION)
    assert counts.suspect([again(1, SUSPICIOUS), delivery("a", 2)]) is None
    assert counts.suspect([delivery("a", 1), again(2, SUSPICIOUS + 1), again(3, 9)]) == 1


async def test_what_was_given_back_from_here_alive_is_no_suspect_for_that() -> None:
    counts = Counts(Broker(), POSITION)
    for delivered in range(1, 9):
        assert counts.suspect([again(1, delivered)]) is None
        counts.survived(again(1, delivered))
    assert counts.suspect([again(1, 8 + SUSPICIOUS + 1)]) == 0
    for number in range(2, REMEMBERED + 9):
        counts.survived(again(number, 9))
    assert len(counts._survived) == REMEMBERED


async def test_what_another_process_gave_back_alive_is_no_suspect_for_that() -> None:
    broker = Broker()
    await Counts(broker, POSITION).note_survivors([again(1, SUSPICIOUS), again(2, SUSPICIOUS - 1)])
    assert list(await broker.notes()) == ["alive/order@1"], "what is far from being a suspect needs no word"
    for delivered in (SUSPICIOUS + 1, 2 * SUSPICIOUS):
        counts, batch = Counts(broker, POSITION), [again(1, delivered)]
        assert counts.suspect(batch) == 0
        await counts.look_at(batch)
        assert counts.suspect(batch) is None
    counts, batch = Counts(broker, POSITION), [again(1, 2 * SUSPICIOUS + 1)]
    await counts.look_at(batch)
    assert counts.suspect(batch) == 0, "it may have killed those that had it since"


async def test_who_gives_back_says_so_again_only_where_the_next_one_would_suspect_it() -> None:
    broker = Broker()
    for delivered in range(1, 10):
        counts, batch = Counts(broker, POSITION), [again(1, delivered)]
        if counts.suspect(batch) is not None:
            await counts.look_at(batch)
        assert counts.suspect(batch) is None
        await counts.note_survivors(batch)
    assert len(broker.published) == 9 // SUSPICIOUS


async def test_what_was_given_back_alive_and_has_ended_leaves_no_note() -> None:
    broker = Broker()
    await Counts(broker, POSITION).note_survivors([again(1, SUSPICIOUS)])
    counts, one = Counts(broker, POSITION), again(1, SUSPICIOUS + 1)
    await counts.look_at([one])
    await counts.ended([one])
    assert await broker.notes() == {}
    assert counts._survived == {}


async def test_what_was_taken_from_a_process_that_lives_is_said_with_its_next_batch() -> None:
    broker = Broker()
    counts = Counts(broker, POSITION)
    counts.recalled([again(1, SUSPICIOUS)])
    assert await broker.notes() == {}, "the connection is what was lost, most likely"
    await counts.ready([delivery("a", 2)], in_place=True)
    assert list(await broker.notes()) == ["alive/order@1"]


async def test_P11_what_is_recalled_again_and_again_and_ends_elsewhere_is_forgotten_here() -> None:
    counts = Counts(Broker(), POSITION)
    for first in range(1, 3 * REMEMBERED, 512):
        counts.recalled([again(number, SUSPICIOUS) for number in range(first, first + 512)])
        await counts.ready([], in_place=True)
    assert len(counts._survived) <= REMEMBERED
    assert not counts._standing
    assert not counts._unwritten


async def test_what_cannot_be_noted_goes_back_all_the_same_and_is_a_suspect_then() -> None:
    broker = Broker()
    broker.away = True
    await Counts(broker, POSITION).note_survivors([again(1, SUSPICIOUS)])
    broker.away = False
    counts, batch = Counts(broker, POSITION), [again(1, SUSPICIOUS + 1)]
    await counts.look_at(batch)
    assert counts.suspect(batch) == 0


async def test_P6_only_a_death_while_it_was_handled_alone_counts_and_each_counts_once() -> None:
    broker = Broker()
    for death in range(3):
        one, counts = again(1, SUSPICIOUS + 1 + death), Counts(broker, POSITION)
        await counts.ready([one], in_place=False)
        assert (one.failures, counts.deaths(one)) == (death, death)
        await counts.begin_alone(one)  # and it dies
    one, counts = again(1, 9), Counts(broker, POSITION)
    await counts.ready([one], in_place=False)
    await counts.begin_alone(one)
    await counts.end_alone(one)
    one = again(1, 10)
    await Counts(broker, POSITION).ready([one], in_place=False)
    assert one.failures == 3
    await counts.ended([one])
    assert await broker.notes() == {}


async def test_P6_P9_a_process_that_is_stopped_while_it_handles_an_event_alone_has_not_died() -> None:
    broker, one = Broker(), again(1, 4)
    counts = Counts(broker, POSITION)
    await counts.ready([one], in_place=True)
    await counts.begin_alone(one)
    assert (await broker.notes())["alone/order@1"].startswith("1 ")
    await counts.end_alone(one)
    assert await broker.notes() == {}


async def test_P6_deaths_and_failures_in_place_add_up_and_neither_counts_for_the_other() -> None:
    broker, one = Broker(), again(1, 4)
    counts = Counts(broker, POSITION)
    await counts.ready([one], in_place=True)
    await counts.begin_alone(one)  # and it dies
    one, counts = again(1, 5), Counts(broker, POSITION)
    await counts.ready([one], in_place=True)
    await counts.begin_alone(one)
    await counts.failed([one])
    await counts.end_alone(one)
    assert one.failures == 2
    one = again(1, 6)
    await Counts(broker, POSITION).ready([one], in_place=True)
    assert one.failures == 2


async def test_what_cannot_be_noted_beforehand_is_not_begun_alone_and_no_death() -> None:
    broker, one = Broker(), again(1, 4)
    counts = Counts(broker, POSITION)
    await counts.ready([one], in_place=True)
    broker.away = True
    with pytest.raises(BrokerUnavailable):
        await counts.begin_alone(one)
    broker.away = False
    await counts.ready([one], in_place=True)
    assert await broker.notes() == {}
