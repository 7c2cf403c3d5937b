"""The connection heals itself, and says so while it cannot (P10), on real sockets."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from tests.integration.rabbitmq.conftest import Connect, Rig, position, until
from tests.proxy import Proxy
from tidings.brokers.rabbitmq import connection
from tidings.brokers.rabbitmq.link import Link
from tidings.delivery import ACK, Delivery, Route
from tidings.errors import BrokerUnavailable
from tools.services.rabbitmq import RabbitMQ

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="rabbitmq")]

HEALED = 60.0
"""Seconds in which every fault of these tests has to be over."""


async def stored(rig: Rig, body: bytes) -> None:
    """Publish until it is."""
    async with asyncio.timeout(HEALED):
        while (await rig.broker.publish([rig.message(body)], timeout=1))[0] is not None:  # noqa: ASYNC110  # it is asked
            await asyncio.sleep(0.05)


async def works(rig: Rig, body: bytes) -> None:
    """Publishing and delivering go on."""
    await stored(rig, body)
    await until(lambda: body in rig.bodies, HEALED)
    await until(lambda: rig.broker.trouble == "", HEALED)


def through(proxy: Proxy, more: str = "") -> str:
    return f"amqp://tidings:tidings@127.0.0.1:{proxy.port}?heartbeat=4s{more}"


def link_of(rig: Rig) -> Link:
    main = rig.broker._main
    assert main is not None
    assert main._link is not None
    return main._link


async def test_P10_everything_resumes_after_the_server_was_killed(server: RabbitMQ, connect: Connect) -> None:
    rig = await connect(server.url)
    await works(rig, b"before")
    await asyncio.to_thread(server.stop, signal.SIGKILL)
    await until(lambda: "no connection to" in rig.broker.trouble)
    await asyncio.to_thread(server.start)
    await works(rig, b"after")
    letters = [one async for one in rig.broker.read(Route.DEAD)]
    assert letters == []


async def test_numbers_of_channels_are_used_again_where_the_server_allows_few(tmp_path: Path, connect: Connect) -> None:
    with RabbitMQ(tmp_path / "few", "channel_max = 12") as server:
        rig = await connect(server.url)
        await works(rig, b"before")
        link = link_of(rig)
        for _ in range(20):
            await (await link.channel(5.0)).close(5.0)
        with pytest.raises(BrokerUnavailable, match="allows 12 channels at a time"):
            for _ in range(20):
                await link.channel(5.0)
        assert link_of(rig) is link, "the server threw the connection out"
        await works(rig, b"after")


async def test_who_stops_waiting_for_a_channel_leaves_none_behind(rabbitmq_url: str, connect: Connect) -> None:
    rig = await connect(rabbitmq_url)
    await works(rig, b"before")
    link = link_of(rig)
    before = len(link._channels)
    for _ in range(50):
        opening = asyncio.create_task(link.channel(5.0))
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
    await until(lambda: len(link._channels) == before)
    await works(rig, b"after")


async def test_trap_158_a_server_that_hangs_is_noticed_and_comes_back(
    server: RabbitMQ, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SILENT_TICKS", 3)
    rig = await connect(server.url + "?connect_timeout=6s")
    await works(rig, b"before")
    server.pause()
    try:
        await until(lambda: "silent" in rig.broker.trouble or "no answer" in rig.broker.trouble, HEALED)
    finally:
        server.resume()
    await works(rig, b"after")


async def test_P10_connections_that_are_cut_again_and_again_lose_nothing(proxy: Proxy, connect: Connect) -> None:
    rig = await connect(through(proxy))
    sent: list[bytes] = []
    for number in range(5):
        body = b"%d" % number
        await stored(rig, body)
        sent.append(body)
        proxy.cut()
    await until(lambda: set(sent) <= set(rig.bodies), HEALED)


async def test_P10_a_connection_that_died_without_a_word_is_replaced(proxy: Proxy, connect: Connect) -> None:
    rig = await connect(through(proxy))
    await works(rig, b"before")
    proxy.freeze()
    await works(rig, b"after")
    assert proxy.connections >= 4


async def test_trap_118_a_server_that_takes_no_messages_is_trouble_and_a_publish_ends_in_time(
    server: RabbitMQ, connect: Connect
) -> None:
    rig = await connect(server.url)
    await works(rig, b"before")
    await asyncio.to_thread(server.control, "set_disk_free_limit", "1000GB")
    deadline = time.monotonic() + HEALED
    while "takes no messages" not in rig.broker.trouble:
        await rig.broker.publish([rig.message(b"during")], timeout=0.5)
        assert time.monotonic() < deadline
    began = time.monotonic()
    (error,) = await rig.broker.publish([rig.message(b"more")], timeout=0.5)
    assert error is not None
    assert "takes no messages" in str(error)
    assert time.monotonic() - began < 10
    for one in rig.open:  # deliveries have a way of their own
        assert await rig.broker.settle([(one, ACK)]) == [None]
    await asyncio.to_thread(server.control, "set_disk_free_limit", "50MB")
    await works(rig, b"after")


@pytest.mark.parametrize("ordered", [False, True])
async def test_P3_trap_118_what_is_done_is_acknowledged_while_a_server_takes_no_messages(
    server: RabbitMQ, connect: Connect, ordered: bool
) -> None:
    """Or what stands in its memory could never leave it."""
    rig = await connect(server.url, position(ordered=ordered))
    await rig.publish(*(b"%d" % n for n in range(4)))
    await until(lambda: len(rig.got) == 4)
    await asyncio.to_thread(server.control, "set_disk_free_limit", "1000GB")
    await asyncio.sleep(3.0)  # in which the processes of an ordered position say a word or two
    assert await rig.broker.settle([(one, ACK) for one in rig.open]) == [None] * 4
    await asyncio.to_thread(server.control, "set_disk_free_limit", "50MB")
    await works(rig, b"after")


async def test_P11_what_a_server_does_not_take_is_not_sent_again_and_again(server: RabbitMQ, connect: Connect) -> None:
    rig = await connect(server.url)
    await works(rig, b"before")
    await asyncio.to_thread(server.control, "set_disk_free_limit", "1000GB")
    body = b"during" + b"x" * 1_000_000
    for _ in range(20):
        (error,) = await rig.broker.publish([rig.message(body, id="the-same")], timeout=0.3)
        assert error is not None
    await asyncio.to_thread(server.control, "set_disk_free_limit", "50MB")
    for one in rig.open:
        await rig.broker.settle([(one, ACK)])
    await works(rig, b"after")
    assert rig.bodies.count(body) <= 10, "what was tried while the server took nothing was kept here, all of it"


async def test_P8_a_process_that_was_cut_off_drops_what_it_has_before_another_gets_it(
    proxy: Proxy, rabbitmq_url: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SILENT_TICKS", 1000)  # it does not notice, and must not rely on that
    subscription = position(ordered=True)
    far = await connect(through(proxy), subscription)
    await far.publish(*(b"%d" % number for number in range(5)))
    await until(lambda: len(far.got) == 5)
    near = await connect(rabbitmq_url, subscription, subscribe=False)
    kept: list[Delivery] = []

    def take(delivery: Delivery) -> None:
        far.feed.fence()  # type: ignore[attr-defined]  # what the other would ask before it begins anything
        kept.extend(one for one in far.got if not one.withdrawn)
        near.got.append(delivery)

    await near.broker.subscribe(subscription, take)
    proxy.hold()
    try:
        await until(lambda: far.feed.fence() == "" and all(one.withdrawn for one in far.got), HEALED)  # type: ignore[attr-defined]
        await until(lambda: len(near.got) >= 5, HEALED)
        assert kept == [], "it had them before the other let go"
        assert near.bodies[:5] == [b"0", b"1", b"2", b"3", b"4"]
    finally:
        proxy.release()
