"""Streams and positions: created as declared, compared where they exist, never changed and never taken from others."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta

import msgspec
import pytest

from tests.integration.nats.conftest import Connect, Rig, plan, position
from tests.integration.nats.server import NatsServer
from tidings.brokers.nats.api import Api, ApiError
from tidings.brokers.nats.broker import NatsBroker
from tidings.delivery import Message
from tidings.errors import BrokerUnavailable, ConfigurationError, InvalidEvent
from tidings.ports import Plan, StreamPlan
from tidings.rolling import BELIEVED

pytestmark = pytest.mark.server

SECOND = 10**9


def api_of(rig: Rig) -> Api:
    return rig.broker._api


async def test_what_is_created_keeps_the_promises(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url + "?ack_wait=20s", position(start="new", types=("order.placed", "order.paid")))
    api = api_of(rig)
    order = (await api.call("STREAM.INFO.order"))["config"]
    wanted = {
        "subjects": ["order.>"],
        "retention": "limits",
        "discard": "new",
        "storage": "file",
        "max_age": 7 * 24 * 3600 * SECOND,
        "duplicate_window": 120 * SECOND,
        "deny_delete": True,
        "deny_purge": True,
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
        "allow_atomic": True,
    }
    assert {name: order.get(name) for name in wanted} == wanted
    assert order["metadata"]["tidings-partitions"] == "64"
    dead = (await api.call("STREAM.INFO.tidings-dead"))["config"]
    assert (dead["max_age"], dead["deny_purge"], dead["deny_delete"], dead["discard"]) == (0, True, True, "new")
    consumer = (await api.call("CONSUMER.INFO.order.stock_reserve"))["config"]
    assert consumer["filter_subjects"] == ["order.paid", "order.paid.*.*", "order.placed", "order.placed.*.*"]
    # Traps 9, 26, 31 and 32: explicit acks said aloud, unlimited deliveries, no backoff, no threshold.
    assert (consumer["ack_policy"], consumer["max_deliver"], consumer["ack_wait"]) == ("explicit", -1, 20 * SECOND)
    assert consumer["deliver_policy"] == "new"
    assert not consumer.get("backoff")
    assert not consumer.get("inactive_threshold")
    assert consumer["metadata"]["tidings-position"] == "stock.reserve"
    assert consumer["metadata"]["tidings-types"] == "order.paid,order.placed"


async def test_trap_37_no_event_and_no_client_can_wipe_a_stream(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, subscribe=False)
    await rig.publish(b"1", b"2")
    for name in ("Nats-Rollup", "nats-ttl", "Nats-Expected-Last-Sequence", "Nats-Trace-Only"):
        (error,) = await rig.broker.publish([rig.message(headers={name: "all"})], timeout=3)
        assert isinstance(error, InvalidEvent)
    for request, body in (("STREAM.PURGE.order", None), ("STREAM.MSG.DELETE.order", {"seq": 1})):
        with pytest.raises(ApiError):
            await api_of(rig).call(request, body)
    assert (await api_of(rig).call("STREAM.INFO.order"))["state"]["messages"] == 2


async def test_trap_34_a_difference_is_told_with_the_command_that_settles_it(
    server: NatsServer, connect: Connect
) -> None:
    rig = await connect(server.url, subscribe=False)
    broker = NatsBroker(server.url + "?ack_wait=5s")
    other = position(types=("order.placed", "order.paid"))
    try:
        drifts = await broker.open(
            Plan(service="stock", streams=(StreamPlan(name="order", keep=timedelta(days=1)),), subscriptions=(other,))
        )
    finally:
        await broker.close()
    told = {drift.what: str(drift) for drift in drifts}
    assert set(told) == {
        "max_age of stream order",
        "ack_wait of position stock.reserve",
        "filter_subjects of position stock.reserve",
        "ack_wait of position stock.reserve (retry)",
    }
    age = told["max_age of stream order"]
    assert "the code says 1 day, 0:00:00, the broker has 7 days" in age
    assert "nats stream edit order --max-age=86400s" in age
    assert "nats consumer edit order stock_reserve --wait=5s" in told["ack_wait of position stock.reserve"]
    filters = told["filter_subjects of position stock.reserve"]
    assert "--filter=order.paid --filter=order.paid.*.*" in filters
    config = (await api_of(rig).call("CONSUMER.INFO.order.stock_reserve"))["config"]
    assert config["ack_wait"] == 15 * SECOND, "it is reported, never applied"
    assert await rig.broker.open(plan(position())) == [], "what is as declared is no difference"
    await rig.broker.close()


async def test_how_long_events_are_kept_is_what_the_server_has_and_not_what_the_code_says(
    server: NatsServer, connect: Connect
) -> None:
    rig = await connect(server.url)
    assert await rig.feed.keeps() == timedelta(days=7)
    api = api_of(rig)
    config = (await api.call("STREAM.INFO.order"))["config"]
    await api.call("STREAM.UPDATE.order", config | {"max_age": 30 * 24 * 3600 * SECOND})
    assert await rig.feed.keeps() == timedelta(days=30)
    await api.call("STREAM.UPDATE.order", config | {"max_age": 0})
    assert await rig.feed.keeps() is None
    await api.call("STREAM.DELETE.order")
    with pytest.raises(BrokerUnavailable, match="no stream 'order'"):
        await rig.feed.keeps()


async def test_a_position_that_cannot_be_trusted_is_refused(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, position("shop.other"), subscribe=False)
    api = api_of(rig)

    async def make(**config: object) -> str:
        body = {"durable_name": "stock_reserve", "filter_subject": "order.placed", **config}
        await api.call(
            "CONSUMER.CREATE.order.stock_reserve", {"stream_name": "order", "config": body, "action": "create"}
        )
        try:
            return await refused(server.url)
        finally:
            await api.call("CONSUMER.DELETE.order.stock_reserve")

    ours = {"metadata": {"tidings-position": "stock.reserve"}}
    assert "that Tidings did not make" in await make(ack_policy="explicit")
    assert "ack policy explicit" in await make(ack_policy="none", **ours)
    assert "ack policy explicit" in await make(ack_policy="explicit", inactive_threshold=5 * SECOND, **ours)
    ordered = {"priority_groups": ["one"], "priority_policy": "pinned_client"}
    assert "must not have that" in await make(ack_policy="explicit", **ordered, **ours)


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_position_that_exists_with_another_order_is_refused_with_the_command_that_removes_it(
    server: NatsServer, connect: Connect, ordered: bool
) -> None:
    rig = await connect(server.url, position(ordered=not ordered), subscribe=False)
    other = NatsBroker(server.url)
    with pytest.raises(ConfigurationError) as error:
        await other.open(plan(position(ordered=ordered)))
    await other.close()
    said = str(error.value)
    assert f"the code says it is {'ordered' if ordered else 'not ordered'}" in said
    assert ("as one consumer" if ordered else "in shares") in said
    command = said[said.index("nats consumer rm" if ordered else "for i in") :]
    await run_as_the_shell_would(rig, command)
    again = NatsBroker(server.url)
    assert await again.open(plan(position(ordered=ordered))) == []
    await again.close()


async def run_as_the_shell_would(rig: Rig, command: str) -> None:
    """What the printed commands do, by a shell whose `nats` says what it was asked."""
    script = f"nats() {{ echo $3 $4; }}; {command}"
    shell = await asyncio.create_subprocess_exec("sh", "-c", script, stdout=asyncio.subprocess.PIPE)
    said, _ = await shell.communicate()
    for line in said.decode().splitlines():
        await api_of(rig).call("CONSUMER.DELETE." + ".".join(line.split()))


async def refused(url: str, *streams: str) -> str:
    broker = NatsBroker(url)
    wanted = Plan(service="stock", streams=tuple(StreamPlan(name=name) for name in streams or ("order",)))
    try:
        with pytest.raises(ConfigurationError) as error:
            await broker.open(wanted if streams else plan(position()))
    finally:
        await broker.close()
    return str(error.value)


async def test_a_stream_that_belongs_to_somebody_else_is_left_alone(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, subscribe=False)
    api = api_of(rig)
    await api.call("STREAM.CREATE.legacy", {"name": "legacy", "subjects": ["shop.>", "sale.new"]})
    assert "its subjects shop.> belong to the stream 'legacy' already" in await refused(server.url, "shop")
    await api.call("STREAM.CREATE.bare", {"name": "bare", "subjects": ["bare.>"]})
    said = await refused(server.url, "bare")
    assert "says of its partitions nothing where Tidings has 64" in said
    assert "nats stream edit bare --metadata=tidings-partitions=64" in said
    await api.call("STREAM.CREATE.odd", {"name": "odd", "subjects": ["odd.one"]})
    assert "takes odd.one instead of odd.>" in await refused(server.url, "odd")
    meta = {"tidings-partitions": "64"}
    await api.call(
        "STREAM.CREATE.gone", {"name": "gone", "subjects": ["gone.>"], "retention": "interest", "metadata": meta}
    )
    assert "retention 'interest' where Tidings needs 'limits'" in await refused(server.url, "gone")
    assert "cannot be a stream" in await refused(server.url, "tidings-retry")


async def test_a_renamed_handler_stops_the_start_and_both_ways_out_are_told(
    server: NatsServer, connect: Connect
) -> None:
    rig = await connect(server.url, subscribe=False)
    broker = NatsBroker(server.url)
    with pytest.raises(ConfigurationError) as error:
        await broker.open(plan(position("stock.set-aside")))
    said = str(error.value)
    assert "name='reserve'" in said
    command = "nats consumer rm order stock_reserve -f; nats consumer rm tidings-retry stock_reserve -f"
    assert said.endswith(command)
    names = (await api_of(rig).call("CONSUMER.NAMES.order"))["consumers"]
    assert names == ["stock_reserve"], "nothing was created before the check"
    for stream in ("order", "tidings-retry"):  # what the command does
        await api_of(rig).call(f"CONSUMER.DELETE.{stream}.stock_reserve")
    await broker.open(plan(position("stock.set-aside")))
    await broker.close()


async def test_positions_of_other_services_and_other_types_are_no_orphans(server: NatsServer, connect: Connect) -> None:
    await connect(server.url, position("stock.count", types=("order.counted",)), subscribe=False)
    await connect(server.url, position("billing.reserve"), subscribe=False)
    await connect(server.url, position("stock.reserve"), subscribe=False)


async def test_many_processes_may_start_at_once(server: NatsServer, connect: Connect) -> None:
    subscriptions = [position(f"stock.h{n}") for n in range(3)]
    brokers = [NatsBroker(server.url) for _ in range(12)]
    drifts = await asyncio.gather(*(broker.open(plan(*subscriptions)) for broker in brokers))
    assert drifts == [[]] * 12
    await asyncio.gather(*(broker.close() for broker in brokers))


async def test_a_service_may_have_more_positions_than_fit_on_one_page(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url, subscribe=False)
    for n in range(260):
        config = {
            "durable_name": f"stock_old{n}",
            "filter_subject": f"order.t{n}",
            "ack_policy": "explicit",
            "metadata": {
                "tidings-service": "stock",
                "tidings-position": f"stock.old{n}",
                "tidings-types": f"order.t{n}",
            },
        }
        await api_of(rig).call(
            f"CONSUMER.CREATE.order.stock_old{n}", {"stream_name": "order", "config": config, "action": "create"}
        )
    broker = NatsBroker(server.url)
    with pytest.raises(ConfigurationError, match=r"stock\.old259"):
        await broker.open(plan(position("stock.new", types=("order.t259",))))
    await broker.close()


async def test_trap_7_a_position_ahead_of_its_stream_is_told(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url)
    await rig.publish(*[b"%d" % n for n in range(20)])
    await rig.settled(20)
    assert (await rig.feed.backlog()).pending == 0
    assert rig.broker.trouble == ""
    await asyncio.to_thread(server.stop)
    for block in (server.folder / "js").rglob("streams/order/msgs/*"):
        block.unlink()  # the disk lost the stream's end, and not the consumer
    await asyncio.to_thread(server.start)
    async with asyncio.timeout(40):
        while "is ahead of the stream order" not in rig.broker.trouble:
            await asyncio.sleep(0.1)
            if rig.broker.trouble == "":
                await rig.feed.backlog()


async def test_trap_36_a_paused_position_is_told(server: NatsServer, connect: Connect) -> None:
    rig = await connect(server.url)
    until = {"pause_until": "2099-01-01T00:00:00Z"}
    await api_of(rig).call("CONSUMER.PAUSE.order.stock_reserve", until)
    await rig.feed.backlog()
    assert "is paused at the server until 2099" in rig.broker.trouble
    assert "nats consumer resume order stock_reserve" in rig.broker.trouble
    await api_of(rig).call("CONSUMER.PAUSE.order.stock_reserve")
    await rig.feed.backlog()
    assert rig.broker.trouble == ""


async def test_a_server_below_the_advised_version_is_warned_of(
    server: NatsServer, connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tidings.brokers.nats.broker.ADVISED", (99, 0, 0))
    with caplog.at_level(logging.WARNING, "tidings.nats"):
        await connect(server.url, subscribe=False)
    assert "from 99.0.0 on it keeps" in caplog.text


async def test_an_event_of_a_stream_that_was_never_declared_says_what_to_do(
    server: NatsServer, connect: Connect
) -> None:
    rig = await connect(server.url, subscribe=False)
    (error,) = await rig.broker.publish([Message(id="x", stream="nope", type="nope.a", body=b"")], timeout=3)
    assert "there is no stream 'nope'" in str(error)


async def test_P13_which_types_a_position_takes_is_written_down_and_the_filters_stay_an_operators(
    server: NatsServer, connect: Connect
) -> None:
    for service, ordered in (("stock", False), ("pay", True)):
        one = position(f"{service}.reserve", ordered=ordered, types=("order.placed",))
        gains = msgspec.structs.replace(one, types=("order.placed", "order.closed"))
        old = await connect(server.url, one, subscribe=False)
        new = NatsBroker(server.url)
        try:
            assert await old.broker.taken(one.position) == ["order.placed"]
            began = time.monotonic()
            drifts = await new.open(plan(gains))
            assert {one.what for one in drifts} == {f"filter_subjects of position {one.position}"}
            assert time.monotonic() - began > BELIEVED, "whoever was told otherwise before goes by it for so long"
            assert await old.broker.taken(one.position) == ["order.closed", "order.placed"]
            assert (await old.broker.positions(service))[one.position] == ["order.closed", "order.placed"]
            name = f"{service}_reserve_3" if ordered else f"{service}_reserve"
            consumer = (await api_of(old).call(f"CONSUMER.INFO.order.{name}"))["config"]
            assert not any("closed" in subject for subject in consumer["filter_subjects"])
            copies = (await api_of(old).call(f"CONSUMER.INFO.tidings-retry.{name}"))["config"]
            assert copies["metadata"]["tidings-position"] == one.position
            await new.open(plan(one))
            assert await old.broker.taken(one.position) == ["order.closed", "order.placed"], "somebody may ask for it"
            await new.remember(one.position, one.types)
            assert await old.broker.taken(one.position) == ["order.placed"]
            await new.remember("nobody.there", one.types)
            assert await old.broker.taken("nobody.there") == ()
        finally:
            await new.close()
            await new.close()
