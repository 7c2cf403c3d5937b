"""The server goes away and comes back: clients heal by themselves, and nothing that was accepted is lost."""

from __future__ import annotations

import asyncio

from tidings.testing.conformance.bench import Bench


class Outages:
    """Part of the suite."""

    async def test_P1_P10_restarts_under_load_lose_nothing(self, bench: Bench) -> None:
        bench.needs("restart", "durable")
        count, workers = bench.size("messages", 10_000, 600), 10
        subscription = bench.subscription(max_in_flight=100)
        publisher = await bench.client(subscription)
        consumer, _ = [await bench.consumer(subscription) for _ in range(2)]

        async def publish(worker: int) -> None:
            for number in range(worker, count, workers):
                await bench.publish_until_stored(publisher, [bench.message(str(number), key=f"k{number % 16}")])

        async with asyncio.TaskGroup() as group:
            for worker in range(workers):
                group.create_task(publish(worker))
            for part in (count // 3, count // 2):
                await bench.until_many(bench.ledger.published, part, "a part")
                await bench.rig.restart()
        assert len(bench.ledger.published) == count
        await bench.until_over(consumer)
        bench.ledger.check(subscription.position, faults=True)

    async def test_P10_trouble_is_told_while_it_lasts_and_ends_by_itself(self, bench: Bench) -> None:
        bench.needs("restart", "durable")
        subscription = bench.subscription()
        consumer = await bench.consumer(subscription)
        await bench.publish(consumer.client, [bench.message("before")])
        # Long enough that it is still away when its trouble was told and a publish was refused, also on a slow machine.
        away = asyncio.create_task(bench.rig.restart(away=6.0))
        await bench.until(lambda: consumer.client.trouble != "", "trouble is told")
        (error,) = await bench.try_publish(consumer.client, [bench.message("during")], timeout=0.5)
        assert error is not None, "published while the server was away"
        await away
        await bench.until(lambda: consumer.client.trouble == "", "trouble ends")
        await bench.publish_until_stored(consumer.client, [bench.message("during"), bench.message("after")])
        await bench.until_over(consumer)
        bench.ledger.check(subscription.position, faults=True)

    async def test_P10_an_ordered_position_keeps_its_order_through_a_restart(self, bench: Bench) -> None:
        bench.needs("restart", "durable", "ordered")
        count = bench.size("messages", 2000, 200)
        subscription = bench.subscription(ordered=True, max_in_flight=50)
        publisher = await bench.client(subscription)
        await bench.publish(publisher, [bench.message(str(n), key=f"k{n % 4}") for n in range(count)])
        # Side by side, the quick one would overtake the slow one.
        consumer, _ = [await bench.consumer(subscription, pace=pace) for pace in (0.02, 0.005)]
        await bench.until(lambda: len(bench.ledger.effects) >= count // 3, "a third")
        await bench.rig.restart()
        await bench.until_over(consumer)
        bench.ledger.check(subscription.position, faults=True)
        for key, ids in bench.ledger.keys(subscription.position).items():
            assert ids == sorted(ids, key=int), f"{key} is out of order: {ids}"
