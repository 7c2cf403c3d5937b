"""The connection heals itself, and says so while it cannot (P10): traps 46 to 59 and 158, on real sockets."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.nats.conftest import Connect, Rig, position, until
from tests.integration.nats.server import NatsServer, Proxy
from tidings.brokers import _healing
from tidings.brokers.nats import link, pull
from tidings.brokers.nats.connection import Connection
from tidings.brokers.nats.options import parse
from tidings.brokers.nats.tokens import Token
from tidings.delivery import ACK, Release, Route
from tidings.errors import BrokerUnavailable, ConfigurationError

pytestmark = pytest.mark.server

HEALED = 40.0
"""Seconds in which every fault of these tests has to be over."""
PATIENT = "?ack_wait=5s"
"""For so long a process that is held up by the machine keeps what it has."""


async def works(rig: Rig, body: bytes) -> None:
    """Publishing and delivering go on."""
    async with asyncio.timeout(HEALED):
        while (await rig.broker.publish([rig.message(body, id=body.decode())], timeout=2))[0] is not None:
            pass
    await until(lambda: body in rig.bodies, HEALED)
    assert rig.broker.trouble == ""


async def test_P10_everything_resumes_after_the_server_was_killed(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url)
    await works(rig, b"before")
    await asyncio.to_thread(server.stop, signal.SIGKILL)
    await until(lambda: "no connection to" in rig.broker.trouble)
    await asyncio.to_thread(server.start)
    await until(lambda: rig.broker.trouble == "", HEALED)
    await works(rig, b"after")


async def test_trap_58_a_pull_that_died_with_the_server_is_asked_for_again(
    server: NatsServer, connect: Connect
) -> None:
    rig = await connect(server.url)
    await asyncio.to_thread(server.stop, signal.SIGTERM)
    await asyncio.to_thread(server.start)
    other = await connect(server.url, subscribe=False)
    await other.publish(b"for the one that waits")
    await until(lambda: rig.bodies == [b"for the one that waits"], HEALED)


async def test_trap_158_a_server_that_hangs_is_noticed_and_comes_back(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url)
    server.pause()
    await until(lambda: rig.broker.trouble != "", HEALED)
    server.resume()
    await works(rig, b"after")


async def test_P10_a_link_that_is_lost_in_the_moment_it_stands_holds_up_nobody(
    server: NatsServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials that expire do that. Whoever waits for a link must not wait without a pause: the loop stands then."""
    rig = await connect(server.url)
    opened, short_lived = link.Link.open, 3

    async def lost_at_once(self: link.Link, *where: Any) -> None:
        nonlocal short_lived
        await opened(self, *where)
        if short_lived:
            short_lived -= 1
            asyncio.get_running_loop().call_soon(self.abandon, "the server said: user authentication expired")

    monkeypatch.setattr(link.Link, "open", lost_at_once)
    monkeypatch.setattr(_healing, "FIRST_PAUSE", 1.0)
    await asyncio.to_thread(server.stop, signal.SIGKILL)
    await until(lambda: rig.broker.trouble != "", HEALED)
    await asyncio.to_thread(server.start)
    async with asyncio.timeout(HEALED):
        while short_lived or rig.broker.trouble:
            await rig.broker.publish([rig.message(b"while", id="while")], timeout=0.2)
            await asyncio.sleep(0.05)
    await works(rig, b"after")


@pytest.mark.parametrize(
    "said",
    [
        b"-ERR 'User Authentication Expired'\r\n",
        b"-ERR 'Maximum Payload Violation'\r\n",
        b"-ERR 'Stale Connection'\r\n",
        b"PONG\r\nPONG\r\nrubbish that is no protocol\r\n",
        b"MSG\r\n",
        b'INFO {"connect_urls": 7}\r\n',
    ],
)
async def test_traps_46_and_50_whatever_ends_the_librarys_client_is_healed(
    proxy: Proxy, connect: Connect, said: bytes
) -> None:
    rig = await connect(proxy.url)
    await works(rig, b"before")
    stood = proxy.connections
    proxy.inject(said)
    await until(lambda: proxy.connections >= stood + 2, HEALED)
    await works(rig, b"after")


