"""What several lanes want stored at the same time goes in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.unit.parts import delivery
from tidings.copies import dead_letter
from tidings.delivery import DeadLettered, Message
from tidings.together import Together


def copy_of(name: str) -> Message:
    (copy,) = dead_letter(delivery(name, 1), "stock.reserve", DeadLettered(reason=name), "", 1 << 20)
    return copy


class Disk:
    """Answers to each call once it is let go on, and refuses what it was told to refuse."""

    def __init__(self) -> None:
        self.calls: list[list[Message]] = []
        self.gate = asyncio.Event()
        self.refused: Message | None = None

    async def store(self, messages: Sequence[Message]) -> list[Exception | None]:
        self.calls.append(list(messages))
        await self.gate.wait()
        return [OSError("full") if message is self.refused else None for message in messages]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_comes_while_a_call_is_under_way_leaves_in_one_call_after_it() -> None:
    disk = Disk()
    together = Together(disk.store)
    one, two, three, four = map(copy_of, "abcd")
    disk.refused = three
    asked = []
    for messages in ([one], [two, three], [four]):
        asked.append(asyncio.ensure_future(together.publish(messages)))
        await settle()
    assert disk.calls == [[one]]
    disk.gate.set()
    async with asyncio.timeout(5):
        first, second, third = await asyncio.gather(*asked)
    assert disk.calls == [[one], [two, three, four]]
    assert list(first) == list(third) == [None]
    assert second[0] is None, "each gets the answers to its own"
    assert isinstance(second[1], OSError)


async def test_P2_what_was_cancelled_while_it_waited_is_not_stored_later() -> None:
    disk = Disk()
    together = Together(disk.store)
    one, two, three = map(copy_of, "abc")
    first, second, third = (asyncio.ensure_future(together.publish([message])) for message in (one, two, three))
    await settle()
    second.cancel()
    await settle()
    disk.gate.set()
    async with asyncio.timeout(5):
        await asyncio.gather(first, third)
    assert second.cancelled()
    assert disk.calls == [[one], [three]]


async def test_P2_when_whoever_leads_is_cancelled_the_others_are_stored_all_the_same() -> None:
    disk = Disk()
    together = Together(disk.store)
    one, two, three = map(copy_of, "abc")
    first = asyncio.ensure_future(together.publish([one]))
    await settle()
    second, third = (asyncio.ensure_future(together.publish([message])) for message in (two, three))
    await settle()
    first.cancel()
    await settle()
    assert disk.calls == [[one], [two, three]]
    second.cancel()
    disk.gate.set()
    async with asyncio.timeout(5):
        assert list(await third) == [None]
    assert disk.calls[2:] == [[three]], "sent again under its id, since nobody knows what became of it"
