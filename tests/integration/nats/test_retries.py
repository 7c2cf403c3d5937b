"""The retry route and the logs on a real server."""

from __future__ import annotations

import asyncio
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nats
import pytest

from tests.integration.nats.conftest import Connect, Rig, position, until
from tests.integration.nats.server import NatsServer, Proxy
from tidings.brokers.nats import reading
from tidings.delivery import ACK, Release, Route
from tidings.errors import ConfigurationError
from tidings.partition import slot_of

pytestmark = pytest.mark.server


async def kept(rig: Rig) -> int:
    state: dict[str, Any] = (await rig.broker._api.call("STREAM.INFO.tidings-retry"))["state"]
    return int(state["messages"])


async def test_P6_a_copy_comes_when_it_is_due_and_leaves_nothing_behind(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url)
    now = time.time()
    copies = [rig.copy(b"%d" % n, due=now + 0.2 * n, id=f"c{n}") for n in range(5)]
    assert await rig.broker.publish(copies, timeout=30) == [None] * 5
    assert await rig.broker.publish(copies[4:], timeout=30) == [None], "the same id again is stored once"
    backlog = await rig.feed.backlog()
    not_yet = sum(time.time() < now + 0.2 * n for n in range(5))
    assert not_yet <= backlog.scheduled <= 4
    await until(lambda: len(rig.got) == 5)
    assert rig.bodies == [b"0", b"1", b"2", b"3", b"4"]
    assert time.time() >= now + 0.8
    delivery = rig.got[-1]
    assert (delivery.route, delivery.stream, delivery.slot) == (Route.RETRY, "order", slot_of("k"))
    assert delivery.origin[0] == "tidings-retry"
    assert all(not name.lower().startswith("nats-") for name in delivery.headers)
    await rig.settled(5)
    await asyncio.sleep(0.3)
    assert len(rig.got) == 5
    assert await kept(rig) == 0, "what was acknowledged is gone, or the stream would grow for ever"


async def test_P6_a_copy_that_the_server_sends_too_early_goes_back(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url)
    due = time.time() + 0.8
    stamp = datetime.fromtimestamp(due, UTC).isoformat()
    # As a server with a clock ahead of ours would deliver it.
    headers = {**rig.copy().headers, "tidings-due": stamp}
    early = rig.message(b"early", route=Route.RETRY, position="stock.reserve", headers=headers)
    assert await rig.broker.publish([early], timeout=30) == [None]
    await until(lambda: rig.got)
    assert time.time() >= due
    await rig.settled(1)


async def test_P6_what_was_due_while_the_server_was_away_comes_at_once(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url)
    due = time.time() + 0.5
    assert await rig.broker.publish([rig.copy(b"%d" % n, due=due) for n in range(10)], timeout=30) == [None] * 10
    await asyncio.to_thread(server.stop, signal.SIGKILL)
    await asyncio.sleep(1.0)
    await asyncio.to_thread(server.start)
    await rig.settled(10)
    assert sorted(rig.bodies) == [b"%d" % n for n in range(10)]


async def test_trap_27_a_thousand_waiting_copies_take_no_room(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, position(max_in_flight=2))
    later = time.time() + 3600
    assert set(await rig.broker.publish([rig.copy(due=later) for _ in range(1000)], timeout=30)) == {None}
    await rig.publish(b"event")
    await rig.settled(1)
    assert (await rig.feed.backlog()).scheduled == 1000


@pytest.mark.parametrize("limit", [1, 2, 16])
async def test_copies_and_events_share_the_limit_and_neither_blocks_the_other(
    server: NatsServer, connect: Connect, limit: int
) -> None:
    rig = await connect(server.url, position(max_in_flight=limit), subscribe=False)
    await rig.publish(*[b"event"] * 60)
    assert set(await rig.broker.publish([rig.copy() for _ in range(60)], timeout=30)) == {None}
    await rig.subscribe()
    seen = 0
    async with asyncio.timeout(60):
        while len(rig.got) < 120 or rig.open:
            await asyncio.sleep(0.005)
            assert len(rig.open) <= limit
            if rig.open:
                await rig.broker.settle([(rig.open[0], ACK)])
                seen = max(seen, len({one.route for one in rig.got}))
    assert seen == 2
    first_half = {one.route for one in rig.got[:60]}
    assert first_half == {Route.EVENT, Route.RETRY}


