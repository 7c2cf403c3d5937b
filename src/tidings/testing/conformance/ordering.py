"""Order: one process at a time takes the events of a key, and whoever comes after it goes on in order."""

from __future__ import annotations

import asyncio

from tidings.delivery import ACK, Delivery, Route, Verdict
from tidings.testing.conformance.bench import Bench
from tidings.testing.conformance.consumer import Consumer, Judge


class Ordering:
    """Part of the suite."""

    async def test_P8_the_order_of_keys_holds_while_consumers_come_and_go(self, bench: Bench) -> None:
        bench.needs("ordered")
        count, many = bench.size("messages", 1000, 300), bench.size("consumers", 10, 5)
        keys = 16
        subscription = bench.subscription(ordered=True, max_in_flight=40)
        client = await bench.client(subscription)
        consumers = [await bench.consumer(subscription, pace=0.005) for _ in range(many)]

        async def publish() -> None:
            for start in range(0, count, 20):
                await bench.publish(
                    client, [bench.message(str(n), key=f"k{n % keys}") for n in range(start, min(count, start + 20))]
                )

        publishing = asyncio.create_task(publish())
        left = list(consumers)
        for part in range(1, many):
            await bench.until_many(bench.ledger.effects, part * count // many, "a part")
            active = max(left, key=lambda consumer: consumer.at[-1] if consumer.at else 0.0)
            await active.close()
            left.remove(active)
        await publishing
        await bench.until_settled(subscription.position)
        bench.ledger.check(subscription.position)
        found = bench.ledger.keys(subscription.position)
        assert len(found) == keys
        for key, ids in found.items():
            assert ids == sorted(ids, key=int), f"{key} is out of order: {ids}"
        self._check_one_at_a_time(bench, consumers)

    def _check_one_at_a_time(self, bench: Bench, consumers: list[Consumer]) -> None:
        """From when a consumer took an event until it took effect there, no other took an event of that key."""
        taken = [
            (one.headers.get("x-key"), at, consumer.name)
            for consumer in consumers
            for one, at in zip(consumer.taken, consumer.at, strict=True)
        ]
        came = {
            (consumer.name, id): at for consumer in consumers for id, at in zip(consumer.ids, consumer.at, strict=True)
        }
        for effect in bench.ledger.effects:
            began = came[effect.worker, effect.id]
            others = [name for key, at, name in taken if key == effect.key and began < at < effect.at]
            assert set(others) <= {effect.worker}, f"{effect.key} was with {effect.worker} and others at the same time"

    async def test_P8_whoever_begins_to_take_says_so_before_its_first_delivery(self, bench: Bench) -> None:
        """What its predecessor left in notes is asked for anew whenever that number has changed."""
        bench.needs("ordered")
        subscription = bench.subscription(ordered=True)
        began: list[tuple[str, int]] = []

        def watch(name: str) -> Judge:
            def judge(delivery: Delivery) -> Verdict:
                began.append((name, consumers[name].feed.tenure))
                return ACK

            return judge

        consumers: dict[str, Consumer] = {}
        for name in ("first", "second"):
            consumers[name] = await bench.consumer(subscription, watch(name))
        client = consumers["first"].client
        await bench.publish(client, [bench.message("1", key="k")])
        await bench.until_settled(subscription.position)
        ((active, tenure),) = began
        (standby,) = set(consumers) - {active}
        assert tenure >= 1, "it took without having begun"
        before = consumers[standby].feed.tenure
        await consumers[active].close()
        await bench.publish(consumers[standby].client, [bench.message("2", key="k")])
        await bench.until_settled(subscription.position)
        assert began[1][0] == standby
        assert began[1][1] > before, "a process took over and did not say so"

    async def test_P8_a_standby_takes_over_in_order_what_the_active_one_had(self, bench: Bench) -> None:
        bench.needs("ordered")
        count = bench.size("messages", 100, 20)
        subscription = bench.subscription(ordered=True)
        first = await bench.consumer(subscription, lambda delivery: None)
        await bench.publish(first.client, [bench.message(str(number), key="k") for number in range(count)])
        await bench.until(lambda: len(first.taken) == count, "the first has all")
        second = await bench.consumer(subscription)
        await bench.publish(first.client, [bench.message(str(number), key="k") for number in range(count, 2 * count)])
        await bench.nothing_more(1.5)
        assert second.taken == [], "a standby took something of a key that another process is at work on"
        await first.close()
        await bench.until_settled(subscription.position)
        assert second.ids == [str(number) for number in range(2 * count)]
        bench.ledger.check(subscription.position)

    async def test_P8_copies_keep_their_order_when_the_process_that_had_some_is_lost(self, bench: Bench) -> None:
        """Those of a replay, or redriven letters: another process begins with what it had, and goes on in order."""
        bench.needs("ordered")
        network, count = bench.network, 10
        subscription = bench.subscription(ordered=True, max_in_flight=1000)
        far = await bench.client(subscription, make=network.far_broker)
        near = await bench.client(subscription)
        copies = [
            bench.copy(bench.message(str(number), key="k"), Route.RETRY, subscription.position)
            for number in range(2 * count)
        ]
        first = await bench.consumer(subscription, lambda delivery: None, client=far)
        await bench.publish(near, copies[:count])
        await bench.until(lambda: len(first.taken) == count, "the first has half of them")
        await network.lose()
        try:
            second = await bench.consumer(subscription, client=near)
            await bench.publish(near, copies[count:])
            await bench.until_settled(subscription.position)
            assert second.ids == [str(number) for number in range(2 * count)]
        finally:
            await network.mend()
        bench.ledger.check(subscription.position)
