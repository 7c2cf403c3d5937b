"""Positions on a real Kafka: what the group is told, when, and what becomes of it when processes come, go and die."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]  # it is there

from tests.integration.kafka.conftest import QUICK, Connect, Rig, plan, position, until, until_equal
from tidings.brokers.kafka.broker import KafkaBroker
from tidings.brokers.kafka.names import retry_topic
from tidings.brokers.kafka.offsets import EARLIEST, committed_of, offsets
from tidings.brokers.kafka.waiting import trim
from tidings.delivery import ACK, Release
from tidings.rolling import BELIEVED
from tools.services.kafka import Kafka

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="kafka")]


async def marks(rig: Rig) -> list[int]:
    """What the group of a position has committed in its stream."""
    link = rig.broker._link
    assert link is not None
    found = await committed_of(link, rig.subscription.position, [rig.subscription.stream])
    return [offset for offset, _ in found.values() if offset]


async def test_P3_only_what_is_done_without_a_gap_is_committed(connect: Connect) -> None:
    rig = await connect()
    await rig.publish(*(rig.message(b"%d" % n) for n in range(10)))
    await until(lambda: len(rig.got) == 10)
    await rig.ack(*rig.got[:3], *rig.got[4:])
    await until_equal(lambda: marks(rig), [3])
    await asyncio.sleep(1.2)
    assert await marks(rig) == [3], "the offset passed an event that is not done"
    await rig.ack(rig.got[3])
    await until_equal(lambda: marks(rig), [10])


async def test_P3_P9_who_comes_after_a_stop_gets_what_was_not_done_and_nothing_else(connect: Connect) -> None:
    first = await connect()
    await first.publish(*(first.message(b"%d" % n) for n in range(10)))
    await until(lambda: len(first.got) == 10)
    await first.ack(*(one for one in first.got if one.body not in (b"2", b"7")))
    await first.feed.close()
    second = await connect(first.subscription)
    await until(lambda: len(second.got) >= 2)
    await asyncio.sleep(0.5)
    assert second.bodies == [b"2", b"7"]
    assert [one.delivered for one in second.got] == [2, 2]


async def test_P3_P9_brokers_that_keep_little_beside_an_offset_are_told_less_and_get_every_commit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Kafka(tmp_path / "server", offset_metadata_max_bytes="100") as server:
        rig = Rig(KafkaBroker(f"{server.url}?{QUICK}"), position())
        await rig.broker.open(plan(rig.subscription))
        await rig.subscribe()
        await rig.publish(*(rig.message(b"%d" % n) for n in range(400)))
        await until(lambda: len(rig.got) == 400)
        await rig.ack(*rig.got[:3], *rig.got[4::2])
        await until_equal(lambda: marks(rig), [3])
        await rig.ack(rig.got[3], rig.got[5])
        await rig.feed.close()  # the last word has to get through as well
        await until_equal(lambda: marks(rig), [7])
        await rig.broker.close()
    (line,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "offset.metadata.max.bytes=4096" in line


WORKER = """
import asyncio, sys
from tidings.brokers.kafka.broker import KafkaBroker
from tidings.delivery import ACK
from tests.integration.kafka.conftest import plan, position

async def main(url, stream):
    subscription = position(position=f"{stream}.reserve", stream=stream, types=(f"{stream}.placed",))
    broker = KafkaBroker(url)
    await broker.open(plan(subscription))
    got = []
    await broker.subscribe(subscription, got.append)
    while len(got) < 10:
        await asyncio.sleep(0.01)
    await broker.settle([(one, ACK) for one in got if one.body != b"2"])
    print("ready", flush=True)
    await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_P4_P6_what_a_killed_process_had_done_is_not_repeated_and_what_it_had_is_known(
    connect: Connect, kafka: Kafka
) -> None:
    rig = await connect(subscribe=False)
    await rig.publish(*(rig.message(b"%d" % n) for n in range(10)))
    command = [sys.executable, "-c", WORKER, f"{kafka.url}?{QUICK}", rig.subscription.stream]
    root = Path(__file__).parents[3]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env=env)
    assert worker.stdout is not None
    try:
        assert await asyncio.to_thread(worker.stdout.readline) == b"ready\n"
        await until_equal(lambda: marks(rig), [2])
        await asyncio.sleep(1.5)  # in which it says what it has in hand
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait(60)
        worker.stdout.close()
    await rig.subscribe()
    await until(lambda: len(rig.got) >= 1)
    await asyncio.sleep(0.5)
    assert rig.bodies == [b"2"]
    assert rig.got[0].delivered > 1, "nobody knows that it was delivered before"


