"""Publishing: what is accepted is stored, as it was, once; what is not stored is said so."""

from __future__ import annotations

import asyncio

from tidings.delivery import Delivery, Message, Route
from tidings.errors import EventTooLarge, NotStored, TidingsError
from tidings.partition import slot_of
from tidings.ports import Broker
from tidings.testing.conformance.bench import Bench

BODIES = (b"", bytes(range(256)), b"\r\n\r\n", b"\xff\xfe\x00", b'{"a":1}', b"x" * 70_000)
HEADERS: tuple[dict[str, str], ...] = (
    {},
    {"ce-id": "1", "content-type": "application/json"},
    {"X-Mixed-Case": "yes", "x-empty": "", "x-inner": 'a b: c=d; %0A, "e"', "x-long": "v" * 4000},
)


class Publishing:
    """Part of the suite."""

    async def test_P1_what_is_published_comes_back_equal(self, bench: Bench) -> None:
        count = bench.size("messages", 100, 36)
        subscription = bench.subscription()
        client = await bench.client(subscription)
        messages = [
            bench.message(
                str(number),
                key=f"key {number % 7} é" if number % 3 else None,
                body=BODIES[number % len(BODIES)],
                headers={"x-id": str(number), **HEADERS[number // len(BODIES) % len(HEADERS)]},
            )
            for number in range(count)
        ]
        for message in messages[: count // 2]:
            await bench.publish(client, [message])
        await bench.publish(client, messages[count // 2 :])
        consumer = await bench.consumer(subscription)
        await bench.until(lambda: len(consumer.taken) >= count, "all came")
        await bench.nothing_more()
        assert len(consumer.taken) == count
        self._equal(bench, consumer.taken, messages)

    def _equal(self, bench: Bench, deliveries: list[Delivery], messages: list[Message]) -> None:
        found = {delivery.headers["x-id"]: delivery for delivery in deliveries}
        assert len(found) == len({delivery.origin for delivery in found.values()}) == len(messages)
        for number, message in enumerate(messages):
            delivery = found[str(number)]
            assert bytes(delivery.body) == message.body, f"the body of {number} was changed"
            assert dict(delivery.headers) == message.headers, f"the headers of {number} were changed"
            assert (delivery.stream, delivery.route) == (bench.stream, Route.EVENT)
            assert delivery.delivered == 1
            wanted = None if message.key is None else slot_of(message.key)
            assert delivery.slot in (None, wanted), f"key {message.key!r} is in slot {wanted}, not {delivery.slot}"

    async def test_P1_a_message_without_bytes_that_comes_alone_is_taken(self, bench: Bench) -> None:
        count = bench.size("messages", 20, 3)
        subscription = bench.subscription()
        client = await bench.client(subscription)
        consumer = await bench.consumer(subscription)
        for number in range(count):
            await bench.publish(client, [bench.message(str(number), body=b"", headers={"x-id": str(number)})])
            await bench.until_many(consumer.taken, number + 1, f"{number} came")
            await bench.nothing_more()  # so that the next one comes alone, too
        assert consumer.ids == [str(number) for number in range(count)]

    async def test_P1_what_publish_returned_for_is_stored(self, bench: Bench) -> None:
        bench.needs("durable", "restart")
        count = bench.size("messages", 1000, 60)
        subscription = bench.subscription()
        client = await bench.client(subscription)
        messages = [bench.message(str(number)) for number in range(count)]
        for start in range(0, count, 10):
            await bench.publish(client, messages[start : start + 10])
        await bench.rig.restart()
        await bench.consumer(subscription)
        await bench.until_settled(subscription.position)
        bench.ledger.check(subscription.position, faults=True)

    async def test_P1_whoever_looks_after_publish_returned_sees_it(self, bench: Bench) -> None:
        bench.needs("history")
        count = bench.size("messages", 100, 10)
        publisher, reader = await bench.client(), await bench.client()
        for number in range(count):
            await bench.publish(publisher, [bench.message(str(number))])
            seen = [delivery.body async for delivery in reader.read(Route.EVENT, bench.stream)]
            assert seen == [str(one).encode() for one in range(number + 1)]

    async def test_P1_a_stream_that_nobody_declared_takes_nothing(self, bench: Bench) -> None:
        client = await bench.client()
        nowhere = f"{bench.stream}-not"
        (error,) = await client.publish([bench.message("1", stream=nowhere, type=f"{nowhere}.happened")], timeout=5)
        assert isinstance(error, NotStored), f"published where nothing stores it, and got {error!r}"

    async def test_P1_one_byte_too_many_is_refused_and_the_limit_travels(self, bench: Bench) -> None:
        most = bench.features.max_bytes
        subscription = bench.subscription()
        client = await bench.client(subscription)
        sizes = {"under": most - 1, "at": most, "over": most + 1, "after": 10}
        messages = [bench.message(id, size=size, headers={"x-h": "v" * 200}) for id, size in sizes.items()]
        errors = dict(zip(sizes, await bench.try_publish(client, messages), strict=True))
        assert isinstance(errors.pop("over"), EventTooLarge)
        assert errors == {"under": None, "at": None, "after": None}, "one that is too large took others with it"
        consumer = await bench.consumer(subscription)
        await bench.until_settled(subscription.position)
        assert {id: len(body) for id, body in zip(consumer.ids, consumer.bodies, strict=True)} == {
            id: size for id, size in sizes.items() if id != "over"
        }

    async def test_P1_an_id_published_again_loses_nothing_and_is_stored_once_where_the_broker_says_so(
        self, bench: Bench
    ) -> None:
        """Where it is stored again, `once` makes that harmless: see `test_P4_an_id_published_again_is_applied_once`."""
        subscription = bench.subscription()
        client, other = await bench.client(subscription), await bench.client(subscription)
        await bench.publish(client, [bench.message(id) for id in "abc"])
        await bench.publish(client, [bench.message(id) for id in "cbad"])
        await bench.publish(other, [bench.message(id) for id in "bd"])
        consumer = await bench.consumer(subscription)
        await bench.until_settled(subscription.position)
        await bench.nothing_more()
        assert set(consumer.ids) == set("abcd"), "a repeat has taken others with it"
        if bench.features.deduplicates:
            assert len(consumer.ids) == 4, "an id was stored again"

    async def test_P8_one_call_keeps_the_order_of_its_messages(self, bench: Bench) -> None:
        count = bench.size("messages", 2000, 300)
        subscription = bench.subscription()
        client = await bench.client(subscription)
        await bench.publish(client, [bench.message(str(number), key=f"k{number % 3}") for number in range(count)])
        await bench.consumer(subscription)
        await bench.until_settled(subscription.position)
        for key, ids in bench.ledger.keys(subscription.position).items():
            assert ids == sorted(ids, key=int), f"{key} is out of order"

    async def test_P1_a_publisher_closed_under_load_loses_nothing_it_returned_for(self, bench: Bench) -> None:
        count = bench.size("messages", 10_000, 600)
        subscription = bench.subscription()
        await bench.client(subscription)
        client = await bench.rig.broker()
        await client.open(bench.plan(subscription))

        async def publish(worker: int) -> None:
            for number in range(worker, count, 20):
                await bench.try_publish(client, [bench.message(str(number))], timeout=5)

        async with asyncio.TaskGroup() as group, bench.in_time("the publisher is closed"):
            for worker in range(20):
                group.create_task(publish(worker))
            while len(bench.ledger.published) < count // 3:
                await bench.ledger.changed(1.0)
            await client.close()
        assert len(bench.ledger.published) + len(bench.ledger.refused) == count
        assert bench.ledger.refused, "the publisher was closed too late to show anything"
        assert all(isinstance(error, TidingsError) for error in bench.ledger.refused.values())
        await bench.consumer(subscription)
        await bench.until_settled(subscription.position)
        bench.ledger.check(subscription.position)

    async def test_many_publishers_and_competing_consumers_lose_nothing(self, bench: Bench) -> None:
        count, clients = bench.size("messages", 5000, 500), bench.size("clients of each kind", 50, 10)
        subscription = bench.subscription()
        publishers: list[Broker] = [await bench.client(subscription) for _ in range(clients)]
        consumers = [await bench.consumer(subscription) for _ in range(clients)]

        async def publish(place: int) -> None:
            for number in range(place, count, clients):
                await bench.publish(publishers[place], [bench.message(str(number), key=f"k{number % 16}")])

        async with asyncio.TaskGroup() as group:
            for place in range(clients):
                group.create_task(publish(place))
        await bench.until_settled(subscription.position)
        await bench.nothing_more()
        bench.ledger.check(subscription.position)
        assert sum(len(consumer.taken) for consumer in consumers) == count, "competing consumers share, not copy"

    async def test_many_streams_at_once_each_give_their_own(self, bench: Bench) -> None:
        streams, count = bench.size("streams", 20, 5), bench.size("messages each", 100, 20)
        names = [f"{bench.stream}-{number}" for number in range(streams)]
        positions = [
            bench.subscription(f"on-{place}", stream=name, types=(f"{name}.happened",))
            for place, name in enumerate(names)
        ]
        client = await bench.client(*positions)
        for position in positions:
            await bench.consumer(position, client=client)
        own = {name: [f"{name}-{number}" for number in range(count)] for name in names}
        async with asyncio.TaskGroup() as group:
            for name, ids in own.items():
                messages = [bench.message(id, stream=name, type=f"{name}.happened") for id in ids]
                group.create_task(bench.publish(client, messages))
        for position in positions:
            await bench.until_settled(position.position, own[position.stream])
        await bench.nothing_more()
        for position in positions:
            bench.ledger.check(position.position, own[position.stream])
