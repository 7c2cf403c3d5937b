"""A process that asked for a share and is not to have it: what the server gives it goes to another one at once."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.integration.nats.conftest import Connect, Rig, another, position, until
from tests.integration.nats.server import NatsServer, Proxy
from tidings.brokers.nats import consumers, share
from tidings.brokers.nats.consumers import pinned_in
from tidings.brokers.nats.hearing_out import STANDBY
from tidings.brokers.nats.ordered import OrderedFeed
from tidings.brokers.nats.share import Share
from tidings.partition import slot_of

pytestmark = [pytest.mark.server, pytest.mark.proves("P9", broker="nats", store="none")]

ORDERED = position(ordered=True)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pin that nobody gives back lasts for longer than any test waits."""
    monkeypatch.setattr(consumers, "PIN_TIMEOUT", 120.0)


def share_of(rig: Rig) -> Share:
    """That of the key `k`."""
    assert isinstance(rig.feed, OrderedFeed)
    return rig.feed.shares[slot_of("k") // 8]


async def asked(rig: Rig) -> None:
    """Wait until the server has a request for that share, and nobody is pinned."""

    async def found() -> tuple[str, int]:
        info = await share_of(rig).info()
        return pinned_in(info), info["num_waiting"]

    async with asyncio.timeout(20):
        while await found() != ("", 1):  # noqa: ASYNC110  # limited
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("fresh", [True, False])
async def test_P9_what_comes_while_a_quiet_process_restarts_is_not_kept_for_the_one_that_went(
    server: NatsServer, connect: Connect, fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share, "FRESH", 10.0 if fresh else 0.0)
    successor = await connect(server.url, ORDERED, subscribe=False)
    quiet = await connect(server.url, ORDERED)
    if not fresh:  # the last of the short requests is over as well
        await until(lambda: share_of(quiet).events._slots[0].until - time.monotonic() > STANDBY + 5.0)
    await asked(quiet)
    await quiet.broker.close()
    await successor.publish(b"meanwhile")
    await successor.subscribe()
    await until(lambda: successor.bodies == [b"meanwhile"])


async def test_P9_what_is_given_to_a_process_that_lets_a_share_go_is_with_the_next_one_at_once(
    server: NatsServer, connect: Connect
) -> None:
    first = await connect(server.url, ORDERED)
    await asked(first)
    second = await another(connect, server.url, first, preferred=True)
    await until(lambda: share_of(first).leaving)
    await second.publish(b"meanwhile")
    await until(lambda: second.bodies == [b"meanwhile"])
    assert first.bodies == []
    await until(lambda: not share_of(first).leaving)


async def test_P9_what_is_given_to_a_process_that_stops_is_with_the_next_one_at_once(
    server: NatsServer, connect: Connect
) -> None:
    first = await connect(server.url, ORDERED)
    await asked(first)
    await first.feed.stop()
    second = await connect(server.url, ORDERED)
    await second.publish(b"meanwhile")
    await until(lambda: second.bodies == [b"meanwhile"])
    await first.broker.close()
    assert first.bodies == []


async def lets_go_with_a_copy_at_work(connect: Connect, server: NatsServer, url: str) -> tuple[Rig, Rig]:
    """A process that has never been pinned and is to let the share go, which it will not: a copy of it takes long."""
    first = await connect(url, ORDERED)
    await asked(first)
    assert await first.broker.publish([first.copy()], timeout=20.0) == [None]
    await until(lambda: first.bodies == [b"copy"])
    second = await another(connect, server.url, first, preferred=True)
    await until(lambda: share_of(first).leaving)
    return first, second


async def test_P9_what_is_given_to_a_process_that_keeps_a_share_for_a_copy_is_with_the_next_one_at_once(
    server: NatsServer, connect: Connect
) -> None:
    first, second = await lets_go_with_a_copy_at_work(connect, server, server.url)
    await second.publish(b"meanwhile")
    await until(lambda: not share_of(first).leaving)
    await until(lambda: b"meanwhile" in first.bodies + second.bodies, timeout=10.0)


async def test_P10_a_share_that_stays_is_asked_for_also_where_the_connection_was_lost_meanwhile(
    server: NatsServer, proxy: Proxy, connect: Connect
) -> None:
    first, second = await lets_go_with_a_copy_at_work(connect, server, proxy.url)
    await until(lambda: first.got[0].withdrawn)  # it has heard out, and waits for the copy
    proxy.cut()
    await until(lambda: not share_of(first).leaving)
    await second.broker.close()
    third = await connect(server.url, ORDERED, subscribe=False)
    await third.publish(b"afterwards")
    await until(lambda: b"afterwards" in first.bodies, timeout=10.0)


async def test_P9_who_closes_the_connection_waits_for_a_feed_that_is_closing(
    server: NatsServer, connect: Connect
) -> None:
    successor = await connect(server.url, ORDERED, subscribe=False)
    first = await connect(server.url, ORDERED)
    await asked(first)
    closing = asyncio.create_task(first.feed.close())
    await until(lambda: first.feed._closed)
    await first.broker.close()
    assert closing.done()
    await successor.publish(b"meanwhile")
    await successor.subscribe()
    await until(lambda: successor.bodies == [b"meanwhile"])
