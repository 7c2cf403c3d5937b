"""Positions: where they begin, what they take, that they last, and what may not be done to them."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from tidings.delivery import ACK, Route
from tidings.errors import ConfigurationError
from tidings.ports import Backlog, Plan
from tidings.ports import Positions as OutsideLook
from tidings.testing.conformance.bench import Bench


class Positions:
    """Part of the suite."""

    async def test_a_new_position_reads_the_history_or_only_what_follows(self, bench: Bench) -> None:
        bench.needs("history")
        publisher = await bench.client()
        await bench.publish(publisher, [bench.message("a"), bench.message("b")])
        everything = bench.subscription("everything", start="all")
        fresh = bench.subscription("fresh", start="new")
        client = await bench.client(everything, fresh)
        await bench.publish(publisher, [bench.message("c"), bench.message("d")])
        await bench.consumer(everything, client=client)
        await bench.consumer(fresh, client=client)
        await bench.until_settled(everything.position, list("abcd"))
        await bench.until_settled(fresh.position, list("cd"))
        await bench.nothing_more()
        bench.ledger.check(everything.position, "abcd")
        bench.ledger.check(fresh.position, "cd")

    async def test_a_position_that_is_to_begin_anew_misses_nothing_after_its_start(self, bench: Bench) -> None:
        subscription = bench.subscription(start="new")
        client = await bench.client(subscription)
        await bench.publish(client, [bench.message("a")])
        again = await bench.client(subscription)
        await bench.consumer(subscription, client=again)
        await bench.until_settled(subscription.position)
        bench.ledger.check(subscription.position)

    async def test_a_new_position_may_begin_at_a_moment_and_then_goes_on_where_it_is(self, bench: Bench) -> None:
        bench.needs("history")
        publisher = await bench.client()
        await bench.publish(publisher, [bench.message("a"), bench.message("b")])
        await asyncio.sleep(0.05)
        since = datetime.now(UTC)
        await asyncio.sleep(0.05)
        await bench.publish(publisher, [bench.message("c")])
        later = bench.subscription("later", since=since)
        await bench.consumer(later)
        await bench.publish(publisher, [bench.message("d")])
        await bench.until_settled(later.position, list("cd"))
        again = bench.subscription("later", since=since - timedelta(days=1))
        await bench.consumer(again)
        await bench.nothing_more()
        bench.ledger.check(later.position, "cd")

    async def test_a_log_that_is_read_says_when_its_messages_were_stored(self, bench: Bench) -> None:
        bench.needs("history")
        client = await bench.client()
        before = time.time()
        await bench.publish(client, [bench.message(str(number)) for number in range(5)])
        after = time.time()
        stored = [one.stored async for one in client.read(Route.EVENT, bench.stream)]
        assert len(stored) == 5
        assert stored == sorted(stored)
        assert before - 5 <= stored[0] <= stored[-1] <= after + 5, "it is to be the time of day"

    async def test_positions_can_be_asked_for_and_their_copies_counted_from_outside(self, bench: Bench) -> None:
        bench.needs("positions")
        subscription, other = bench.subscription("one"), bench.subscription("other")
        client = await bench.client(subscription, other)
        outside = await bench.client(plan=Plan(service="outside"))
        assert isinstance(outside, OutsideLook), "it claims that it can be asked"
        assert await outside.positions("nobody") == {}
        found = await outside.positions(bench.name)
        assert {name: sorted(types) for name, types in found.items()} == {
            subscription.position: [bench.type],
            other.position: [bench.type],
        }
        waits = time.time() + 3600
        copies = [
            bench.copy(
                bench.message(str(number)), Route.RETRY, subscription.position, due=waits if number == 0 else None
            )
            for number in range(4)
        ]
        await bench.publish(client, copies)
        await bench.until_equal(lambda: outside.copies(subscription.position), 4)
        assert await outside.copies(other.position) == 0
        await bench.consumer(subscription, client=client)
        await bench.until_equal(lambda: outside.copies(subscription.position), 1)

    async def test_two_positions_of_one_stream_each_get_everything(self, bench: Bench) -> None:
        count = bench.size("messages", 50, 50)
        one, two = bench.subscription("one"), bench.subscription("two")
        client = await bench.client(one, two)
        await bench.consumer(one)
        await bench.publish(client, [bench.message(str(number)) for number in range(count)])
        await bench.consumer(two)
        for position in (one.position, two.position):
            await bench.until_settled(position)
            bench.ledger.check(position)

    async def test_P13_a_position_gets_the_types_it_asked_for_and_no_others(self, bench: Bench) -> None:
        wanted = (f"{bench.stream}.placed", f"{bench.stream}.placed.again")
        subscription = bench.subscription(types=wanted)
        client = await bench.client(subscription)
        types = [*wanted, f"{bench.stream}.placed.never", f"{bench.stream}.closed", f"{bench.stream}.place"]
        messages = [
            bench.message(f"{place}-{number}", type=kind, key=key)
            for place, kind in enumerate(types)
            for number, key in enumerate((None, "k1", "a.b > *", "é"))
        ]
        await bench.publish(client, messages)
        await bench.consumer(subscription, client=client)
        ids = [message.body.decode() for message in messages if message.type in wanted]
        await bench.until_settled(subscription.position, ids)
        await bench.nothing_more()
        bench.ledger.check(subscription.position, ids)

    async def test_a_position_goes_on_where_it_was(self, bench: Bench) -> None:
        subscription = bench.subscription()
        for start in range(0, 30, 10):
            client = await bench.client(subscription)
            consumer = await bench.consumer(subscription, client=client)
            ids = [str(number) for number in range(start, start + 10)]
            await bench.publish(client, [bench.message(id) for id in ids])
            await bench.until_settled(subscription.position)
            assert sorted(consumer.ids) == sorted(ids)
            await consumer.close()
            await client.close()
        bench.ledger.check(subscription.position)

    async def test_many_may_declare_the_same_at_once(self, bench: Bench) -> None:
        positions = [bench.subscription(f"handler-{number}", ordered=number == 0) for number in range(3)]
        clients = [await bench.rig.broker() for _ in range(8)]
        try:
            async with bench.in_time("all are open"):
                drifts = await asyncio.gather(*(client.open(bench.plan(*positions)) for client in clients))
            assert not any(drifts), f"what nobody changed is said to differ: {drifts}"
            assert not await clients[0].open(bench.plan(*positions))
        finally:
            for client in clients:
                await client.close()

    async def test_a_renamed_handler_does_not_start_over(self, bench: Bench) -> None:
        bench.needs("history")
        old, new, other = bench.subscription("old"), bench.subscription("new"), bench.subscription("other")
        other = msgspec.structs.replace(other, types=(f"{bench.stream}.else",))
        await bench.client(old, other)
        renamed = await bench.rig.broker()
        try:
            with pytest.raises(ConfigurationError, match=re.escape(old.position)):
                await renamed.open(bench.plan(new, other))
        finally:
            await renamed.close()
        fresh = msgspec.structs.replace(new, types=(f"{bench.stream}.fresh",))
        await bench.client(other, fresh)  # a handler that is gone, and a new one for other events: no rename

    async def test_the_backlog_is_told(self, bench: Bench) -> None:
        subscription = bench.subscription(max_in_flight=2)
        client = await bench.client(subscription)
        await bench.publish(client, [bench.message(id) for id in "abcde"])
        consumer = await bench.consumer(subscription, lambda delivery: None, client=client)
        await bench.until(lambda: len(consumer.taken) == 2, "two came")
        await bench.until_equal(consumer.feed.backlog, Backlog(pending=3, in_flight=2))
        done = 0
        while done < 5:
            await bench.until_many(consumer.taken, done + 1, "more came")
            flying = consumer.taken[done:]
            await consumer.settle([(delivery, ACK) for delivery in flying])
            done += len(flying)
        await bench.until_equal(consumer.feed.backlog, Backlog(pending=0, in_flight=0))
        bench.ledger.check(subscription.position)

    async def test_trouble_is_empty_while_all_is_well(self, bench: Bench) -> None:
        subscription = bench.subscription()
        consumer = await bench.consumer(subscription)
        await bench.publish(consumer.client, [bench.message("a")])
        await bench.until_settled(subscription.position)
        assert consumer.client.trouble == ""
        assert bench.features.name == consumer.client.features.name
        assert Route.EVENT is consumer.taken[0].route
