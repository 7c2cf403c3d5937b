"""The policy, over real services: what succeeds, what is tried again and when, what dies, and what is given back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tidings import dead_letters
from tidings.delivery import Delivery
from tidings.errors import Dead
from tidings.policy import Retry
from tidings.testing.conformance.stage import Stage

ONLY_WITH_A_STORE = pytest.mark.parametrize("store", ["sqlite"], indirect=True)
ONLY_WITHOUT = pytest.mark.parametrize("store", ["none"], indirect=True)


class Policy:
    """Part of the suite."""

    async def test_P3_success_settles_once_and_for_all(self, stage: Stage) -> None:
        count = stage.bench.size("events", 5000, 100)
        service = stage.service()
        position = stage.handle(service)
        async with stage.running(service):
            await stage.publish(service, range(count))
            await stage.until_applied(position, range(count))
            await stage.quiet(service)
        again = stage.service()
        stage.handle(again)
        async with stage.running(again):
            await stage.quiet(again)
            await stage.pause()
        stage.judge(position, range(count))
        assert stage.outcomes.of[position] == {"done": count}, "what was settled came again"

    @ONLY_WITH_A_STORE
    @pytest.mark.parametrize("order", ["key", None])
    async def test_P4_an_id_published_again_is_applied_once(self, stage: Stage, order: str | None) -> None:
        """As whoever does not learn that it was stored publishes it again: at once, and long after it was applied."""
        ids = [str(number) for number in range(stage.bench.size("events", 1000, 40))]
        messages = [stage.message(stage.Happened, id=id, key=f"k{int(id) % 7}") for id in ids]
        service = stage.service()
        position = stage.handle(service, order=order)
        async with stage.running(service):
            first, second = await stage.bench.client(), await stage.bench.client()
            await stage.bench.publish(first, messages)
            await stage.bench.publish(second, messages)
            await stage.until_applied(position, ids)
            await stage.bench.publish(first, messages)
            await stage.bench.publish(second, messages[::2])
            await stage.quiet(service)
        stage.judge(position, ids)
        stage.check_order(position)

    @pytest.mark.parametrize("order", ["key", None])
    async def test_P6_a_failure_comes_again_after_its_delay_and_not_before(
        self, stage: Stage, order: str | None
    ) -> None:
        failed: list[float] = []

        async def act(event: Any, delivery: Delivery) -> None:
            if event.id == "bad" and delivery.attempt <= 2:
                failed.append(stage.seen[-1].at)
                raise RuntimeError("not yet")

        service = stage.service()
        position = stage.handle(service, act, order=order, retry=Retry(attempts=5, first=0.4, most=5))
        async with stage.running(service):
            await stage.publish(service, ["bad", "good", "other"], keys=3)
            await stage.until_applied(position, ["bad", "good", "other"])
            await stage.quiet(service)
        assert stage.attempts(position, "bad") == [1, 2, 3]
        for well in ("good", "other"):  # twice, where it shared a transaction with the one that failed behind it
            assert set(stage.attempts(position, well)) == {1}
        second, third = [one.at for one in stage.seen if one.id == "bad"][1:]
        assert second - failed[0] >= 0.4, f"it came again after {second - failed[0]:.3f} s, not 0.4 s"
        assert third - failed[1] >= 0.8, f"it came again after {third - failed[1]:.3f} s, not 0.8 s"
        stage.judge(position, ["bad", "good", "other"])

    @ONLY_WITHOUT
    @pytest.mark.parametrize("order", ["key", None])
    async def test_P6_failures_are_counted_across_processes_and_restarts(self, stage: Stage, order: str | None) -> None:
        async def act(event: Any, delivery: Delivery) -> None:
            raise RuntimeError("never")

        reader = await stage.bench.client()
        position = ""
        for process in range(3):
            service = stage.service()
            position = stage.handle(
                service, act, order=order, worker=f"process {process}", retry=Retry(attempts=4, first=0.3, most=0.3)
            )
            async with stage.running(service):
                if process == 0:
                    await stage.publish(service, ["1"])
                await stage.until_seen(process + 1)
            if process == 1 and stage.bench.features.restart and stage.bench.features.durable:
                await stage.bench.rig.restart()
        service = stage.service()
        stage.handle(service, act, order=order, worker="the last", retry=Retry(attempts=4, first=0.3, most=0.3))
        async with stage.running(service):
            (letter,) = await stage.letters(position, 1, reader)
            await stage.quiet(service)
        assert stage.attempts(position, "1") == [1, 2, 3, 4]
        assert len({one.worker for one in stage.seen}) >= 3
        assert letter.failures == 4

    async def test_P7_what_says_that_it_cannot_be_handled_dies_at_once_and_whole(self, stage: Stage) -> None:
        async def act(event: Any, delivery: Delivery) -> None:
            if event.id == "bad":
                raise Dead("no such customer ✗")

        service = stage.service(content="binary", version="1.2.3")
        position = stage.handle(service, act)
        reader = await stage.bench.client()
        async with stage.running(service):
            await stage.publish(service, ["bad", "good"])
            await stage.until_applied(position, ["good"])
            (letter,) = await stage.letters(position, 1, reader)
            await stage.quiet(service)
        assert stage.attempts(position, "bad") == [1]
        assert stage.ids(position) == ["good"]
        died = stage.delivery(position, "bad")
        assert bytes(letter.body) == bytes(died.body), "the bytes are not the original ones"
        assert letter.headers == dict(died.headers), "the headers are not the original ones"
        assert (letter.code, letter.failures, letter.key) == ("rejected", 1, "k0")
        assert (letter.event_id, letter.type) == (died.event_id, stage.bench.type)
        assert letter.service_version == "1.2.3"
        assert "no such customer ✗" in letter.reason
        assert "in act" in letter.traceback

    async def test_P7_the_last_attempt_dies_with_its_reason(self, stage: Stage) -> None:
        async def act(event: Any, delivery: Delivery) -> None:
            raise ValueError(f"attempt {delivery.attempt} failed")

        service = stage.service()
        position = stage.handle(service, act, retry=Retry(attempts=3, first=0.05, most=0.1))
        reader = await stage.bench.client()
        async with stage.running(service):
            await stage.publish(service, ["1"])
            (letter,) = await stage.letters(position, 1, reader)
            await stage.quiet(service)
            await stage.pause()
        assert stage.attempts(position, "1") == [1, 2, 3]
        assert stage.ids(position) == []
        assert (letter.code, letter.failures) == ("failed", 3)
        assert "attempt 3 failed" in letter.reason
        assert "ValueError" in letter.traceback
        assert bytes(letter.body) == bytes(stage.deliveries[0].body)

    async def test_P7_a_redriven_letter_reaches_only_the_handler_that_failed(self, stage: Stage) -> None:
        broken = True

        async def act(event: Any, delivery: Delivery) -> None:
            if broken:
                raise Dead("not yet")

        service, stranger = stage.service(), stage.service("stranger")
        failing, other = stage.handle(service, act, name="failing"), stage.handle(service, name="other")
        elsewhere = stage.handle(stranger)
        reader = await stage.bench.client()
        async with stage.running(service, stranger):
            await stage.publish(service, ["1"])
            (letter,) = await stage.letters(failing, 1, reader)
            broken = False
            await dead_letters.redrive(reader, letter)
            await stage.until_applied(failing, ["1"])
            await stage.until_applied(other, ["1"])
            await stage.until_applied(elsewhere, ["1"])
            await stage.quiet(service)
            await stage.pause()
        assert [stage.attempts(one, "1") for one in (failing, other, elsewhere)] == [[1, 1], [1], [1]]
        for position in (failing, other, elsewhere):
            stage.judge(position, ["1"])
        (redriven,) = await stage.letters(failing, 1, reader)
        assert (redriven.state, redriven.redriven) == ("redriven", 1)

    async def test_P7_a_letter_of_a_list_is_redriven_with_its_whole_body(self, stage: Stage) -> None:
        broken = True

        async def act(event: Any, delivery: Delivery) -> None:
            if broken:
                raise Dead("not yet")

        service = stage.service()
        position = stage.handle(service, act)
        reader = await stage.bench.client()
        async with stage.running(service):
            await stage.publish(service, ["1"])
            await stage.letters(position, 1, reader)
            (listed,) = await dead_letters.list_letters(reader, where=lambda one: one.position == position)
            assert (listed.whole, listed.body) == (False, b""), "a list is to keep no bodies"
            broken = False
            await dead_letters.redrive(reader, listed)
            await stage.until_applied(position, ["1"])
            await stage.quiet(service)
        stage.judge(position, ["1"])
        first, again = stage.deliveries
        assert bytes(again.body) == bytes(first.body)
        (letter,) = await stage.letters(position, 1, reader)
        assert (letter.state, letter.redriven, letter.copies) == ("redriven", 1, 1)

    @ONLY_WITH_A_STORE
    async def test_P7_a_letter_redriven_twice_is_applied_once(self, stage: Stage) -> None:
        broken = True

        async def act(event: Any, delivery: Delivery) -> None:
            if broken:
                raise Dead("not yet")

        service = stage.service()
        position = stage.handle(service, act)
        reader = await stage.bench.client()
        async with stage.running(service):
            await stage.publish(service, ["1"])
            (letter,) = await stage.letters(position, 1, reader)
            broken = False
            await dead_letters.redrive(reader, letter)
            await stage.until_applied(position, ["1"])
            (letter,) = await stage.letters(position, 1, reader)
            await dead_letters.redrive(reader, letter)
            await stage.quiet(service)
            await stage.pause()
        stage.judge(position, ["1"])
        (letter,) = await stage.letters(position, 1, reader)
        assert letter.redriven == 2

    async def test_P9_a_stop_finishes_what_runs_and_gives_back_the_rest(self, stage: Stage) -> None:
        count = stage.bench.size("events", 1000, 40)
        entered, leave = asyncio.Event(), asyncio.Event()

        async def slow(event: Any, delivery: Delivery) -> None:
            entered.set()
            await leave.wait()

        first = stage.service()
        position = stage.handle(first, slow, worker="first", batch=5)
        stopped = stage.running(first)
        await stopped.__aenter__()
        await stage.publish(first, range(count))
        await entered.wait()
        stopping = asyncio.create_task(stopped.__aexit__(None, None, None))
        try:
            await stage.pause(0.1)
            assert not stopping.done(), "it did not wait for the handler that runs"
        finally:
            leave.set()
            await stopping
        done = len(stage.seen)
        assert 0 < done < count
        second = stage.service()
        stage.handle(second, worker="second")
        async with stage.running(second):
            await stage.until_applied(position, range(count))
            await stage.quiet(second)
        stage.judge(position, range(count))
        assert len(stage.seen) == count, "what had been handled came again"
        assert not await stage.letters(position, 0, await stage.bench.client())