async def test_trap_46_answers_that_nobody_waits_for_break_nothing(proxy: Proxy, connect: Connect) -> None:
    rig = await connect(proxy.url)
    proxy.inject(b"PONG\r\nMSG nobody.asked 999 5\r\nhello\r\n")
    await works(rig, b"after")
    assert proxy.connections == 2


async def test_trap_46_a_sink_that_raises_ends_nothing(
    server: NatsServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    rig = await connect(server.url, subscribe=False)
    seen: list[bytes] = []

    def sink(delivery: object) -> None:
        seen.append(b"")
        if len(seen) == 1:
            raise ValueError("a mistake in the core")

    await rig.broker.subscribe(rig.subscription, sink)
    with caplog.at_level(logging.ERROR, "tidings.nats"):
        await rig.publish(b"1", b"2", b"3")
        await until(lambda: len(seen) == 3)
    assert "could not be taken in" in caplog.text


async def test_trap_47_a_dead_way_with_unsent_bytes_is_left_for_a_new_one(
    proxy: Proxy, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server does not know yet, and sends into the dead way until what was asked there expires.
    monkeypatch.setattr(pull, "EXPIRES", 4.0)
    monkeypatch.setattr(pull, "HEARTBEAT", 2.0)
    rig = await connect(proxy.url + PATIENT)
    await works(rig, b"before")
    stood = proxy.connections
    proxy.freeze()
    big = [rig.message(b"x" * 900_000, id=f"big-{n}") for n in range(8)]
    results = await rig.broker.publish(big, timeout=1.0)
    assert all(isinstance(error, BrokerUnavailable) for error in results)
    assert "may be stored or not" in str(results[0])
    await until(lambda: proxy.connections >= stood + 2, HEALED)
    await works(rig, b"after")
    # The same ids once more: what had been stored is known, and nothing is there twice (trap 14).
    assert await rig.broker.publish(big, timeout=30) == [None] * 8
    await until(lambda: len(rig.got) >= 10)
    await rig.settled(10)
    assert sorted(len(body) for body in rig.bodies) == [5, 6] + [900_000] * 8


async def test_trap_47_closing_does_not_wait_for_a_dead_way(proxy: Proxy, connect: Connect) -> None:
    rig = await connect(proxy.url)
    proxy.freeze()
    await rig.broker.publish([rig.message(b"x" * 900_000) for _ in range(4)], timeout=0.2)
    async with asyncio.timeout(10):
        await rig.broker.close()


async def test_trap_52_a_long_outage_is_sat_out(
    server: NatsServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_healing, "LONGEST_PAUSE", 0.02)  # many attempts in a short time
    rig = await connect(server.url)
    await asyncio.to_thread(server.stop)
    await asyncio.sleep(2.0)
    await until(lambda: "nothing listens on" in rig.broker.trouble)
    await asyncio.to_thread(server.start)
    await works(rig, b"after")


async def test_trap_53_reconnecting_is_spread_out(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[tuple[float, float]] = []
    chance = random.Random(0)

    def spread(low: float, high: float) -> float:
        pauses.append((low, high))
        return 0.0

    monkeypatch.setattr(chance, "uniform", spread)
    monkeypatch.setattr(_healing, "random", chance)
    one = Connection(parse(server.url), "test")
    await one.start()
    await asyncio.to_thread(server.stop)
    await until(lambda: len(pauses) > 10)
    await one.close()
    assert {low for low, _ in pauses} == {0.0}, "from nothing on: the full range"
    assert [high for _, high in pauses][:4] == [0.05, 0.1, 0.2, 0.4]
    assert max(high for _, high in pauses) == _healing.LONGEST_PAUSE


async def test_trap_54_nothing_said_while_disconnected_is_sent_later(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url + "?ack_wait=1s")
    await rig.publish(b"given")
    await until(lambda: rig.got)
    await asyncio.to_thread(server.stop)
    settled, stored = await asyncio.gather(
        rig.broker.settle([(rig.got[0], ACK)]),
        rig.broker.publish([rig.message(b"never")], timeout=0.5),
    )
    assert isinstance(settled[0], BrokerUnavailable)
    assert isinstance(stored[0], BrokerUnavailable)
    assert "nothing was sent" in str(stored[0])
    await asyncio.to_thread(server.start)
    await until(lambda: len(rig.got) == 2, HEALED)
    assert rig.bodies == [b"given", b"given"], "it was not acknowledged behind our back"
    assert [one.body async for one in rig.broker.read(Route.EVENT, "order")] == [b"given"]


async def test_trap_55_what_is_under_way_when_the_broker_closes_is_told(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, subscribe=False)
    publishing = [asyncio.create_task(rig.broker.publish([rig.message()], timeout=3)) for _ in range(50)]
    await asyncio.sleep(0)
    await rig.broker.close()
    results = [(await one)[0] for one in publishing]
    assert all(result is None or isinstance(result, BrokerUnavailable) for result in results)


async def test_trap_56_a_deleted_consumer_is_told_and_not_made_again(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url)
    api = rig.broker._api
    await works(rig, b"before")
    await rig.settled(1)
    await api.call("CONSUMER.DELETE.order.stock_reserve")
    await until(lambda: "the position stock.reserve is gone" in rig.broker.trouble, HEALED)
    await asyncio.sleep(1.0)
    names = (await api.call("CONSUMER.NAMES.order")).get("consumers") or []
    assert names == []
    other = await connect(server.url, subscribe=False)  # a person restarts a process, which creates it
    await other.publish(b"after")
    await until(lambda: rig.broker.trouble == "", HEALED)
    await until(lambda: b"after" in rig.bodies, HEALED)


async def test_trap_59_a_closed_feed_takes_nothing_with_it(server: NatsServer, connect: Connect) -> None:
    first, second = await connect(server.url), await connect(server.url)
    await first.feed.close()
    await second.publish(*[b"%d" % n for n in range(20)])
    await second.settled(20)
    assert first.got == []
    assert {one.delivered for one in second.got} == {1}


async def test_trap_67_a_subject_that_is_not_granted_is_named(tmp_path: Path, connect: Connect) -> None:
    folder = tmp_path / "granted"
    grant = 'publish: { deny: ["order.>"] }'
    server = NatsServer(
        folder, extra=f"authorization {{ users: [ {{user: a, password: b, permissions: {{ {grant} }} }} ] }}"
    )
    server.start()
    try:
        rig = await connect(f"nats://a:b@127.0.0.1:{server.port}")
        (error,) = await rig.broker.publish([rig.message()], timeout=10)
        assert isinstance(error, ConfigurationError)
        assert "may not publish on order.placed" in str(error)
        assert "order.placed" in rig.broker.trouble
    finally:
        server.stop()


async def test_trap_30_a_slow_handlers_delivery_stays_its_own(server: NatsServer, connect: Connect) -> None:
    one = position(max_in_flight=4)
    slow = await connect(server.url + PATIENT, one)
    await slow.publish(*[b"%d" % n for n in range(4)])
    await until(lambda: len(slow.got) == 4)
    other = await connect(server.url + PATIENT, one)
    await asyncio.sleep(6.5)
    assert other.got == []
    assert await slow.broker.settle([(delivery, ACK) for delivery in slow.got]) == [None] * 4
    await asyncio.sleep(1.0)
    assert other.got == []


async def test_traps_22_and_154_what_expired_in_a_blocked_loop_is_not_given_back(
    server: NatsServer, connect: Connect
) -> None:
    rig = await connect(server.url + "?ack_wait=3s")
    await rig.publish(b"1", b"2")
    await until(lambda: len(rig.got) == 2)
    await rig.feed.stop()  # so that what comes again goes to the other
    other = await connect(server.url + "?ack_wait=3s", subscribe=False)
    token = rig.got[0].token
    assert isinstance(token, Token)
    time.sleep(4.5)  # the mistake that is meant
    await until(lambda: token.stale)
    (error,) = await rig.broker.settle([(rig.got[0], Release(0))])
    assert isinstance(error, BrokerUnavailable)
    assert "delivers it again by itself" in str(error)
    assert await rig.broker.settle([(rig.got[1], ACK)]) == [None], "an effect that is durable may be acknowledged"
    await other.subscribe()
    await other.settled(1)
    await asyncio.sleep(1.0)
    assert other.bodies == [b"1"]


async def test_trap_21_what_comes_again_while_it_is_still_here_is_not_handled_twice(
    server: NatsServer, connect: Connect
) -> None:
    rig = await connect(server.url + "?ack_wait=3s")
    await rig.publish(b"1", b"2")
    await until(lambda: len(rig.got) == 2)
    time.sleep(4.0)  # the server delivers both again meanwhile, to us
    async with asyncio.timeout(HEALED):
        while (await rig.broker._api.call("CONSUMER.INFO.order.stock_reserve"))["num_redelivered"] != 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    assert len(rig.got) == 2
    assert await rig.broker.settle([(rig.got[0], ACK), (rig.got[1], Release(0))]) == [None, None]
    await until(lambda: len(rig.got) == 3)
    assert rig.got[2].body == b"2"


async def test_trap_24_an_acknowledgement_whose_answer_is_lost_is_repeated(proxy: Proxy, connect: Connect) -> None:
    rig = await connect(proxy.url)
    await rig.publish(*[b"%d" % n for n in range(10)])
    await until(lambda: len(rig.got) == 10)
    inward = rig.broker._inward
    assert inward is not None
    assert inward.link is not None
    proxy.swallow = b"MSG " + inward.link._inbox  # every answer on the way to it
    settling = asyncio.create_task(rig.broker.settle([(one, ACK) for one in rig.got]))
    await asyncio.sleep(0.5)
    assert not settling.done()
    proxy.swallow = b""
    assert await settling == [None] * 10
    assert (await rig.feed.backlog()).in_flight == 0


async def test_a_missed_heartbeat_brings_a_new_request(
    proxy: Proxy, server: NatsServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "SILENCE", 2.0)
    monkeypatch.setattr(pull, "HEARTBEAT", 0.5)
    rig = await connect(proxy.url)
    feed = rig.feed
    inboxes = [slot.inbox for slot in feed.events._slots]
    proxy.swallow = b"NATS/1.0 "  # neither heartbeat nor any other word about a request arrives
    await until(lambda: feed.events._slots[0].inbox not in inboxes)
    proxy.swallow = b""
    await works(rig, b"after")


async def test_the_socket_gives_up_on_a_peer_that_takes_nothing(server: NatsServer) -> None:
    one = Connection(parse(server.url), "test")
    standing = await one.start()
    writer = standing._writer
    assert writer is not None
    sock = writer.get_extra_info("socket")
    assert sock.getsockopt(6, 18) == link.USER_TIMEOUT_MS  # IPPROTO_TCP, TCP_USER_TIMEOUT
    await one.close()


async def test_a_line_about_a_connection_says_which_one(
    server: NatsServer, proxy: Proxy, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tidings.nats"):
        rig = await connect(proxy.url)
        proxy.cut()
        await until(lambda: caplog.text.count("is connected again") == 2)
    lost = [one.getMessage().split(" lost")[0] for one in caplog.records if "lost the connection" in one.getMessage()]
    service = rig.subscription.position.split(".")[0]
    assert sorted(lost) == [f"tidings {service}", f"tidings {service} (deliveries)"]
