"""What the followers of a dead letter do: go on, follow it, or wait for a decision. In order, on the memory broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.unit.parts import until
from tidings import Dead, Delivery, Event, Retry, RetryAfter, Service, dead_letters
from tidings.bulk import in_order
from tidings.dead_letters import Letter
from tidings.delivery import Route
from tidings.errors import BrokerUnavailable
from tidings.notes import Notes
from tidings.ports import Plan
from tidings.testing import MemoryBroker

pytestmark = pytest.mark.proves(broker="memory", store="none")

POSITION = "stock.step"


class Placed(Event, type="order.placed", version=1, key="order_id"):
    order_id: str
    number: int


Bad = Callable[[], Exception]


def rejected() -> Exception:
    return Dead("not now")


def failed() -> Exception:
    return ValueError("x")


class Shop:
    """A handler that writes what it applied, and refuses what it is told to."""

    def __init__(self, on_dead: Any, *bad: tuple[str, int], **rules: Any) -> None:
        self.broker = MemoryBroker()
        self.applied: list[tuple[str, int]] = []
        self.bad: dict[tuple[str, int], Bad] = dict.fromkeys(bad, rejected)
        self._rules = {"on_dead": on_dead, "retry": Retry(attempts=2, first=0.01, most=0.01), **rules}

    def service(self) -> Service:
        service = Service("stock", publishes=[Placed])

        @service.on(Placed, name="step", order="key", idempotent=True, **self._rules)
        async def step(placed: Placed, delivery: Delivery) -> None:
            event = (placed.order_id, placed.number)
            if event in self.bad:
                raise self.bad[event]()
            self.applied.append(event)

        return service

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Service]:
        service = self.service()
        async with service.running(broker=self.broker.client()):
            yield service

    async def publish(self, service: Service, *events: tuple[str, int]) -> None:
        answers = await service.publish_many([Placed(order_id=key, number=number) for key, number in events])
        assert set(answers) <= {None}

    @asynccontextmanager
    async def client(self) -> AsyncIterator[MemoryBroker]:
        client = self.broker.client()
        await client.open(Plan(service="cli"))
        yield client
        await client.close()

    async def letters(self) -> list[Letter]:
        async with self.client() as client:
            return in_order(await dead_letters.list_letters(client))

    async def redrive(self, *letters: Letter) -> None:
        async with self.client() as client:
            for letter in letters:
                await dead_letters.redrive(client, letter)

    async def discard(self, letter: Letter) -> None:
        async with self.client() as client:
            await dead_letters.discard(client, letter)

    async def held(self) -> dict[str, str]:
        async with self.client() as client:
            notes = await Notes(client, POSITION).read()
        return {name: text for name, text in notes.items() if name.startswith("held/")}

    def of(self, key: str) -> list[int]:
        return [number for one, number in self.applied if one == key]

    async def dead(self, count: int) -> list[Letter]:
        """Wait for so many letters."""
        found: list[Letter] = []
        for _ in range(500):
            if len(found := await self.letters()) >= count:
                return found
            await asyncio.sleep(0.01)
        raise AssertionError(f"{len(found)} letters, not {count}")

    async def free(self) -> None:
        """Wait until no key is held."""
        for _ in range(800):
            if not await self.held():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"still held: {await self.held()}, applied {self.applied}, {await self.letters()}")


LINE = [("a", 1), ("a", 2), ("b", 1), ("a", 3), ("b", 2)]


async def test_P8_unless_told_the_followers_of_a_dead_letter_go_on() -> None:
    shop = Shop("skip", ("a", 1))
    async with shop.open() as service:
        await shop.publish(service, *LINE)
        await until(lambda: len(shop.applied) == 4)
        (letter,) = await shop.dead(1)
    assert shop.of("a") == [2, 3]
    assert (letter.place, letter.behind) == (0, "")
    assert await shop.held() == {}


@pytest.mark.parametrize("why", [rejected, failed])
async def test_P7_P8_parked_followers_become_letters_in_order_and_are_redriven_in_order(why: Bad) -> None:
    shop = Shop("park")
    shop.bad[("a", 1)] = why
    async with shop.open() as service:
        await shop.publish(service, *LINE)
        first, *followers = await shop.dead(3)
        await until(lambda: shop.of("b") == [1, 2])
        assert shop.of("a") == []
        assert [letter.place for letter in (first, *followers)] == [1, 2, 3]
        assert {letter.code for letter in followers} == {"behind"}
        assert [letter.behind for letter in (first, *followers)] == ["", first.id, first.id]
        await shop.redrive(*followers)
        await shop.broker.idle()
        assert len(await shop.dead(3)) == 3
        assert shop.of("a") == [], "a follower overtook the first"
        shop.bad.clear()
        await shop.redrive(*await shop.letters())
        await shop.free()
        await shop.publish(service, ("a", 4))
        await until(lambda: len(shop.of("a")) == 4)
    assert shop.of("a") == [1, 2, 3, 4]
    assert await shop.letters() == []


async def test_P8_what_comes_while_a_key_is_parked_keeps_its_place_behind_what_was_redriven() -> None:
    shop = Shop("park", ("a", 1))
    async with shop.open() as service:
        await shop.publish(service, ("a", 1), ("a", 2))
        first, _ = await shop.dead(2)
        shop.bad.clear()
        await shop.redrive(first)
        await until(lambda: shop.of("a") == [1])
        await shop.publish(service, ("a", 3))
        second, third = await shop.dead(2)
        assert (second.place, third.place) == (2, 3)
        await shop.redrive(second, third)
        await shop.free()
    assert shop.of("a") == [1, 2, 3]


async def test_P8_blocked_followers_wait_for_a_decision_and_go_on_by_themselves_in_order() -> None:
    shop = Shop("block", ("a", 1))
    async with shop.open() as service:
        await shop.publish(service, *LINE, *(("a", number) for number in range(4, 30)))
        first, *followers = await shop.dead(29)
        assert len(followers) == 28
        assert shop.of("a") == []
        shop.bad.clear()
        await shop.redrive(first)
        await shop.free()
        await shop.publish(service, ("a", 30))
        await until(lambda: len(shop.of("a")) == 30)
    assert shop.of("a") == list(range(1, 31))
    assert shop.of("b") == [1, 2]
    assert await shop.letters() == []


async def test_P8_the_first_of_a_blocked_key_is_discarded_and_the_others_go_on() -> None:
    shop = Shop("block", ("a", 1))
    async with shop.open() as service:
        await shop.publish(service, *LINE)
        first, second, _ = await shop.dead(3)
        await shop.discard(second)
        await shop.broker.idle()
        assert shop.of("a") == [], "a follower that was discarded is no decision about the first"
        await shop.discard(first)
        await shop.free()
    assert shop.of("a") == [3]
    assert await shop.letters() == []


async def test_P8_a_follower_that_dies_in_its_turn_holds_those_behind_it() -> None:
    shop = Shop("block", ("a", 1))
    async with shop.open() as service:
        await shop.publish(service, *(("a", number) for number in range(1, 8)))
        first, *_ = await shop.dead(7)
        shop.bad = {("a", 4): failed}
        await shop.redrive(first)
        await until(lambda: shop.of("a") == [1, 2, 3])
        await shop.broker.idle()
        fourth, *behind = await shop.dead(4)
        assert (fourth.place, fourth.code) == (4, "failed")
        assert {letter.code for letter in behind} == {"behind"}
        assert shop.of("a") == [1, 2, 3]
        shop.bad.clear()
        await shop.redrive(fourth)
        await shop.free()
    assert shop.of("a") == list(range(1, 8))


@pytest.mark.parametrize("on_dead", ["park", "block"])
async def test_P8_a_restart_knows_which_keys_are_held(on_dead: str) -> None:
    shop = Shop(on_dead, ("a", 1))
    async with shop.open() as service:
        await shop.publish(service, ("a", 1))
        await shop.dead(1)
    shop.bad.clear()
    async with shop.open() as service, shop.open():
        await shop.publish(service, ("a", 2), ("b", 1))
        await shop.dead(2)
        await until(lambda: shop.of("b") == [1])
    async with shop.open() as service:
        await shop.publish(service, ("a", 3))
        await shop.dead(3)
        assert shop.of("a") == []
        for letter in (await shop.letters())[: 1 if on_dead == "block" else 3]:
            await shop.redrive(letter)
        await shop.free()
    assert shop.of("a") == [1, 2, 3]


async def test_P8_a_standby_that_was_there_before_a_key_was_held_knows_it_when_it_takes_over() -> None:
    shop = Shop("park", ("a", 1))
    active, standby = shop.service(), shop.service()
    running = active.running(broker=shop.broker.client())
    await running.__aenter__()
    async with standby.running(broker=shop.broker.client()):
        await shop.publish(active, ("b", 1), ("a", 1))
        await shop.dead(1)
        await running.__aexit__(None, None, None)
        await shop.publish(standby, ("a", 2), ("b", 2))
        await until(lambda: shop.of("b") == [1, 2])
        await shop.dead(2)
    assert shop.of("a") == []


async def test_P11_held_keys_fill_no_limit_however_many_followers_they_have() -> None:
    shop = Shop("block", ("a", 0), batch=2)  # eight may be in flight
    async with shop.open() as service:
        await shop.publish(service, *(("a", number) for number in range(100)), ("b", 1))
        await until(lambda: shop.of("b") == [1])
        first, *_ = await shop.dead(100)
        shop.bad.clear()
        await shop.redrive(first)
        await shop.free()
    assert shop.of("a") == list(range(100))


async def test_P6_P8_a_redriven_copy_that_is_tried_again_keeps_its_followers_behind_it() -> None:
    shop = Shop("park", ("a", 1))
    async with shop.open() as service:
        await shop.publish(service, ("a", 1), ("a", 2), ("a", 3))
        letters = await shop.dead(3)

        def once() -> Exception:
            shop.bad.clear()
            return RetryAfter(0.1)

        shop.bad[("a", 1)] = once
        await shop.redrive(*letters)
        await shop.free()
    assert shop.of("a") == [1, 2, 3]


class Deaf(MemoryBroker):
    """Stores no note until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.hears, self.tried = asyncio.Event(), 0

    async def publish(self, messages: Any, *, timeout: float) -> Any:
        if any(message.route is Route.NOTE for message in messages) and not self.hears.is_set():
            self.tried += 1
            return [BrokerUnavailable("away")] * len(messages)
        return await super().publish(messages, timeout=timeout)


async def test_P8_while_a_place_cannot_be_noted_no_letter_is_stored_and_no_follower_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tidings.settling.COPY_PAUSE", 0.05)
    shop = Shop("park", ("a", 1))
    deaf = Deaf()
    deaf._server = shop.broker._server
    service = shop.service()
    async with service.running(broker=deaf):
        await shop.publish(service, *LINE)
        await until(lambda: deaf.tried >= 3 and shop.of("b") == [1, 2])
        assert await shop.letters() == []
        assert shop.of("a") == []
        deaf.hears.set()
        await shop.dead(3)
    assert [letter.place for letter in await shop.letters()] == [1, 2, 3]
