"""A handler's history given to it again, on the memory broker: what is repaired, what is repeated, and to whom."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest

from tests.unit.parts import RecordingBroker
from tidings import Delivery, Event, Retry, Service, dead_letters, replay
from tidings.delivery import Message, Route
from tidings.errors import BrokerUnavailable, ConfigurationError, Dead, MisuseError
from tidings.notes import Notes
from tidings.pace import Pace
from tidings.replay import Replay, Replayer
from tidings.stores.memory import MemoryStore
from tidings.testing import MemoryBroker

pytestmark = pytest.mark.proves(broker="memory", store="memory")

LONG_AGO = datetime.now(UTC) - timedelta(days=1)
TYPES = frozenset({"order.placed"})


class Placed(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    number: int


class Shipped(Event, type="order.shipped", version=1, key="order_id"):
    order_id: str


class Reserved(Event, type="stock.reserved", version=1, key="order_id"):
    order_id: str
    number: int


class World:
    """A broker, a store, and a service with two handlers whose effects are lists: nothing in them hides a double."""

    def __init__(self, *, start: Literal["all", "new"] = "all") -> None:
        self.broker = MemoryBroker()
        self.store = MemoryStore()
        self.effects: list[tuple[str, int]] = []
        self.others: list[int] = []
        self.deliveries: list[Delivery] = []
        self.poison = False
        self.front = Service("front", publishes=[Placed, Shipped])
        self.stock = Service("stock")

        @self.stock.on(Placed, start=start, retry=Retry(attempts=2, first=0.01))
        async def reserve(placed: Placed, delivery: Delivery) -> Reserved:
            self.deliveries.append(delivery)
            if self.poison and placed.number == 2:
                raise Dead("two")
            self.effects.append((placed.order_id, placed.number))
            return Reserved(order_id=placed.order_id, number=placed.number)

        @self.stock.on(Placed, start="new")
        async def other(placed: Placed) -> None:
            self.others.append(placed.number)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.stock.running(broker=self.broker, store=self.store):
            yield
            await self.broker.idle()

    async def publish(self, *numbers: int, key: str = "") -> None:
        async with self.front.running(broker=self.broker):
            for number in numbers:
                await self.front.publish(Placed(order_id=key or f"k{number % 3}", number=number))

    async def begin(self, **more: Any) -> Replay:
        return await replay.begin(self.broker, "stock.reserve", **{"since": LONG_AGO, "until": None, **more})

    async def run(self, found: Replay, **more: Any) -> list[int]:
        return [copied async for copied in Replayer(self.broker, found, TYPES, **more).run()]

    @property
    def numbers(self) -> list[int]:
        return [number for _, number in self.effects]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    found = World()
    yield found
    await found.broker.close()


# ── what it repairs, and what it repeats ────────────────────────────────────────────────────────────────────────────


async def test_P4_with_once_a_replay_repairs_what_is_missing_and_repeats_nothing() -> None:
    world = World(start="new")
    await world.publish(*range(10))  # before the handler was there: it has missed them
    async with world.running():
        await world.publish(*range(10, 15))
        await world.broker.idle()
        assert sorted(world.numbers) == list(range(10, 15))
        found = await world.begin()
        assert (await world.run(found))[-1] == 15
        await world.broker.idle()
        assert (found.state, found.copied) == ("done", 15)
        assert sorted(world.numbers) == list(range(15)), "something is missing, or was repeated"
        await world.run(await world.begin())
    assert sorted(world.numbers) == list(range(15))
    assert len(world.broker.published(Reserved)) == 15


async def test_P7_a_replay_reaches_the_handler_that_asked_and_no_other(world: World) -> None:
    async with world.running():
        await world.publish(*range(5))
        await world.broker.idle()
        seen = list(world.others)
        await world.run(await world.begin(again=True))
    assert sorted(world.numbers) == sorted([*range(5), *range(5)])
    assert world.others == seen


async def test_P8_copies_of_a_key_are_handled_in_the_order_of_the_stream() -> None:
    world = World(start="new")
    await world.publish(*range(60))
    async with world.running():
        await world.run(await world.begin(), pace=Pace(5000))
    for key in ("k0", "k1", "k2"):
        applied = [number for name, number in world.effects if name == key]
        assert applied == sorted(applied)
        assert len(applied) == 20


async def test_P4_again_applies_everything_once_more_and_within_its_scope_nothing_twice(world: World) -> None:
    async with world.running():
        await world.publish(*range(8))
        await world.broker.idle()
        found = await world.begin(again=True)
        await world.run(found)
        await world.broker.idle()
        assert sorted(world.numbers) == sorted([*range(8), *range(8)])
        # The note was lost with a crash, and the broker has forgotten the ids: all of it comes once more.
        world.broker._server.retries._seen.clear()
        again = Replay(**{**{one: getattr(found, one) for one in found.__struct_fields__}, "copied": 0, "place": ()})
        again.state, again.stored = "running", 0.0
        await world.run(again)
        await world.broker.idle()
        assert again.copied == 8
    assert len(world.numbers) == 16, "within a scope something was applied twice"
    assert len(world.broker.published(Reserved)) == 16


async def test_ids_of_what_a_replay_causes_are_derived_with_its_scope_and_only_then_new(world: World) -> None:
    async with world.running():
        await world.publish(1)
        await world.broker.idle()
        for again in (False, True, True):
            await world.run(await world.begin(again=again))
            await world.broker.idle()
    assert len(world.broker.messages("stock.reserved")) == 3, "once live, and once for each scope"


async def test_a_stranger_cannot_put_an_event_into_a_scope(world: World) -> None:
    async with world.running():
        await world.publish(1)
        (event,) = world.broker.messages("order.placed")
        headers = {**event.headers, "tidings-scope": "mine"}
        copy = Message(id="other", stream="order", type="order.placed", key="k1", body=event.body, headers=headers)
        assert await world.broker.publish([copy], timeout=1) == [None]
        await world.broker.idle()
    assert world.numbers == [1]


# ── the span ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_only_what_was_stored_in_its_time_is_copied_and_only_of_its_types(world: World) -> None:
    moments = []
    async with world.front.running(broker=world.broker):
        for number in range(3):
            moments.append(datetime.now(UTC))
            await asyncio.sleep(0.01)
            await world.front.publish(Placed(order_id="a", number=number))
            await world.front.publish(Shipped(order_id="a"))
            await asyncio.sleep(0.01)
    async with world.running():
        await world.broker.idle()
        world.effects.clear()
        found = await world.begin(since=moments[1], until=moments[2], again=True)
        await world.run(found)
    assert world.numbers == [1]
    assert found.copied == 1


async def test_P13_what_cannot_be_read_is_counted_and_left_out(world: World) -> None:
    await world.publish(1)
    async with world.running():
        garbage = Message(id="x", stream="order", type="order.placed", body=b"garbage")
        assert await world.broker.publish([garbage], timeout=1) == [None]
        await world.broker.idle()
        found = await world.begin(again=True)
        await world.run(found)
        assert (found.copied, found.unreadable) == (1, 1)


async def test_a_look_counts_and_changes_nothing(world: World) -> None:
    async with world.running():
        await world.publish(*range(5))
        await world.broker.idle()
        before = (
            len(world.deliveries),
            len(world.broker._server.notes.entries),
            len(world.broker._server.retries.entries),
        )
        span = Replay(id="", position="stock.reserve", stream="order", since=0.0, until=datetime.now(UTC).timestamp())
        found = await replay.look(world.broker, span, TYPES)
        await world.broker.idle()
        after = (
            len(world.deliveries),
            len(world.broker._server.notes.entries),
            len(world.broker._server.retries.entries),
        )
    assert (found.events, found.unreadable) == (5, 0)
    assert found.first <= found.last
    assert before == after


# ── stopped, and taken up again ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("again", [False, True])
async def test_P4_stopped_after_each_portion_and_taken_up_again_it_gives_each_event_once(
    again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "TOGETHER", 3)
    world = World(start="new")
    await world.publish(*range(11))
    async with world.running():
        found = await world.begin(again=again)
        for _ in range(5):
            (found,) = await replay.known(world.broker, "stock.reserve")  # as another process finds it
            asked = itertools.count()
            await world.run(found, stopped=lambda asked=asked: next(asked) > 0)
        assert (found.state, found.copied) == ("done", 11)
        assert [one.state for one in await replay.known(world.broker, "stock.reserve")] == ["done"]
    assert sorted(world.numbers) == list(range(11))
    copies = world.broker._server.retries.entries
    assert len(copies) == 11


async def test_P11_it_holds_back_while_the_handler_has_much_to_work_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "TOGETHER", 5)
    monkeypatch.setattr(replay, "MOST_WAITING", 10)
    monkeypatch.setattr(replay, "LOOK", 0.01)
    world = World(start="new")
    await world.publish(*range(40))
    async with world.running():
        pass  # the position is there, and nobody takes from it
    waited: list[int] = []
    async with world.front.running(broker=world.broker):
        found = await world.begin()
        await world.run(found, waits=waited.append, stopped=lambda: len(waited) > 3)
    assert (found.copied, found.state) == (10, "running")
    assert waited
    async with world.running():
        await world.run(found)
    assert sorted(world.numbers) == list(range(40))


async def test_P1_a_portion_that_is_stored_in_part_is_stored_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "LOOK", 0.01)
    world = World(start="new")
    await world.publish(*range(20), key="a")
    async with world.running():
        found = await world.begin()
        runner = Replayer(world.broker, found, TYPES).run()
        world.broker.fail_publish(BrokerUnavailable("gone"), times=2)
        assert [copied async for copied in runner][-1] == 20
    assert sorted(world.numbers) == list(range(20))


async def test_P1_a_replay_that_cannot_store_its_copies_ends_and_goes_on_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay, "LOOK", 0.01)
    monkeypatch.setattr(replay, "PATIENCE", 0.05)
    world = World(start="new")
    await world.publish(*range(4))
    async with world.running():
        found = await world.begin()
        server, gone = world.broker._server, BrokerUnavailable("gone")
        store = server.store
        with monkeypatch.context() as patch:  # the notes can be stored all the time
            patch.setattr(server, "store", lambda one: gone if one.route is Route.RETRY else store(one))
            with pytest.raises(BrokerUnavailable):
                await world.run(found)
        (kept,) = await replay.known(world.broker, "stock.reserve")
        await world.run(kept)
    assert sorted(world.numbers) == list(range(4))


async def test_P13_a_note_that_is_no_replay_is_passed_over(world: World) -> None:
    async with world.running():
        await Notes(world.broker, "stock.reserve").write({"replay/x": "{", "replay/y": "[1]", "control/paused": "no"})
        found = await world.begin()
        assert [one.id for one in await replay.known(world.broker, "stock.reserve")] == [found.id]


# ── failures within a replay ────────────────────────────────────────────────────────────────────────────────────────


async def test_P7_what_dies_in_a_replay_says_so_and_is_redriven_within_its_scope(world: World) -> None:
    async with world.running():
        await world.publish(1, 2, 3)
        await world.broker.idle()
        world.poison = True
        found = await world.begin(again=True)
        await world.run(found)
        await world.broker.idle()
        (letter,) = await dead_letters.list_letters(world.broker)
        assert (letter.replay, letter.scope, letter.position) == (found.id, found.id, "stock.reserve")
        world.poison = False
        await dead_letters.redrive(world.broker, letter)
        await world.broker.idle()
        world.broker._server.retries._seen.clear()
        (whole,) = await dead_letters.find(world.broker, [letter.id])
        await dead_letters.redrive(world.broker, whole)
        await world.broker.idle()
    assert sorted(world.numbers) == [1, 1, 2, 2, 3, 3]
    assert len(world.broker.messages("stock.reserved")) == 6


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_handler_that_is_not_there_is_named_with_those_that_are(world: World) -> None:
    async with world.running():
        with pytest.raises(ConfigurationError, match=r"no handler stock\.resreve .* stock\.other, stock\.reserve"):
            await replay.types_of(world.broker, "stock.resreve")


async def test_a_broker_without_history_is_refused() -> None:
    class Forgetful(RecordingBroker):
        async def positions(self, service: str) -> dict[str, Sequence[str]]:
            return {"stock.step": ["order.placed"]}

        async def copies(self, position: str) -> int:
            return 0

    broker = Forgetful()
    assert await replay.types_of(broker, "stock.step") == TYPES
    broker.features = type(broker.features)(name="queue", history=False)
    with pytest.raises(ConfigurationError, match="keeps no history"):
        await replay.types_of(broker, "stock.step")
    with pytest.raises(ConfigurationError, match="cannot say which positions"):
        await replay.types_of(RecordingBroker(), "stock.step")


# ── beside the live position ────────────────────────────────────────────────────────────────────────────────────────


async def test_P4_beside_the_live_one_a_handler_applies_its_history_as_its_own_and_goes_on(world: World) -> None:
    async with world.running():
        await world.publish(*range(5))
        await world.broker.idle()
        copy = World()
        copy.broker, copy.store = world.broker.client(), world.store
        async with copy.stock.beside("reserve", "reserve-two", LONG_AGO, broker=copy.broker, store=copy.store):
            await world.broker.idle()
            assert sorted(copy.numbers) == list(range(5))
            assert copy.others == []
            await world.publish(5)
            await world.broker.idle()
        assert sorted(copy.numbers) == sorted(world.numbers) == list(range(6))
        await world.publish(6)
        async with copy.stock.beside("reserve", "reserve-two", datetime.now(UTC), broker=copy.broker, store=copy.store):
            await world.broker.idle()
        assert sorted(copy.numbers) == list(range(7)), "it did not go on where it was"
    assert await replay.types_of(world.broker, "stock.reserve-two") == TYPES


async def test_a_position_that_begins_at_a_moment_takes_what_was_stored_since(world: World) -> None:
    await world.publish(1)
    await asyncio.sleep(0.02)
    moment = datetime.now(UTC)
    await asyncio.sleep(0.02)
    await world.publish(2)
    async with world.stock.beside("reserve", "later", moment, broker=world.broker, store=world.store):
        await world.broker.idle()
    assert world.numbers == [2]


@pytest.mark.parametrize(
    ("handler", "name", "says"),
    [
        ("resreve", "two", "no handler 'resreve'; it has: reserve, other"),
        ("reserve", "other", "has a handler of that name"),
        ("reserve", "Two!", "cannot have a handler of that name"),
    ],
)
async def test_a_name_that_cannot_be_is_refused(world: World, handler: str, name: str, says: str) -> None:
    with pytest.raises(MisuseError, match=says):
        async with world.stock.beside(handler, name, LONG_AGO, broker=world.broker, store=world.store):
            pass


async def test_the_place_of_a_copy_and_of_nothing_else_is_compared(world: World) -> None:
    assert replay._is_behind(("order", 2), ("order", 1))
    assert not replay._is_behind(("order", 1), ("order", 1))
    assert replay._is_behind(("order", "x"), ("order", 1))
    assert replay._is_behind((1,), ("order", 1))
