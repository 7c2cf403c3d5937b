"""Publishing on a real server: nothing counts as stored that is not, and nothing is stored twice."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.integration.nats.conftest import Connect, Rig, until
from tests.integration.nats.server import NatsServer, Proxy
from tidings.brokers.nats import atomic
from tidings.delivery import Message, Route
from tidings.errors import BrokerUnavailable, EventTooLarge, NotStored
from tidings.publisher import outlet_of
from tidings.stores.sqlalchemy import SqlAlchemyStore

pytestmark = pytest.mark.server


async def stored(rig: Rig, stream: str = "order") -> list[bytes]:
    return [one.body async for one in rig.broker.read(Route.EVENT, stream)]


async def info(rig: Rig, stream: str = "order") -> dict[str, Any]:
    return dict((await rig.broker._api.call(f"STREAM.INFO.{stream}"))["state"])


def many(rig: Rig, count: int, start: int = 0) -> list[Message]:
    return [rig.message(b"%d" % n, id=f"m{n}", key=f"k{n % 7}") for n in range(start, start + count)]


async def test_a_large_call_is_stored_in_order_and_once(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, subscribe=False)
    messages = many(rig, 2500)
    assert set(await rig.broker.publish(messages, timeout=30)) == {None}
    assert await stored(rig) == [b"%d" % n for n in range(2500)]
    assert set(await rig.broker.publish(messages, timeout=30)) == {None}
    assert (await info(rig))["messages"] == 2500


async def test_P8_what_the_server_turns_away_for_a_moment_is_overtaken_by_no_later_event_of_its_key(
    tmp_path: Path, connect: Connect
) -> None:
    with NatsServer(tmp_path / "busy", jetstream="sync_interval: always\nmax_buffered_msgs: 8") as server:
        rig = await connect(server.url, subscribe=False)
        few = [rig.message(b"%d" % n, id=f"m{n}", key=f"k{n % 2}") for n in range(30)]
        more = [rig.message(b"%d" % n, id=f"m{n}", key=f"k{n % 2}") for n in range(30, 200)]
        for call in (few, [*more, more[0]]):  # an id twice: they cannot leave as one batch
            assert set(await rig.broker.publish(call, timeout=20)) == {None}
        numbers = [int(body) for body in await stored(rig)]
    for key in (0, 1):
        assert [number for number in numbers if number % 2 == key] == list(range(key, 200, 2))


async def test_P10_an_event_that_is_too_large_for_a_server_that_came_back_smaller_takes_no_other_with_it(
    server: NatsServer, connect: Connect
) -> None:
    rig = await connect(server.url, subscribe=False)
    await asyncio.to_thread(server.stop)
    server.configure(max_payload="512KB")
    await asyncio.to_thread(server.start)
    await until(lambda: rig.broker.reconnects and not rig.broker.trouble)
    large, small = rig.message(b"x" * 900_000), rig.message(b"small", key="other")
    results = await rig.broker.publish([large, small], timeout=5)
    assert isinstance(results[0], EventTooLarge)
    assert results[1] is None
    assert rig.broker.reconnects == 1


async def test_trap_39_a_batch_with_a_known_id_goes_one_by_one(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, subscribe=False)
    messages = many(rig, 100)
    assert await rig.broker.publish(messages[50:51], timeout=30) == [None]
    assert set(await rig.broker.publish(messages, timeout=30)) == {None}
    assert (await info(rig))["messages"] == 100


async def test_trap_39_a_call_with_an_id_twice_stores_it_once(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, subscribe=False)
    messages = many(rig, 100)
    assert set(await rig.broker.publish([*messages, *messages[:3]], timeout=30)) == {None}
    assert (await info(rig))["messages"] == 100


async def test_a_stream_without_batches_takes_them_one_by_one(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, subscribe=False)
    api = rig.broker._api
    config = (await api.call("STREAM.INFO.order"))["config"]
    await api.call("STREAM.UPDATE.order", {**config, "allow_atomic": False})
    assert set(await rig.broker.publish(many(rig, 200), timeout=30)) == {None}
    assert (await info(rig))["messages"] == 200


async def test_a_batch_is_one_write_of_the_server(
    server: NatsServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await connect(server.url, subscribe=False)
    answers: list[bool] = []
    real = atomic.store_batch

    async def watched(*args: Any) -> bool:
        answers.append(await real(*args))
        return answers[-1]

    monkeypatch.setattr("tidings.brokers.nats.publishing.store_batch", watched)
    await rig.broker.publish([rig.message(key=f"k{n}") for n in range(atomic.FEWEST - 1)], timeout=30)
    assert answers == []
    await rig.broker.publish(many(rig, 8), timeout=30)  # a key stands in them twice, and its order is kept
    assert answers == [True]
    answers.clear()
    await rig.broker.publish(many(rig, 1500, start=1000), timeout=30)
    assert answers == [True, True]
    await rig.broker.publish(many(rig, 100, start=1000), timeout=30)
    assert answers == [True, True, False]


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[SqlAlchemyStore]:
    store = SqlAlchemyStore(f"sqlite:///{tmp_path / 'shop.db'}", poll=0.02)
    await store.open()
    yield store
    await store.close()


async def relay_all(store: SqlAlchemyStore, rig: Rig) -> None:
    relaying = asyncio.create_task(store.relay(outlet_of(rig.broker)))
    async with asyncio.timeout(60):
        while (await store.outbox_backlog()).waiting:  # noqa: ASYNC110  # the outbox has no event for it
            await asyncio.sleep(0.02)
    relaying.cancel()
    await asyncio.wait({relaying}, timeout=10)


async def test_an_outbox_of_few_keys_leaves_in_large_batches_and_in_order(
    server: NatsServer, connect: Connect, outbox: SqlAlchemyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await connect(server.url, subscribe=False)
    sizes: list[int] = []
    real = atomic.store_batch

    async def watched(link: Any, frames: Any, timeout: float) -> bool:
        sizes.append(len(frames))
        return await real(link, frames, timeout)

    monkeypatch.setattr("tidings.brokers.nats.publishing.store_batch", watched)
    async with outbox.transaction() as db:
        await outbox.emit(db, many(rig, 2500))
    await relay_all(outbox, rig)
    assert sizes == [1000, 1000, 500]
    assert await stored(rig) == [b"%d" % n for n in range(2500)]


async def test_trap_39_a_known_id_in_the_outbox_costs_no_event_and_no_order(
    server: NatsServer, connect: Connect, outbox: SqlAlchemyStore
) -> None:
    """What a crash between publishing and taking out leaves."""
    rig = await connect(server.url, subscribe=False)
    messages = many(rig, 300)
    assert await rig.broker.publish(messages[3:5], timeout=30) == [None, None]
    async with outbox.transaction() as db:
        await outbox.emit(db, messages)
    await relay_all(outbox, rig)
    found = [int(body) for body in await stored(rig)]
    assert found[:2] == [3, 4]
    assert sorted(found) == list(range(300))
    for key in range(7):
        mine = [number for number in found[2:] if number % 7 == key]
        assert mine == sorted(mine)


async def test_one_bad_message_does_not_take_the_others_with_it(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, subscribe=False)
    messages = many(rig, 100)
    messages[10] = rig.message(b"x" * (1024 * 1024 + 1))
    messages[20] = rig.message(stream="nope", type="nope.a")
    results = await rig.broker.publish(messages, timeout=5)
    wrong = {index: type(error) for index, error in enumerate(results) if error is not None}
    assert wrong == {10: EventTooLarge, 20: NotStored}
    assert (await info(rig))["messages"] == 98


async def test_trap_15_an_answer_of_somebody_else_is_no_proof(
    server: NatsServer, connect: Connect, bare: Client
) -> None:
    async def lie(message: Msg) -> None:
        await message.respond(json.dumps({"stream": "FAKE", "seq": 1}).encode())

    rig = await connect(server.url, subscribe=False)
    await bare.subscribe("lies.>", cb=lie)
    await bare.request("lies.nothing", b"", timeout=20)  # a flush would not prove it (trap 48)
    (error,) = await rig.broker.publish([rig.message(stream="lies", type="lies.told")], timeout=20)
    assert isinstance(error, NotStored)
    assert "not the stream 'lies' answered" in str(error)


async def test_trap_15_a_subject_of_another_stream_is_not_taken_for_ours(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, subscribe=False)
    await rig.broker._api.call("STREAM.CREATE.other", {"name": "other", "subjects": ["sale.>"]})
    (error,) = await rig.broker.publish([rig.message(stream="sale", type="sale.made")], timeout=20)
    assert isinstance(error, NotStored)
    assert (await info(rig, "other"))["messages"] == 0


async def test_trap_18_and_19_a_full_stream_refuses_and_says_how_to_make_room(
    server: NatsServer, connect: Connect
) -> None:
    rig = await connect(server.url, subscribe=False)
    api = rig.broker._api
    config = (await api.call("STREAM.INFO.order"))["config"]
    await api.call("STREAM.UPDATE.order", {**config, "max_msgs": 3})
    results = await rig.broker.publish(many(rig, 5), timeout=5)
    assert [type(error) for error in results] == [type(None)] * 3 + [NotStored] * 2
    assert "the stream 'order' is full" in str(results[3])
    assert "nats stream edit order" in str(results[3])
    assert await stored(rig) == [b"0", b"1", b"2"], "nothing old was dropped for it"
    results = await rig.broker.publish(many(rig, 100, start=50), timeout=5)
    assert {type(error) for error in results} == {NotStored}


async def test_trap_16_publishing_waits_for_a_server_that_restarts(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, subscribe=False)

    async def restart() -> None:
        await asyncio.to_thread(server.stop, signal.SIGKILL)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.start)

    restarting = asyncio.create_task(restart())
    messages = many(rig, 3000)
    for start in range(0, 3000, 100):
        assert set(await rig.broker.publish(messages[start : start + 100], timeout=30)) == {None}
        await asyncio.sleep(0.02)
    await restarting
    assert await stored(rig) == [b"%d" % n for n in range(3000)]


async def test_trap_14_an_answer_that_is_lost_is_told_as_not_known(
    server: NatsServer, proxy: Proxy, connect: Connect
) -> None:
    rig = await connect(proxy.url, subscribe=False)
    proxy.swallow = b'"seq"'
    results = await rig.broker.publish(many(rig, 3), timeout=1)
    assert {type(error) for error in results} == {BrokerUnavailable}
    assert "publishing it again under the same id is safe" in str(results[0])
    proxy.swallow = b""
    assert await rig.broker.publish(many(rig, 3), timeout=30) == [None] * 3
    assert (await info(rig))["messages"] == 3


async def test_trap_14_a_connection_cut_while_a_batch_is_stored_doubles_nothing(
    server: NatsServer, proxy: Proxy, connect: Connect
) -> None:
    rig = await connect(proxy.url, subscribe=False)
    for part in range(12):
        publishing = asyncio.create_task(rig.broker.publish(many(rig, 800, start=part * 800), timeout=30))
        await asyncio.sleep(0.002 * part)
        proxy.cut()
        assert set(await publishing) == {None}
    assert sorted(map(int, await stored(rig))) == list(range(12 * 800))


async def test_trap_61_calls_that_fail_leave_nothing_behind(server: NatsServer, proxy: Proxy, connect: Connect) -> None:
    rig = await connect(proxy.url, subscribe=False)
    proxy.swallow = b'"seq"'
    for _ in range(20):
        await rig.broker.publish(many(rig, 5), timeout=0.05)
    proxy.swallow = b""
    assert await rig.broker.publish(many(rig, 5), timeout=30) == [None] * 5
    main = rig.broker._main
    assert main is not None
    assert main.link is not None
    assert main.link._awaited == {}


async def test_cancelling_a_call_leaves_the_broker_well(server: NatsServer, proxy: Proxy, connect: Connect) -> None:
    rig = await connect(proxy.url, subscribe=False)
    proxy.swallow = b'"seq"'
    publishing = asyncio.create_task(rig.broker.publish(many(rig, 3), timeout=10))
    await asyncio.sleep(0.1)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    proxy.swallow = b""
    assert await rig.broker.publish(many(rig, 3), timeout=30) == [None] * 3
    assert rig.broker.trouble == ""
