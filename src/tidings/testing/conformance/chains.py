"""Services one behind the other and side by side: what they pass on, in which order, and what they leave alone."""

from __future__ import annotations

import asyncio
from typing import Any

from tidings.delivery import Delivery
from tidings.policy import Retry
from tidings.testing._effects import event_class
from tidings.testing.conformance.policy import ONLY_WITH_A_STORE, ONLY_WITHOUT
from tidings.testing.conformance.stage import Stage


class Chains:
    """Part of the suite."""

    async def test_P14_cause_and_correlation_pass_from_an_event_to_those_it_causes(self, stage: Stage) -> None:
        followed, ended = (event_class(stage.bench.stream, name) for name in ("followed", "ended"))

        async def follow(event: Any, delivery: Delivery) -> Any:
            return followed(id=event.id, key=event.key)

        async def end(event: Any, delivery: Delivery) -> Any:
            return [ended(id=f"{event.id}-{number}", key=event.key) for number in range(2)]

        first, second = stage.service("a", also=[followed]), stage.service("b", also=[ended])
        third = stage.service("c")
        positions = [
            stage.handle(first, follow),
            stage.handle(second, end, events=[followed]),
            stage.handle(third, events=[ended]),
        ]
        async with stage.running(first, second, third):
            await stage.publish(first, ["1", "2"])
            await stage.until_applied(positions[2], ["1-0", "1-1", "2-0", "2-1"])
        for id in ("1", "2"):
            origin, middle = (stage.delivery(position, id) for position in positions[:2])
            assert origin.correlation_id == origin.event_id
            assert (middle.correlation_id, middle.causation_id) == (origin.event_id, origin.event_id)
            for number in range(2):
                last = stage.delivery(positions[2], f"{id}-{number}")
                assert (last.correlation_id, last.causation_id) == (origin.event_id, middle.event_id)
        assert len({one.event_id for one in stage.deliveries}) == 2 + 2 + 4

    @ONLY_WITH_A_STORE
    async def test_P3_P4_a_chain_through_restarts_loses_nothing_and_applies_nothing_twice(self, stage: Stage) -> None:
        stage.bench.needs("restart", "durable")
        count = stage.bench.size("events", 10_000, 300)
        followed = event_class(stage.bench.stream, "followed")

        async def follow(event: Any, delivery: Delivery) -> Any:
            return followed(id=event.id, key=event.key)

        first, second = stage.service("a", also=[followed]), stage.service("b")
        position, last = stage.handle(first, follow), stage.handle(second, events=[followed])
        client = await stage.bench.client()
        messages = [stage.message(stage.Happened, id=str(number), key=f"k{number % 16}") for number in range(count)]

        async def publish() -> None:
            for start in range(0, count, 20):
                await stage.bench.publish_until_stored(client, messages[start : start + 20])

        async with stage.running(first, second):
            publishing = asyncio.create_task(publish())
            for part in (count // 3, count // 2):
                await stage.until_seen(part)
                await stage.bench.rig.restart()
            await publishing
            await stage.until_applied(position, range(count))
            await stage.until_applied(last, range(count))
        stage.judge(position, range(count))
        stage.judge(last, range(count))

    async def test_P8_the_order_of_a_key_holds_across_retries_lanes_and_processes(self, stage: Stage) -> None:
        stage.bench.needs("ordered")
        count, keys = stage.bench.size("events", 1000, 120), 8
        unlucky = {str(number) for number in range(0, count, 11)}

        async def act(event: Any, delivery: Delivery) -> None:
            await asyncio.sleep(0.001)
            if event.id in unlucky and delivery.attempt == 1:
                unlucky.discard(event.id)
                raise RuntimeError("not yet")

        def process(worker: str) -> tuple[Any, str]:
            service = stage.service()
            retry = Retry(attempts=5, first=0.02, most=0.05)
            return service, stage.handle(service, act, order="key", concurrency=4, batch=8, retry=retry, worker=worker)

        (first, position), (second, _) = process("first"), process("second")
        publisher = stage.service("publisher")
        async with stage.running(publisher, second):
            await stage.publish(publisher, range(count), keys)
            async with stage.running(first):
                await stage.until_seen(count // 3)
            await stage.until_applied(position, range(count))
        stage.judge(position, range(count))
        stage.check_order(position)

    @ONLY_WITHOUT
    async def test_P12_a_handler_that_waits_stops_only_itself(self, stage: Stage) -> None:
        count = stage.bench.size("events", 1000, 50)
        leave = asyncio.Event()

        async def wait(event: Any, delivery: Delivery) -> None:
            await leave.wait()

        service, neighbour = stage.service(), stage.service("neighbour")
        stuck, free = stage.handle(service, wait, name="stuck"), stage.handle(service, name="free")
        other = stage.handle(neighbour)
        async with stage.running(service, neighbour):
            await stage.publish(service, range(count))
            try:
                await stage.until_applied(free, range(count))
                await stage.until_applied(other, range(count))
                assert stage.ids(stuck) == []
            finally:
                leave.set()
            await stage.until_applied(stuck, range(count))
        for position in (stuck, free, other):
            stage.judge(position, range(count))
