"""The copies of a key on an ordered position's retry route, when the process that had some is gone, or was."""

from __future__ import annotations

import asyncio

import pytest
from nats.aio.client import Client

from tests.integration.nats.conftest import Connect, Rig, another, position, until
from tests.integration.nats.server import NatsServer, Proxy
from tidings.brokers.nats import share_copies
from tidings.brokers.nats.ordered import OrderedFeed
from tidings.brokers.nats.share import Share
from tidings.delivery import ACK
from tidings.partition import slot_of

pytestmark = [pytest.mark.server, pytest.mark.proves("P8", broker="nats", store="none")]

COUNT = 10
ORDERED = position(ordered=True, max_in_flight=1000)
ROOM = 15
"""Copies that one share asks for at a time, of such a limit."""


async def send_copies(rig: Rig, begin: int, count: int = COUNT) -> None:
    copies = [rig.copy(b"%d" % number, id=f"copy-{number}") for number in range(begin, begin + count)]
    assert await rig.broker.publish(copies, timeout=30) == [None] * count


def copies_of(rig: Rig) -> list[int]:
    return [int(body) for body in rig.bodies if body != b"event"]


async def begin(connect: Connect, url: str, *, pinned: bool) -> Rig:
    """A process that has ten copies in hand; it was pinned with an event, or stands in while nobody is."""
    rig = await connect(url, ORDERED)
    if pinned:
        await rig.publish(b"event")
        await rig.settled(1)
    await send_copies(rig, 0)
    await until(lambda: len(copies_of(rig)) == COUNT)
    return rig


@pytest.mark.parametrize("pinned", [True, False])
async def test_P8_copies_that_a_process_had_which_is_gone_come_before_later_ones(
    server: NatsServer, proxy: Proxy, connect: Connect, pinned: bool
) -> None:
    await begin(connect, proxy.url, pinned=pinned)
    proxy.hold()
    second = await connect(server.url, ORDERED)
    await send_copies(second, COUNT)
    if pinned:
        assert await second.broker.publish([second.message(b"event", id="another")], timeout=30) == [None]
    await second.settled(2 * COUNT + pinned, timeout=60)
    assert copies_of(second) == list(range(2 * COUNT))


async def test_P8_copies_go_on_in_order_when_their_process_was_cut_off_and_comes_back(
    proxy: Proxy, connect: Connect
) -> None:
    rig = await begin(connect, proxy.url, pinned=True)
    proxy.cut()
    await until(lambda: not rig.broker.trouble)
    await send_copies(rig, COUNT)
    await rig.settled(2 * COUNT + 1, timeout=60)
    seen = list(dict.fromkeys(copies_of(rig)))
    assert seen == list(range(2 * COUNT))


async def test_P8_copies_of_a_process_that_leaves_are_the_first_of_the_next(
    server: NatsServer, connect: Connect
) -> None:
    first = await begin(connect, server.url, pinned=False)
    second = await connect(server.url, ORDERED)
    await send_copies(second, COUNT)
    await first.broker.close()
    await second.settled(2 * COUNT, timeout=60)
    assert copies_of(second) == list(range(2 * COUNT))


async def test_P8_copies_that_a_process_still_has_are_left_with_it_by_the_one_that_is_to_have_the_share(
    server: NatsServer, connect: Connect
) -> None:
    first = await begin(connect, server.url, pinned=False)
    second = await another(connect, server.url, first, preferred=True)
    await until(lambda: share_of(second).copies.pull.attached)
    await send_copies(second, COUNT)
    await asyncio.sleep(5)  # longer than the first one waits for what runs, before it is asked to go again
    assert copies_of(second) == []
    assert copies_of(first) == list(range(COUNT))
    await first.settled(COUNT)
    await second.settled(COUNT, timeout=60)
    assert (copies_of(first), copies_of(second)) == (list(range(COUNT)), list(range(COUNT, 2 * COUNT)))


async def test_P3_a_copy_that_was_gathered_goes_back_when_the_server_pins_the_share_to_another_process(
    server: NatsServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_copies, "LOOK_AGAIN", 2.0)
    first = await begin(connect, server.url, pinned=False)
    second = await another(connect, server.url, first, preferred=True)
    share_of(second).events.blocked = True  # so that it is not the one
    await until(lambda: share_of(second).copies.pull.attached)
    await send_copies(second, COUNT)
    await until(lambda: share_of(second).copies.pull.held)
    await first.publish(b"event")
    await until(lambda: share_of(first).pin)
    await until(lambda: not share_of(second).copies.pull.held)
    share_of(second).events.blocked = False
    async with asyncio.timeout(60):
        while len(copies_of(first) + copies_of(second)) < 2 * COUNT or first.open or second.open:
            for rig in (first, second):
                await rig.broker.settle([(one, ACK) for one in rig.open])
            await asyncio.sleep(0.02)


async def test_P8_P9_copies_that_a_process_finishes_while_it_stops_are_left_with_it(
    server: NatsServer, connect: Connect
) -> None:
    first = await begin(connect, server.url, pinned=False)
    second = await connect(server.url, ORDERED)
    await first.feed.stop()
    await until(lambda: share_of(second).copies.pull.attached)
    await send_copies(second, COUNT)
    await asyncio.sleep(5)  # longer than a process is counted that says nothing
    assert copies_of(second) == []
    await first.settled(COUNT)
    await second.settled(COUNT, timeout=60)
    assert (copies_of(first), copies_of(second)) == (list(range(COUNT)), list(range(COUNT, 2 * COUNT)))


async def test_P8_a_copy_that_goes_to_a_process_that_stands_still_is_overtaken_by_none(
    server: NatsServer, proxy: Proxy, connect: Connect
) -> None:
    """The server does not know yet, and serves its request in turn with those of the one that took its place."""
    first = await begin(connect, proxy.url, pinned=False)
    await send_copies(first, COUNT, ROOM - COUNT)
    await first.settled(ROOM)
    assert share_of(first).copies.pull.asked == ROOM
    proxy.hold()
    second = await connect(server.url, ORDERED)
    await until(lambda: share_of(second).copies.pull.attached)
    for number in range(ROOM, 2 * ROOM):
        await send_copies(second, number, 1)
        await asyncio.sleep(0.2)
    await second.settled(ROOM, timeout=60)
    assert copies_of(second) == list(range(ROOM, 2 * ROOM))


async def test_P8_copies_that_go_elsewhere_while_they_are_taken_here_are_missed_and_overtaken_by_none(
    server: NatsServer, connect: Connect, bare: Client
) -> None:
    rig = await begin(connect, server.url, pinned=False)
    await rig.settled(COUNT)
    pull = share_of(rig).copies.pull
    request = b'{"batch": 3, "expires": 15000000000}'
    await bare.publish(f"$JS.API.CONSUMER.MSG.NEXT.{pull.stream}.{pull.durable}", request, reply="nobody.settles")
    await bare.subscribe("nobody.settles")
    await bare.flush()
    for number in range(COUNT, 2 * COUNT):
        await send_copies(rig, number, 1)
        await asyncio.sleep(0.1)
    await rig.settled(2 * COUNT, timeout=60)
    assert copies_of(rig) == list(range(2 * COUNT))


def share_of(rig: Rig) -> Share:
    """The share of the key `k`."""
    assert isinstance(rig.feed, OrderedFeed)
    return rig.feed.shares[slot_of("k") // 8]
