"""Settling: copies first, then the broker, then the observers; nothing is told twice and nothing is passed over."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from tests.unit.parts import RecordingBroker, Watcher, delivery
from tidings import settling
from tidings.copies import plain_text
from tidings.delivery import (
    ACK,
    DeadLettered,
    Decision,
    Delivery,
    Done,
    Duplicate,
    Header,
    Message,
    Release,
    Retried,
    Route,
    Unsettled,
)
from tidings.errors import BrokerUnavailable, EventTooLarge
from tidings.order import Holds
from tidings.settling import COPY_PAUSE, Settler

AGAIN = Retried(after=2.0, reason="ValueError: no stock", error=ValueError("no stock"))
BUSY = Retried(after=0.25, reason="busy", counted=False)
DEAD = DeadLettered(reason="failed 3 times", error=ValueError("no stock"))


class Setup:
    def __init__(self, *watchers: Watcher) -> None:
        self.broker = RecordingBroker()
        self.watcher = Watcher()
        self.settler = Settler("stock.step", self.broker, observers=[*watchers, self.watcher])

    async def settle(self, *decisions: Decision, holds: Holds | None = None) -> list[Delivery]:
        ended = [(delivery("a", number, read=True), decision) for number, decision in enumerate(decisions, 1)]
        deliveries = [one for one, _ in ended]
        await self.settler.settle(list(ended), holds, time.monotonic())
        return deliveries


@pytest.mark.parametrize("decision", [Done(), Done(skipped=True), Duplicate(), Duplicate(of="other")])
async def test_P2_what_took_effect_or_is_nobodys_business_is_acknowledged(decision: Decision) -> None:
    setup = Setup()
    await setup.settle(decision)
    assert setup.broker.verdicts() == [("a1", ACK)]
    assert setup.watcher.outcomes == [("a1", decision)]


@pytest.mark.parametrize("ordered", [False, True])
async def test_P2_events_whose_copies_we_fail_to_make_come_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ordered: bool
) -> None:
    def breaks(*arguments: object) -> None:
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(settling, "dead_letter", breaks)
    setup = Setup()
    holds = Holds() if ordered else None
    _, dead = await setup.settle(Done(), DEAD, holds=holds)
    assert ("a1", ACK) in setup.broker.verdicts(), "the others are not kept up by it"
    if holds is None:
        assert ("a2", Release(COPY_PAUSE)) in setup.broker.verdicts()
    else:
        assert holds.clear() == [dead]
    (_, told) = setup.watcher.outcomes[1]
    assert isinstance(told, Unsettled)
    assert "a mistake of ours" in told.reason
    assert "they come again" in caplog.text


async def test_P2_a_wave_is_told_in_one_round_trip_and_its_copies_in_another() -> None:
    setup = Setup()
    await setup.settle(Done(), Duplicate(), BUSY, AGAIN, DEAD)
    assert setup.broker.waves == [3, 2], "what needs no copy first"
    assert dict(setup.broker.verdicts()) == {"a1": ACK, "a2": ACK, "a3": Release(0.25), "a4": ACK, "a5": ACK}


async def test_what_is_given_back_alive_is_not_what_kills_its_process() -> None:
    setup = Setup()
    often = delivery("a", 1, read=True)
    often.delivered = 9
    assert setup.settler.counts.suspect([often]) == 0
    await setup.settler.settle([(delivery("b", 2, read=True), Done()), (often, BUSY)], None, time.monotonic())
    often.delivered = 10
    assert setup.settler.counts.suspect([often]) is None


async def test_P2_of_a_wave_of_acknowledgements_those_are_unsettled_that_the_broker_did_not_confirm() -> None:
    setup = Setup()
    setup.broker.refuse_settle = lambda told: BrokerUnavailable("away") if told[0].event_id == "a2" else None
    await setup.settle(Done(), Done(), Duplicate())
    assert [kind.kind for _, kind in setup.watcher.outcomes] == ["done", "unsettled", "duplicate"]


async def test_P3_a_failure_is_acknowledged_once_its_copy_is_stored() -> None:
    setup = Setup()
    await setup.settle(AGAIN)
    (copy,) = setup.broker.published
    assert copy.route is Route.RETRY
    assert copy.headers[Header.FAILURES] == "1"
    assert setup.broker.verdicts() == [("a1", ACK)]


@pytest.mark.parametrize("decision", [AGAIN, DEAD])
async def test_P3_what_could_not_be_copied_is_kept_away_for_a_while_and_reported(decision: Decision) -> None:
    setup = Setup()
    setup.broker.refuse_publish = lambda message: BrokerUnavailable("no leader")
    await setup.settle(decision, Done())
    assert dict(setup.broker.verdicts()) == {"a1": Release(COPY_PAUSE), "a2": ACK}
    outcome = dict(setup.watcher.outcomes)["a1"]
    assert isinstance(outcome, Unsettled)
    assert outcome.wanted is decision
    assert "no leader" in outcome.reason


async def test_P3_a_letter_of_which_one_part_was_not_stored_is_not_acknowledged() -> None:
    setup = Setup()
    setup.broker.features = RecordingBroker(max_bytes=60).features
    setup.broker.refuse_publish = lambda message: (
        BrokerUnavailable("no leader") if message.headers[Header.PART].startswith("2/") else None
    )
    await setup.settle(DEAD)
    assert len(setup.broker.published) > 1
    assert setup.broker.verdicts() == [("a1", Release(COPY_PAUSE))]


async def test_P7_a_copy_too_large_for_the_retry_route_becomes_a_letter_that_tells_why_it_failed() -> None:
    setup = Setup()
    setup.broker.refuse_publish = lambda message: EventTooLarge("2 MB") if message.route is Route.RETRY else None
    await setup.settle(AGAIN, Done())
    (letter,) = setup.broker.published
    assert letter.route is Route.DEAD
    assert letter.headers[Header.ERROR] == "copy-too-large"
    assert letter.headers[Header.FAILURES] == "1"
    reason = plain_text(letter.headers[Header.REASON])
    assert "no stock" in reason
    assert "too large for the retry route" in reason
    assert "ValueError: no stock" in plain_text(letter.headers[Header.TRACEBACK])
    assert dict(setup.broker.verdicts()) == {"a1": ACK, "a2": ACK}
    assert setup.watcher.outcomes[0][1].kind == "dead"


async def test_a_letter_too_large_for_the_dead_letters_is_not_tried_for_ever_in_one_settle() -> None:
    setup, tried = Setup(), list[Route]()

    def refuse(message: Message) -> Exception:
        tried.append(message.route)
        return EventTooLarge("2 MB")

    setup.broker.refuse_publish = refuse
    await setup.settle(AGAIN, DEAD)
    assert Counter(tried) == {Route.RETRY: 1, Route.DEAD: 2}
    assert dict(setup.broker.verdicts()) == {"a1": Release(COPY_PAUSE), "a2": Release(COPY_PAUSE)}


async def test_P2_a_settle_that_failed_is_reported_for_that_delivery_alone() -> None:
    setup = Setup()
    setup.broker.refuse_settle = lambda verdict: BrokerUnavailable("no answer") if verdict[0].event_id == "a2" else None
    await setup.settle(Done(), Done(), Done())
    assert [outcome.kind for _, outcome in setup.watcher.outcomes] == ["done", "unsettled", "done"]
    unsettled = setup.watcher.outcomes[1][1]
    assert unsettled == Unsettled(Done(), "BrokerUnavailable: no answer")


async def test_what_the_broker_was_not_told_in_time_comes_again_and_has_killed_nobody() -> None:
    setup = Setup()
    one = delivery("a", 1, read=True)
    one.delivered = 5
    setup.broker.refuse_settle = lambda _: BrokerUnavailable("its channel has ended")
    await setup.settler.settle([(one, Done())], None, time.monotonic())
    one.delivered += 1
    assert setup.settler.counts.suspect([one]) is None


@pytest.mark.parametrize("error", [RuntimeError("an adapter's mistake"), asyncio.CancelledError()])
async def test_P2_a_broker_that_raises_instead_of_answering_leaves_everything_reported(error: BaseException) -> None:
    setup = Setup()
    setup.broker.raises = error
    await setup.settle(Done(), AGAIN, DEAD)
    assert [outcome.kind for _, outcome in setup.watcher.outcomes] == ["unsettled"] * 3


async def test_a_settle_that_is_cancelled_from_outside_is_cancelled() -> None:
    setup = Setup()
    setup.broker.gate = asyncio.Event()
    task = asyncio.create_task(setup.settle(Done()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_observer_that_raises_changes_nothing_and_the_next_one_is_told() -> None:
    setup = Setup(Watcher(raises=ValueError("observer")))
    await setup.settle(Done())
    assert setup.broker.verdicts() == [("a1", ACK)]
    assert setup.watcher.outcomes == [("a1", Done())]


# ── order ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_P8_in_order_a_failed_event_is_held_and_neither_copied_nor_settled() -> None:
    setup, holds = Setup(), Holds()
    now = asyncio.get_running_loop().time()
    (one,) = await setup.settle(AGAIN, holds=holds)
    assert [message.route for message in setup.broker.published] == [Route.NOTE]
    assert setup.broker.settled == []
    assert holds.blocks("a")
    due = holds.next_due()
    assert due is not None
    assert now + 2.0 <= due <= now + 3.0
    assert setup.watcher.outcomes == [("a1", AGAIN)]
    assert one.failures == 1
    assert abs(one.first_failed - time.time()) < 60


async def test_P6_observers_are_told_the_attempt_that_failed_held_or_not() -> None:
    for holds in (None, Holds()):
        setup = Setup()
        await setup.settle(AGAIN, holds=holds)
        assert setup.watcher.attempts == [1]


async def test_P6_in_order_what_is_no_failure_is_held_and_not_counted() -> None:
    setup, holds = Setup(), Holds()
    (one,) = await setup.settle(BUSY, holds=holds)
    assert holds.blocks("a")
    assert (one.failures, one.first_failed) == (0, 0.0)


async def test_P8_in_order_a_letter_that_could_not_be_stored_holds_its_key() -> None:
    setup, holds = Setup(), Holds()
    setup.broker.refuse_publish = lambda message: BrokerUnavailable("no leader")
    one, two = await setup.settle(DEAD, DEAD, holds=holds)
    assert setup.broker.settled == []
    assert list(holds.release(asyncio.get_running_loop().time() + COPY_PAUSE)) == [one, two]
    assert (one.failures, two.failures) == (0, 0)
    assert [outcome.kind for _, outcome in setup.watcher.outcomes] == ["unsettled", "unsettled"]


async def test_in_order_an_event_without_a_key_goes_its_own_way() -> None:
    setup, holds = Setup(), Holds()
    one = delivery()
    await setup.settler.settle([(one, AGAIN)], holds, 0.0)
    assert len(holds) == 0
    assert setup.broker.published[0].route is Route.RETRY