async def test_P6_what_is_given_back_keeps_its_delay_and_its_count(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url)
    await rig.publish(b"1")
    assert await rig.broker.publish([rig.copy(b"2")], timeout=30) == [None]
    await until(lambda: len(rig.got) == 2)
    at = time.time()
    assert await rig.broker.settle([(one, Release(0.5)) for one in rig.got]) == [None, None]
    await until(lambda: len(rig.got) == 4)
    assert time.time() >= at + 0.5
    assert [one.delivered for one in rig.got[2:]] == [2, 2]
    assert {one.origin for one in rig.got[2:]} == {one.origin for one in rig.got[:2]}
    await rig.settled(4)


async def test_trap_44_the_other_form_of_acknowledgement_subjects_works_as_well(
    tmp_path: Any, connect: Connect
) -> None:
    server = NatsServer(tmp_path / "v2", extra="feature_flags { js_ack_fc_v2: true }").start()
    try:
        rig = await connect(server.url + "?ack_wait=5s", position(ordered=True))
        await rig.publish(*[b"%d" % n for n in range(20)])
        await until(lambda: len(rig.got) == 20)
        assert b"$JS.ACK.order" not in getattr(rig.got[0].token, "reply", b""), "the flag is on"
        await asyncio.sleep(6.0)
        assert [one.delivered for one in rig.got] == [1] * 20, "they were kept alive"
        assert [one.origin for one in rig.got] == [("order", n + 1) for n in range(20)]
        await rig.settled(20)
        assert (await rig.feed.backlog()).in_flight == 0
        other = await connect(server.url, position(ordered=True))
        await rig.publish(b"open", b"later")
        await until(lambda: len(rig.got) == 22)
        await rig.feed.close()
        await other.settled(2)
        assert other.bodies == [b"open", b"later"]
    finally:
        server.stop()


async def test_a_log_is_read_from_its_beginning_or_from_a_time(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, subscribe=False)
    await rig.publish(*[b"%d" % n for n in range(200)])
    await asyncio.sleep(0.05)
    middle = datetime.now(UTC)
    await rig.publish(*[b"%d" % n for n in range(200, 300)])
    read = rig.broker.read
    assert [int(one.body) async for one in read(Route.EVENT, "order")] == list(range(300))
    assert [int(one.body) async for one in read(Route.EVENT, "order", since=middle)] == list(range(200, 300))
    future = middle + timedelta(hours=1)
    assert [one async for one in read(Route.EVENT, "order", since=future)] == []
    assert [one async for one in read(Route.DEAD)] == []
    with pytest.raises(ConfigurationError, match="there is no stream 'nope'; the streams are: order, tidings-dead"):
        _ = [one async for one in read(Route.EVENT, "nope")]
    names = (await rig.broker._api.call("CONSUMER.NAMES.order"))["consumers"]
    assert names == ["stock_reserve"], "reading leaves nothing behind"