async def test_P8_a_partition_that_goes_waits_for_the_events_that_run(connect: Connect) -> None:
    first = await connect(position(ordered=True))
    keys = [f"key {n}" for n in range(16)]
    await first.publish(*(first.message(key.encode(), key) for key in keys))
    await until(lambda: len(first.got) == len(keys))
    joining = asyncio.create_task(connect(first.subscription))
    await asyncio.sleep(1.0)
    await first.ack(*first.got)
    second = await joining
    await first.publish(*(first.message(b"after " + key.encode(), key) for key in keys))
    await until(lambda: len(first.got) + len(second.got) == 2 * len(keys))
    assert second.got, "the second has no partition"
    assert all(body.startswith(b"after") for body in second.bodies), "what had been done came again"
    assert second.feed.tenure >= 1


async def test_a_partition_that_went_while_there_was_no_room_is_read_on_when_it_comes_back(connect: Connect) -> None:
    first = await connect(position(max_in_flight=4))
    await first.publish(*(first.message(b"%d" % n, f"key {n}") for n in range(100)))
    await until(lambda: len(first.got) == 4 and first.feed.pump._paused)
    joining = asyncio.create_task(connect(first.subscription))
    await asyncio.sleep(1.0)
    assert first.feed.pump._paused
    settling = asyncio.create_task(_settle_all(first))
    try:
        second = await joining
        await until(lambda: second.got)
        await second.feed.close()
        await until(lambda: len(set(first.bodies)) == 100)
    finally:
        settling.cancel()


async def _settle_all(rig: Rig) -> None:
    done = 0
    while True:
        some = rig.got[done:]
        await rig.broker.settle([(one, ACK) for one in some])
        done += len(some)
        await asyncio.sleep(0.01)


async def test_P6_copies_come_from_a_partition_of_the_retry_route_that_is_younger_than_its_twin(
    connect: Connect, kafka: Kafka
) -> None:
    """As where a stream was given more partitions while processes run, of which the next that starts takes care."""
    url = f"{kafka.url}?{QUICK}&topic.metadata.refresh.interval.ms=300"
    first = await connect(url=url)
    stream = first.subscription.stream
    admin = AdminClient({"bootstrap.servers": kafka.address})
    admin.create_partitions([NewPartitions(stream, 8)])[stream].result(30)
    await until(lambda: len([one for topic, one in first.feed.pump.tracks if topic == stream]) == 8)
    second = await connect(first.subscription, subscribe=False)
    await second.publish(*(second.copy(b"%d" % n, key=f"key {n}") for n in range(64)))
    await until(lambda: len(first.got) == 64)


async def test_P8_who_cannot_know_whether_it_still_belongs_to_its_group_begins_nothing(tmp_path: Path) -> None:
    with Kafka(tmp_path / "own") as own:
        rig = Rig(KafkaBroker(f"{own.url}?{QUICK}"), position(ordered=True))
        try:
            await rig.broker.open(plan(rig.subscription))
            await rig.subscribe()
            await rig.publish(rig.message(b"1"))
            await until(lambda: rig.got)
            fence = rig.feed.fence  # type: ignore[attr-defined]
            assert fence() == ""
            own.pause()
            await until(lambda: fence() != "")
            own.resume()
            await until(lambda: fence() == "")
        finally:
            own.resume()
            await rig.broker.close()


async def test_P4_P6_who_lives_and_loses_its_partitions_again_and_again_counts_as_one_process(tmp_path: Path) -> None:
    with Kafka(tmp_path / "own") as own:
        rig = Rig(KafkaBroker(f"{own.url}?{QUICK}"), position())
        try:
            await rig.broker.open(plan(rig.subscription))
            await rig.subscribe()
            await rig.publish(rig.message(b"1"))
            await until(lambda: len(rig.got) == 1)
            for times in range(2, 4):
                own.pause()
                await until(lambda: not rig.feed.pump.tracks)
                own.resume()
                await until(lambda: len(rig.got) == times)  # noqa: B023  # it is awaited here
            assert [one.delivered for one in rig.got] == [1, 2, 2]
        finally:
            own.resume()
            await rig.broker.close()


