"""The last commit of a process that stops, or gives a partition away, where the coordinator cannot take it at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from confluent_kafka import KafkaError

from tests.integration.kafka.between import Between, Spoken
from tests.integration.kafka.conftest import Connect, Rig, until, until_equal
from tidings.brokers.kafka import commits
from tidings.brokers.kafka.offsets import committed_of
from tools.services.kafka import Kafka
from tools.services.ports import free_port

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="kafka")]

CLASSIC = "session_timeout=6s&join=10s&heartbeat.interval.ms=100"
BROKERS_ASSIGN = "group.protocol=consumer&join=10s"


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A node with a second address, at which somebody stands between."""
    server = Kafka(tmp_path_factory.mktemp("kafka"))
    server.far_advertised = f"127.0.0.1:{free_port()}"
    with server:
        yield server


@pytest.fixture
async def between(kafka: Kafka) -> AsyncIterator[Between]:
    one = await Between(kafka.far_port, int(kafka.far_advertised.rpartition(":")[2])).start()
    yield one
    await one.stop()


async def half_told(connect: Connect, kafka: Kafka, options: str) -> Rig:
    """A process whose commits go through what stands between. Of its ten events five are done, which is known."""
    rig = await connect(url=f"kafka://{kafka.far_advertised}?{options}&partitions=1")
    await rig.publish(*(rig.message(b"%d" % n) for n in range(10)))
    await until(lambda: len(rig.got) == 10)
    await rig.ack(*rig.got[:5])
    await until_equal(lambda: told(rig), 5)
    return rig


async def told(rig: Rig) -> int:
    """How many events the group knows to be done, in the partitions of the stream."""
    link = rig.broker._link
    assert link is not None
    found = await committed_of(link, rig.subscription.position, [rig.subscription.stream])
    return sum(max(0, offset) for offset, _ in found.values())


async def came_again(connect: Connect, kafka: Kafka, first: Rig) -> list[bytes]:
    """What a process is handed that comes after another one."""
    second = await connect(first.subscription, url=f"{kafka.url}?{CLASSIC}")
    await second.publish(second.message(b"new"))
    await until(lambda: b"new" in second.bodies)
    return second.bodies[:-1]


@pytest.mark.parametrize(
    ("code", "options"),
    [
        (KafkaError.COORDINATOR_LOAD_IN_PROGRESS, CLASSIC),
        (KafkaError.COORDINATOR_NOT_AVAILABLE, CLASSIC),
        (KafkaError.REQUEST_TIMED_OUT, CLASSIC),
        (KafkaError.REBALANCE_IN_PROGRESS, CLASSIC),
        (KafkaError.STALE_MEMBER_EPOCH, BROKERS_ASSIGN),
    ],
)
async def test_P9_a_stop_says_what_is_done_again_while_the_coordinator_cannot_take_it(
    between: Between,
    connect: Connect,
    kafka: Kafka,
    code: int,
    options: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commits, "PATIENCE", 20.0)
    first = await half_told(connect, kafka, options)
    ends = time.monotonic() + 1.5
    between.answer = lambda spoken: dict.fromkeys(spoken, code) if time.monotonic() < ends else {}
    await first.ack(*first.got[5:])
    await first.feed.close()
    assert await came_again(connect, kafka, first) == [], "what had been done came again after a stop"


async def test_P9_a_commit_that_is_tried_again_does_not_set_back_the_last_one(
    between: Between, connect: Connect, kafka: Kafka
) -> None:
    """The library tries again by itself, after a while in which others get through."""
    first = await half_told(connect, kafka, f"{CLASSIC}&retry.backoff.ms=500")
    refused: list[Spoken] = []

    def once(spoken: Spoken) -> dict[tuple[str, int], int]:
        if refused:
            return {}
        refused.append(spoken)
        return dict.fromkeys(spoken, KafkaError.COORDINATOR_LOAD_IN_PROGRESS)

    between.answer = once
    await first.ack(first.got[5])
    await until(lambda: refused)
    await first.ack(*first.got[6:])
    await first.feed.close()
    assert await came_again(connect, kafka, first) == [], "what had been done came again after a stop"


async def test_P3_a_commit_that_is_tried_again_does_not_set_back_what_was_said_of_a_partition_that_goes(
    between: Between, connect: Connect, kafka: Kafka
) -> None:
    """Where the brokers assign, a partition goes without a new epoch, so that nothing refuses what comes late."""
    first = await connect(url=f"kafka://{kafka.far_advertised}?{BROKERS_ASSIGN}&partitions=4")
    await first.publish(*(first.message(b"%d" % n, f"key {n}") for n in range(40)))
    await until(lambda: len(first.got) == 40)
    await until_equal(lambda: told(first), 0)
    between.holds = True
    await first.ack(*first.got[::2])
    await until(lambda: not between.holds)
    await first.ack(*first.got[1::2])
    second = await connect(first.subscription, url=f"{kafka.url}?{BROKERS_ASSIGN}")
    await until(lambda: second.feed.pump.tracks)
    await asyncio.sleep(1.5)
    assert second.bodies == [], "what had been done came again with its partition"
    await until_equal(lambda: told(first), 40)


async def test_P3_who_stops_has_the_last_word_of_a_partition_that_goes_meanwhile_before_it_goes(
    between: Between, connect: Connect, kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "PATIENCE", 20.0)
    first = await connect(url=f"kafka://{kafka.far_advertised}?{CLASSIC}&partitions=4")
    await first.publish(*(first.message(b"%d" % n, f"key {n}") for n in range(40)))
    await until(lambda: len(first.got) == 40)
    going = set[int]()

    def only_what_goes(spoken: Spoken) -> dict[tuple[str, int], int]:
        numbers = {number for _, number in spoken}
        if len(numbers) < 4 and not going:
            going.update(numbers)
        return {} if numbers == going else dict.fromkeys(spoken, KafkaError.REBALANCE_IN_PROGRESS)

    between.answer = only_what_goes
    between.said.clear()
    await first.ack(*first.got)
    closing = asyncio.create_task(first.feed.close())
    await until(lambda: between.said)
    second = await connect(first.subscription, url=f"{kafka.url}?{CLASSIC}")
    await second.publish(*(second.message(b"new %d" % n, f"key {n}") for n in range(40)))
    await until(lambda: second.got)
    await asyncio.sleep(0.5)
    early = list(second.got)
    await second.ack(*early)
    await asyncio.sleep(1.0)
    assert not closing.done(), "nothing has gone while the first stopped"
    assert going, "nothing was said of what went"
    between.answer = lambda spoken: {}
    await closing
    await until(lambda: len(set(second.bodies)) == 40)
    await second.ack(*second.got[len(early) :])
    await until_equal(lambda: told(second), 80)
    assert all(body.startswith(b"new") for body in second.bodies), "what had been done came again with its partition"


async def test_P9_a_last_commit_that_nobody_takes_is_told_and_ends_in_time(
    between: Between, connect: Connect, kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    first = await half_told(connect, kafka, CLASSIC)
    between.answer = lambda spoken: dict.fromkeys(spoken, KafkaError.COORDINATOR_LOAD_IN_PROGRESS)
    await first.ack(*first.got[5:])
    began = time.monotonic()
    await first.feed.close()
    assert time.monotonic() - began < 3 * commits.PATIENCE
    (line,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "what was done last is not known to its group, and may come again: " in line
    assert await came_again(connect, kafka, first) == first.bodies[5:]