async def test_P11_a_log_of_small_events_and_then_large_ones_is_read_in_pieces_of_bounded_size(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = NatsServer(tmp_path / "large", max_payload="8MB").start()
    try:
        rig = await connect(server.url, subscribe=False)
        sizes = [100] * 300 + [900_000] * 30
        await rig.publish(*[b"x" * size for size in sizes], timeout=20)
        bare = await nats.connect(server.url)
        await bare.jetstream().publish("order.placed", b"x" * 6_000_000)
        await bare.close()
        pieces: list[int] = []
        fetch = reading._fetch

        async def watched(*args: Any) -> list[reading.Found]:
            found = await fetch(*args)
            pieces.append(sum(len(one.body) for _, one in found))
            return found

        monkeypatch.setattr(reading, "_fetch", watched)
        assert [len(one.body) async for one in rig.broker.read(Route.EVENT, "order")] == [*sizes, 6_000_000]
    finally:
        server.stop()
    assert pieces[-1] == 6_000_000, "what is larger comes alone"
    assert max(pieces[:-1]) <= reading.BATCH_BYTES + 900_000


async def test_a_log_is_followed_through_a_killed_server(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, subscribe=False)
    found: list[int] = []

    async def follow() -> None:
        async for one in rig.broker.read(Route.EVENT, "order", follow=True):
            found.append(int(one.body))

    following = asyncio.create_task(follow())
    await rig.publish(*[b"%d" % n for n in range(100)])
    await until(lambda: len(found) == 100)
    await asyncio.to_thread(server.stop, signal.SIGKILL)
    await asyncio.sleep(0.5)
    await asyncio.to_thread(server.start)
    await rig.publish(*[b"%d" % n for n in range(100, 150)], timeout=10)
    await until(lambda: len(found) == 150)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert found == list(range(150))


async def test_a_log_is_read_whole_over_connections_that_are_cut(
    server: NatsServer, proxy: Proxy, connect: Connect
) -> None:
    rig = await connect(proxy.url, subscribe=False)
    await rig.publish(*[b"%d" % n for n in range(3000)])
    found = []
    async for one in rig.broker.read(Route.EVENT, "order"):
        found.append(int(one.body))
        if len(found) % 700 == 0:
            proxy.cut()
    assert found == list(range(3000))


async def test_what_expired_is_passed_over(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, subscribe=False)
    await rig.publish(b"old", b"older")
    api = rig.broker._api
    config = (await api.call("STREAM.INFO.order"))["config"]
    await api.call("STREAM.UPDATE.order", {**config, "max_age": 10**9, "duplicate_window": 10**9})
    async with asyncio.timeout(30):
        while (await api.call("STREAM.INFO.order"))["state"]["messages"]:  # noqa: ASYNC110  # the server's to change
            await asyncio.sleep(0.1)
    assert [one.body async for one in rig.broker.read(Route.EVENT, "order")] == []
    await api.call("STREAM.UPDATE.order", config)  # what comes now has time
    await rig.publish(b"new")
    assert [one.body async for one in rig.broker.read(Route.EVENT, "order")] == [b"new"]


async def test_P11_a_small_limit_of_bytes_is_used_to_the_full_and_never_exceeded(
    server: NatsServer, connect: Connect
) -> None:
    rig = await connect(server.url, position(max_in_flight_bytes=100_000))
    await rig.publish(*[b"x" * 2000] * 300)
    await until(lambda: len(rig.open) > 30)
    most = 0
    async with asyncio.timeout(20):
        while len(rig.got) < 300 or rig.open:
            await asyncio.sleep(0.002)
            flying = rig.open
            most = max(most, sum(len(one.body) for one in flying))
            await rig.broker.settle([(one, ACK) for one in flying[:7]])
    assert 50_000 < most <= 100_000


async def test_P11_a_strangers_message_larger_than_the_limit_comes_alone(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, position(max_in_flight=8, max_in_flight_bytes=1_000_000))
    link = await rig.broker._main.ready(1) if rig.broker._main else None
    assert link is not None
    for body in (b"a", b"x" * 1_900_000, b"b", b"y" * 1_900_000, b"c"):
        await link.ask("order.placed", body, 5)
    async with asyncio.timeout(20):
        while len(rig.got) < 5 or rig.open:
            await asyncio.sleep(0.02)
            flying = rig.open
            assert len(flying) == 1 or max((len(one.body) for one in flying), default=0) < 1_000_000
            await rig.broker.settle([(one, ACK) for one in flying[:1]])
    assert sorted(len(one.body) for one in rig.got) == [1, 1, 1, 1_900_000, 1_900_000]