async def test_P6_P11_copies_that_wait_long_are_kept_by_their_place_and_come_in_time(connect: Connect) -> None:
    rig = await connect(position(max_in_flight_bytes=4000))
    due = time.time() + 6.0
    await rig.publish(*(rig.copy(b"%d " % n + b"x" * 300, due, key=f"k{n}") for n in range(30)))

    async def scheduled() -> int:
        return (await rig.feed.backlog()).scheduled

    await until_equal(scheduled, 30)
    kept = [delivery for *_, delivery in rig.feed._waiting._heap if delivery is not None]
    assert 0 < len(kept) < 10, "the bytes of all of them are kept"
    done = 0
    while done < 30:
        await until(partial(_more, rig, done))
        assert time.time() >= due
        flying = rig.got[done:]
        await rig.ack(*flying)
        done += len(flying)
    assert {int(body.split()[0]) for body in rig.bodies} == set(range(30))


async def test_P11_copies_that_are_due_at_once_are_fetched_as_there_is_room_for_them(connect: Connect) -> None:
    rig = await connect(position(max_in_flight_bytes=120_000))
    due = time.time() + 2.0
    await rig.publish(*(rig.copy(b"%d " % n + b"x" * 10_000, due, key=f"k{n}") for n in range(60)))

    def here() -> int:
        waiting = sum(len(one.body) for one in rig.feed._queue)
        return rig.feed._given_bytes + waiting

    await until(lambda: rig.got)
    most, done, ends = 0, 0, time.monotonic() + 3.0
    while done < 60:
        await asyncio.sleep(0.02)
        most = max(most, here())
        if time.monotonic() > ends:
            flying = rig.got[done:]
            await rig.ack(*flying)
            done += len(flying)
    assert most < 240_000, "whatever is due is here at once"
    assert {int(body.split()[0]) for body in rig.bodies} == set(range(60))


async def test_P6_copies_need_not_wait_for_one_that_somebody_removed(connect: Connect, kafka: Kafka) -> None:
    rig = await connect(position(max_in_flight_bytes=400))
    retry, due = retry_topic(rig.subscription.position), time.time() + 6.0
    await rig.publish(*(rig.copy(b"%d " % n + b"x" * 300, due, key=f"key {n}") for n in range(12)))
    await until(lambda: rig.feed._waiting.copies() == 12)
    first = min(track.number for track in rig.feed.pump.tracks.values() if track.progress.open)
    gone = len(rig.feed.pump.tracks[retry, first].progress.open)
    await asyncio.to_thread(kafka_removes, kafka, retry, first, gone)
    async with asyncio.timeout(30):
        while len(rig.got) < 12 - gone:
            await rig.broker.settle([(one, ACK) for one in rig.got])
            await asyncio.sleep(0.02)


def kafka_removes(kafka: Kafka, topic: str, number: int, until_there: int) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.address})
    for answer in admin.delete_records([TopicPartition(topic, number, until_there)]).values():
        answer.result(30)


async def test_P11_what_is_given_back_for_a_while_keeps_its_room(connect: Connect) -> None:
    rig = await connect(position(max_in_flight=10))
    await rig.publish(*(rig.message(b"%d" % n, f"key {n}") for n in range(60)))
    done = acked = 0
    async with asyncio.timeout(60):
        while len(rig.got) < 120:
            some = rig.got[done:]
            done += len(some)
            again = [(one, ACK) for one in some if one.delivered > 1]
            acked += len(again)
            await rig.broker.settle([*((one, Release(3.0)) for one in some if one.delivered == 1), *again])
            came = sum(one.delivered == 1 for one in rig.got)
            assert came - acked <= 20, "all that is stored comes, and waits here"
            await asyncio.sleep(0.02)
    assert sorted(rig.bodies) == sorted(b"%d" % n for n in range(60) for _ in range(2))


def _more(rig: Rig, done: int) -> bool:
    return len(rig.got) > done


