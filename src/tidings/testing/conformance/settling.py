"""Settling and limits: what is given back comes again, not before it should, and never more than was asked for."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from tidings.delivery import ACK, Delivery, Release, Verdict
from tidings.ports import Broker
from tidings.testing.conformance.bench import Bench
from tidings.testing.conformance.consumer import Consumer, id_of


class Settling:
    """Part of the suite."""

    async def test_what_fails_twice_comes_again_and_arrives(self, bench: Bench) -> None:
        count = bench.size("messages", 100, 30)
        subscription = bench.subscription()
        tries: Counter[str] = Counter()

        def judge(delivery: Delivery) -> Verdict:
            tries[id_of(delivery)] += 1
            return Release() if tries[id_of(delivery)] <= 2 else ACK

        consumer = await bench.consumer(subscription, judge)
        await bench.publish(consumer.client, [bench.message(str(number)) for number in range(count)])
        await bench.until_settled(subscription.position)
        await bench.nothing_more()
        bench.ledger.check(subscription.position)
        assert set(tries.values()) == {3}
        assert bench.ledger.redelivered() == 2 * count
        origins: dict[str, set[tuple[str | int, ...]]] = {}
        for delivery in consumer.taken:
            origins.setdefault(id_of(delivery), set()).add(delivery.origin)
        assert all(len(found) == 1 for found in origins.values()), "the origin of a message does not change"
        assert max(delivery.delivered for delivery in consumer.taken) > 1, "the broker does not count deliveries"

    async def test_P6_what_is_given_back_for_a_while_does_not_come_before(self, bench: Bench) -> None:
        subscription = bench.subscription()
        delays = {"a": 0.3, "b": 1.0, "c": 0.6}
        released: dict[str, float] = {}

        def judge(delivery: Delivery) -> Verdict:
            id = id_of(delivery)
            if id in delays and id not in released:
                released[id] = time.time()
                return Release(delays[id])
            return ACK

        consumer = await bench.consumer(subscription, judge)
        await bench.publish(consumer.client, [bench.message(id) for id in "abcd"])
        await bench.until_settled(subscription.position)
        ids = consumer.ids
        assert all(ids.count(id) > 1 for id in delays), "what was given back did not come again"
        for place, (id, at) in enumerate(zip(ids, consumer.at, strict=True)):
            if id in ids[:place]:  # which it may be before another came for the first time
                assert at - released[id] >= delays[id], f"{id} came {at - released[id]:.3f} s after, not {delays[id]} s"
        bench.ledger.check(subscription.position)

    async def test_P11_with_a_limit_of_one_the_second_waits_for_the_first(self, bench: Bench) -> None:
        subscription = bench.subscription(max_in_flight=1)
        consumer = await bench.consumer(subscription, lambda delivery: None)
        await bench.publish(consumer.client, [bench.message("a"), bench.message("b")])
        await bench.until(lambda: len(consumer.taken) >= 1, "the first came")
        await bench.nothing_more(0.5)
        assert consumer.ids == ["a"], "more than one was in flight"
        await consumer.settle([(consumer.taken[0], ACK)])
        await bench.until(lambda: len(consumer.taken) >= 2, "the second came")
        await consumer.settle([(consumer.taken[1], ACK)])
        bench.ledger.check(subscription.position)

    async def test_P11_never_more_in_flight_than_the_limits_say(self, bench: Bench) -> None:
        count = bench.size("messages", 1000, 60)
        subscription = bench.subscription(max_in_flight=10, max_in_flight_bytes=5000)
        client = await bench.client(subscription)
        sizes = (100, 2000, 700, 9000)
        await bench.publish(client, [bench.message(str(n), size=sizes[n % len(sizes)]) for n in range(count)])
        consumer = await bench.consumer(subscription, lambda delivery: None, client=client)
        done = 0
        while done < count:
            await bench.until_many(consumer.taken, done + 1, "more came")
            await bench.nothing_more(0.02)
            flying = consumer.taken[done:]
            assert len(flying) <= 10, f"{len(flying)} in flight"
            weight = sum(len(delivery.body) for delivery in flying)
            assert weight <= 5000 or len(flying) == 1, f"{weight} bytes in flight"
            await consumer.settle([(delivery, ACK) for delivery in flying[::2]])
            await consumer.settle([(delivery, ACK) for delivery in flying[1::2]])
            done += len(flying)
        bench.ledger.check(subscription.position)

    async def test_P9_closing_gives_back_at_once_what_was_not_settled(self, bench: Bench) -> None:
        count = bench.size("messages", 20, 20)
        subscription = bench.subscription()
        first = await bench.consumer(subscription, lambda delivery: None)
        await bench.publish(first.client, [bench.message(str(number)) for number in range(count)])
        await bench.until(lambda: len(first.taken) == count, "the first has all")
        await first.close()
        second = await bench.consumer(subscription)
        await bench.until_settled(subscription.position)
        assert sorted(second.ids) == sorted(first.ids)
        bench.ledger.check(subscription.position)

    async def test_P9_a_stopped_feed_takes_nothing_new_and_may_settle_what_it_has(self, bench: Bench) -> None:
        subscription = bench.subscription(max_in_flight=5)
        first = await bench.consumer(subscription, lambda delivery: None)
        await bench.publish(first.client, [bench.message(str(number)) for number in range(10)])
        await bench.until(lambda: len(first.taken) >= 5, "it took what it may")
        await bench.nothing_more()
        taken = len(first.taken)
        assert taken <= 5
        await first.feed.stop()
        await first.settle([(delivery, ACK) for delivery in first.taken[:3]])
        await bench.nothing_more(0.5)
        assert len(first.taken) == taken, "a stopped feed took more"
        assert not bench.ledger.unsettled
        await first.close()
        second = await bench.consumer(subscription)
        await bench.until_settled(subscription.position)
        bench.ledger.check(subscription.position)
        assert len(second.taken) == 7

    async def test_consumers_that_fail_everything_leave_it_to_the_next(self, bench: Bench) -> None:
        count, failures = bench.size("messages", 50, 10), bench.size("failures each", 100, 40)
        subscription = bench.subscription()
        client = await bench.client(subscription)
        await bench.publish(client, [bench.message(str(number)) for number in range(count)])
        for _ in range(3):
            failing = await bench.consumer(subscription, lambda delivery: Release())
            await bench.until_many(failing.taken, failures, "it failed them")
            await failing.close()
        await bench.consumer(subscription)
        await bench.until_settled(subscription.position)
        bench.ledger.check(subscription.position)

    async def test_a_consumer_closed_and_reopened_while_reading_misses_nothing(self, bench: Bench) -> None:
        count, times = bench.size("messages", 5000, 400), bench.size("times", 20, 5)
        subscription = bench.subscription(max_in_flight=50)
        client = await bench.client(subscription)
        await bench.publish(client, [bench.message(str(number)) for number in range(count)])
        for part in range(1, times + 1):
            wanted = min(count - 1, part * count // (times + 1))
            consumer = await bench.consumer(subscription, client=client if part % 2 else None, pace=0.002)
            await bench.until_many(bench.ledger.effects, wanted, "a part of it")
            await consumer.close()
        await bench.consumer(subscription)
        await bench.until_settled(subscription.position)
        bench.ledger.check(subscription.position)

    async def test_consumers_that_open_and_close_at_once_break_nothing(self, bench: Bench) -> None:
        count, rounds = bench.size("messages", 50, 50), bench.size("rounds", 10, 3)
        subscription = bench.subscription()

        async def open_and_close(client: Broker) -> None:
            consumer: Consumer = await bench.consumer(subscription, client=client)
            await consumer.close()

        for number in range(rounds):
            client = await bench.client(subscription)
            async with asyncio.TaskGroup() as group:
                for _ in range(10):
                    group.create_task(open_and_close(client))
            await bench.publish(client, [bench.message(f"{number}-{one}") for one in range(count)])
            last = await bench.consumer(subscription, client=client)
            await bench.until_settled(subscription.position)
            await last.close()
        bench.ledger.check(subscription.position)
