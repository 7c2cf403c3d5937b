"""The other two roads: copies that wait for their next attempt, and the log of dead letters."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

from tidings.delivery import Delivery, Header, Route
from tidings.partition import slot_of
from tidings.ports import Broker
from tidings.testing.conformance.bench import Bench

BYTES = bytes(range(256))


class Routes:
    """Part of the suite."""

    async def test_P6_a_copy_reaches_its_handler_alone_and_not_before_its_time(self, bench: Bench) -> None:
        failed, other = bench.subscription("failed"), bench.subscription("other")
        client = await bench.client(failed, other)
        mine = await bench.consumer(failed, client=client)
        others = await bench.consumer(other, client=client)
        due = {"a": time.time() + 1.2, "b": time.time() + 0.4, "c": None}
        message = bench.message("", key="k1", headers={"X-Own": "kept, as it was"})
        copies = [
            bench.copy(bench.message(id, key="k1", headers=message.headers), Route.RETRY, failed.position, at)
            for id, at in due.items()
        ]
        await bench.publish(client, copies)
        await bench.until_settled(failed.position)
        await bench.nothing_more()
        assert others.taken == [], "a copy reached a handler that had not failed"
        for delivery, at in zip(mine.taken, mine.at, strict=True):
            moment = due[delivery.body.decode()]
            assert moment is None or at >= moment, f"{delivery.body.decode()} came {moment - at:.3f} s too early"
            copy = next(one for one in copies if one.body == delivery.body)
            assert dict(delivery.headers) == {**copy.headers, **_due_of(delivery)}, "the headers were changed"
            assert (delivery.route, delivery.stream) == (Route.RETRY, bench.stream)
            assert delivery.slot in (None, slot_of("k1"))
        bench.ledger.check(failed.position)

    async def test_P6_a_copy_that_is_given_back_comes_again(self, bench: Bench) -> None:
        subscription = bench.subscription()
        consumer = await bench.consumer(subscription, lambda delivery: None)
        await bench.publish(consumer.client, [bench.copy(bench.message("a"), Route.RETRY, subscription.position)])
        await bench.until(lambda: len(consumer.taken) == 1, "it came")
        await consumer.close()
        await bench.consumer(subscription)
        await bench.until_settled(subscription.position)
        bench.ledger.check(subscription.position)

    async def test_P6_copies_that_wait_hold_up_nothing(self, bench: Bench) -> None:
        bench.needs("delayed")
        waiting, count = bench.size("waiting copies", 500, 20), bench.size("messages", 1000, 50)
        subscription = bench.subscription(max_in_flight=2)
        consumer = await bench.consumer(subscription)
        later = time.time() + 3600
        await bench.publish(
            consumer.client,
            [bench.copy(bench.message(f"w{n}"), Route.RETRY, subscription.position, later) for n in range(waiting)],
        )
        ids = [str(number) for number in range(count)]
        await bench.publish(consumer.client, [bench.message(id) for id in ids])
        await bench.until_settled(subscription.position, ids)
        assert len(consumer.taken) == count, "a copy came an hour too early"
        backlog = await consumer.feed.backlog()
        assert backlog.scheduled == waiting, f"{backlog}: the copies that wait are to be seen"

    async def test_P6_copies_outlive_a_restart(self, bench: Bench) -> None:
        bench.needs("durable", "restart")
        count = bench.size("copies", 500, 20)
        subscription = bench.subscription()
        client = await bench.client(subscription)
        due = time.time() + 2
        await bench.publish(
            client,
            [bench.copy(bench.message(str(n)), Route.RETRY, subscription.position, due) for n in range(count)],
        )
        await bench.rig.restart()
        consumer = await bench.consumer(subscription)
        await bench.until_settled(subscription.position)
        assert min(consumer.at) >= due
        bench.ledger.check(subscription.position, faults=True)

    async def test_P7_a_dead_letter_is_kept_as_it_was_and_can_be_read_again(self, bench: Bench) -> None:
        count = bench.size("letters", 500, 12)
        position = bench.subscription().position
        client, reader = await bench.client(), await bench.client()
        letters = [
            bench.copy(
                bench.message(f"{n}", body=b"%d " % n + BYTES, headers={"x-h": "%0A; a=b"}), Route.DEAD, position
            )
            for n in range(count)
        ]
        await bench.publish(client, letters[: count // 2])
        assert len(await self._letters(reader, position)) == count // 2
        await bench.publish(client, letters[count // 2 :])
        if bench.features.restart and bench.features.durable:
            await bench.rig.restart()
        for _ in range(2):
            found = await self._letters(reader, position)
            assert [bytes(one.body) for one in found] == [letter.body for letter in letters], "letters are missing"
            assert [dict(one.headers) for one in found] == [letter.headers for letter in letters]
            assert {(one.route, one.stream) for one in found} == {(Route.DEAD, bench.stream)}

    async def test_P7_the_log_of_dead_letters_can_be_followed(self, bench: Bench) -> None:
        position = bench.subscription().position
        client, reader = await bench.client(), await bench.client()
        await bench.publish(client, [bench.copy(bench.message("before"), Route.DEAD, position)])
        found: list[bytes] = []

        async def follow() -> None:
            async for letter in reader.read(Route.DEAD, follow=True):
                if letter.headers.get(Header.HANDLER) == position:
                    found.append(bytes(letter.body))

        following = asyncio.create_task(follow())
        try:
            await bench.until(lambda: found == [b"before"], "what was there")
            await bench.publish(client, [bench.copy(bench.message("after"), Route.DEAD, position)])
            await bench.until(lambda: found == [b"before", b"after"], "what came")
        finally:
            following.cancel()
            await asyncio.wait([following])

    async def _letters(self, reader: Broker, position: str) -> list[Delivery]:
        return [one async for one in reader.read(Route.DEAD) if one.headers.get(Header.HANDLER) == position]

    async def test_a_stream_can_be_read_without_a_position(self, bench: Bench) -> None:
        bench.needs("history")
        count = bench.size("messages", 5000, 300)
        subscription = bench.subscription()
        client = await bench.client(subscription)
        half = [bench.message(str(number)) for number in range(count // 2)]
        await bench.publish(client, half)
        log = client.read(Route.EVENT, bench.stream)
        first = await anext(log)
        await asyncio.sleep(0.05)
        since = datetime.now(UTC)
        await asyncio.sleep(0.05)
        await bench.publish(client, [bench.message(str(number)) for number in range(count // 2, count)])
        ids = [bytes(first.body)] + [bytes(one.body) async for one in log]
        assert ids == [message.body for message in half], "it ends where the log ended when it was called"
        rest = [int(one.body) async for one in client.read(Route.EVENT, bench.stream, since=since)]
        assert rest == list(range(count // 2, count))
        await bench.consumer(subscription, client=client)
        await bench.until_settled(subscription.position)


def _due_of(delivery: Delivery) -> dict[str, str]:
    """An adapter may write the due time down: it is the broker's affair."""
    return {Header.DUE: delivery.headers[Header.DUE]} if Header.DUE in delivery.headers else {}