async def test_what_is_done_is_removed_from_the_retry_route_and_what_waits_is_not(connect: Connect) -> None:
    rig = await connect()
    later = time.time() + 3600
    await rig.publish(*(rig.copy(b"%d" % n) for n in range(5)), rig.copy(b"later", later))
    await until(lambda: len(rig.got) == 5)
    await rig.ack(*rig.got)
    link = rig.broker._link
    assert link is not None

    async def first() -> int:
        await trim(link, list(rig.feed.pump.tracks.values()))
        return sum((await offsets(link, retry_topic(rig.subscription.position), EARLIEST)).values())

    await until_equal(first, 5)
    assert await rig.broker.copies(rig.subscription.position) == 1


async def test_P6_what_is_given_back_in_order_comes_before_what_is_new(connect: Connect) -> None:
    rig = await connect(position(max_in_flight=2))
    await rig.publish(*(rig.message(b"%d" % n) for n in range(4)))
    await until(lambda: len(rig.got) == 2)
    assert await rig.broker.settle([(one, Release()) for one in rig.got]) == [None, None]
    await until(lambda: len(rig.got) == 4)
    assert rig.bodies == [b"0", b"1", b"0", b"1"]
    assert [one.delivered for one in rig.got] == [1, 1, 2, 2]


async def test_P3_a_topic_that_was_made_anew_is_read_from_its_beginning(connect: Connect, kafka: Kafka) -> None:
    first = await connect()
    stream = first.subscription.stream
    await first.publish(*(first.message(b"old %d" % n) for n in range(5)))
    await until(lambda: len(first.got) == 5)
    await first.ack(*first.got)
    await first.broker.close()
    admin = AdminClient({"bootstrap.servers": kafka.address})
    admin.delete_topics([stream])[stream].result(30)
    await until(lambda: stream not in admin.list_topics(timeout=30).topics)
    second = await connect(first.subscription)
    await second.publish(second.message(b"new"))
    await until(lambda: second.got)
    assert second.bodies == [b"new"]
    await second.ack(*second.got)


@pytest.mark.parametrize("start", ["new", "all"])
async def test_P3_a_position_whose_group_is_forgotten_begins_where_it_began_and_misses_nothing(
    connect: Connect, kafka: Kafka, start: Literal["new", "all"], caplog: pytest.LogCaptureFixture
) -> None:
    """As the cluster does after a week without members; events of that week are still there."""
    others = await connect(subscribe=False)
    stream = others.subscription.stream
    await others.publish(others.message(b"before"))
    rig = await connect(position(stream=stream, types=(f"{stream}.placed",), start=start))
    await others.publish(others.message(b"1"))
    seen = 1 if start == "new" else 2
    await until(lambda: len(rig.got) == seen)
    await rig.ack(*rig.got)
    await rig.broker.close()
    await others.publish(others.message(b"while it was away"))
    name = rig.subscription.position
    admin = AdminClient({"bootstrap.servers": kafka.address})
    admin.delete_consumer_groups([name])[name].result(30)

    again = await connect(rig.subscription)
    await until(lambda: len(again.got) == seen + 1)
    assert sorted(again.bodies) == sorted([*rig.bodies, b"while it was away"])
    assert f"{name} has no place at the cluster any more" in caplog.text


async def test_P13_a_position_that_gains_a_type_says_where_it_waits(connect: Connect) -> None:
    old = await connect()
    one = old.subscription
    closed = f"{one.stream}.closed"
    gains = msgspec.structs.replace(one, types=(*one.types, closed))
    new = KafkaBroker(old.broker._options.where)
    try:
        assert set(await old.broker.taken(one.position)) == set(one.types)
        began = time.monotonic()
        (drift,) = await new.open(plan(gains))
        assert drift.what == f"types of {one.position}"
        assert f"What of {closed} comes to a process of the older code waits" in drift.remedy
        assert time.monotonic() - began > BELIEVED, "whoever was told otherwise before goes by it for so long"
        assert set(await old.broker.taken(one.position)) == set(gains.types)
        assert await new.open(plan(gains)) == []
        (drift,) = await old.broker.open(plan(one))
        assert f"What of {closed} comes to this process waits for one that asks for it" in drift.remedy
        assert set(await new.taken(one.position)) == set(gains.types), "somebody may ask for it"
        await old.broker.remember(one.position, one.types)
        assert set(await new.taken(one.position)) == set(one.types)
        assert await old.broker.open(plan(one)) == []
        await new.remember("nobody.there", one.types)
        assert await new.taken("nobody.there") == ()
    finally:
        for broker in (new, new, old.broker, old.broker):
            await broker.close()
