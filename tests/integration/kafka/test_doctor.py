"""`tidings doctor` on clusters that are set up wrongly on purpose: the first line says what, the status how bad."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.kafka.conftest import remove
from tidings.brokers import examine
from tidings.brokers.kafka.admin import AdminClient, NewTopic
from tidings.brokers.kafka.broker import KafkaBroker
from tidings.brokers.kafka.doctor import listen
from tidings.brokers.kafka.options import parse
from tidings.findings import Finding
from tidings.ports import Plan, StreamPlan, Subscription
from tools.services.kafka import Kafka
from tools.services.kafka_cluster import KafkaCluster
from tools.services.ports import free_port

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A node on which nobody else leaves topics."""
    with Kafka(tmp_path_factory.mktemp("doctor")) as server:
        yield server


def doctor(url: str, *more: str) -> tuple[int, list[str]]:
    """Its exit status and its lines."""
    command = [sys.executable, "-m", "tidings.cli", "doctor", url, *more]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=env)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_a_broker_that_advertises_a_name_nobody_knows_is_named_in_the_first_line(tmp_path: Path) -> None:
    server = Kafka(tmp_path / "server")
    server.far_advertised = "badhost:9092"
    with server:
        status, lines = doctor(f"kafka://127.0.0.1:{server.far_port}")
    assert status == 3
    assert "badhost:9092" in lines[0]
    assert "is not known" in lines[0]
    assert "advertised.listeners" in lines[1]


async def test_where_the_brokers_send_their_clients_is_known_also_when_they_answer_nobody(tmp_path: Path) -> None:
    # librdkafka 2.16 leaves the URL's address as soon as it was told another: one question in fifty got no answer.
    server = Kafka(tmp_path / "server")
    server.far_advertised = "badhost:9092"
    told: dict[int, tuple[str, int]] = {}
    with server:
        await asyncio.to_thread(listen, parse(f"kafka://127.0.0.1:{server.far_port}"), told)
    assert told == {1: ("badhost", 9092)}


async def test_a_cluster_that_says_nothing_is_not_listened_to_for_ever() -> None:
    told: dict[int, tuple[str, int]] = {}
    await asyncio.to_thread(listen, parse(f"kafka://127.0.0.1:{free_port()}"), told)
    assert told == {}


def test_nobody_at_the_port_and_an_unknown_name_are_told_apart(own: Kafka) -> None:
    status, lines = doctor(f"kafka://127.0.0.1:{free_port()}")
    assert (status, lines[0].split(":")[0]) == (4, "down")
    assert "nobody answers" in lines[0]
    status, lines = doctor("kafka://no-such-host.invalid:9092")
    assert status == 4
    assert "is not known" in lines[0]


def test_a_broker_that_makes_topics_by_accident_is_a_warning(own: Kafka) -> None:
    status, lines = doctor(own.url, "--json")
    found = [json.loads(line) for line in lines]
    assert status == 0
    assert found[0]["level"] == "warning"
    assert "auto.create.topics.enable=false" in found[0]["remedy"]
    assert {one["level"] for one in found[1:]} == {"fine"}


async def test_a_topic_that_is_gone_is_named_with_its_position(own: Kafka) -> None:
    position = Subscription(position="stock.reserve", stream="order", types=("order.placed",))
    other = Subscription(position="stock.count", stream="kept", types=("kept.counted",))
    plan = Plan(
        service="stock", streams=(StreamPlan(name="order"), StreamPlan(name="kept")), subscriptions=(position, other)
    )
    broker = KafkaBroker(own.url)
    await broker.open(plan)
    await broker.close()
    assert [one.what for one in await examine(own.url)][-1] == "2 positions have all their topics"
    await remove(own, "order")
    status, lines = await asyncio.to_thread(doctor, own.url)
    assert status == 3
    assert "the topic order of stock.reserve is gone" in lines[0]
    await remove(own, "tidings-retry.stock.count")
    found = [one.what for one in await examine(own.url) if one.level == "wrong"]
    assert any("tidings-retry.stock.count of stock.count" in what for what in found)


async def test_a_position_that_was_removed_misses_nothing(tmp_path: Path) -> None:
    with Kafka(tmp_path / "server") as server:
        position = Subscription(position="stock.reserve", stream="order", types=("order.placed",))
        broker = KafkaBroker(server.url)
        await broker.open(Plan(service="stock", streams=(StreamPlan(name="order"),), subscriptions=(position,)))
        await broker.close()
        await remove(server, "tidings-retry.stock.reserve", group="stock.reserve")
        found = await examine(server.url)
    assert not [one for one in found if one.level == "wrong"]


async def test_copies_that_are_demanded_and_not_there_are_named_with_their_topics(own: Kafka) -> None:
    await make(own.url, NewTopic("greedy", 1, 1, config={"min.insync.replicas": "2"}))
    (found,) = [one for one in await examine(own.url) if "greedy" in one.what]
    assert found.level == "wrong"
    assert "nothing can be published" in found.what
    await remove(own, "greedy")


async def test_new_topics_that_could_take_nothing_are_told_before_there_are_any(tmp_path: Path) -> None:
    with Kafka(tmp_path / "server", min_insync_replicas="2", auto_create_topics_enable="false") as server:
        found = await examine(server.url)
    (wrong,) = [one for one in found if one.level == "wrong"]
    assert "1 copies, and 2 must have an event" in wrong.what
    assert not [one for one in found if "mentions" in one.what]


@pytest.mark.long
@pytest.mark.timeout(200)
async def test_topics_that_are_a_danger_on_several_brokers_are_told_apart(tmp_path: Path) -> None:
    with KafkaCluster(tmp_path / "kafka") as cluster:
        await make(cluster.url, *(NewTopic(f"of{n}", 1, 3, config={"min.insync.replicas": str(n)}) for n in (1, 2, 3)))
        await make(cluster.url, NewTopic("single", 1, 1, config={"min.insync.replicas": "1"}))
        wanted = [("warning", "single"), ("warning", "of3"), ("warning", "of1")]
        await until(cluster.url, lambda found: [(one.level, names_in(one)) for one in found] == wanted)
        leader = cluster.leader("single")
        await asyncio.to_thread(cluster.nodes[(leader + 1) % 3].stop)
        # It counts as away after a while, and until then each broker says something else.
        found = await until(cluster.nodes[leader].url, lambda found: "wrong" in {one.level for one in found})
    told = {names_in(one): (one.level, one.what) for one in found}
    assert told["of3"][0] == "wrong"
    assert "take no events" in told["of3"][1]
    assert "up to date" in told["of1, of2"][1]


def names_in(finding: Finding) -> str:
    return finding.what.rpartition(": ")[2]


async def until(url: str, true: Callable[[list[Finding]], bool]) -> list[Finding]:
    """What is found of topics, once it is so: each broker hears of topics, and of other brokers, in its own time."""
    found: list[Finding] = []
    for _ in range(60):
        found = [one for one in await examine(url) if " topics " in one.what and one.level != "fine"]
        if true(found):
            return found
        await asyncio.sleep(0.5)
    raise AssertionError(found)


async def make(url: str, *topics: NewTopic) -> None:
    admin = AdminClient({"bootstrap.servers": url.removeprefix("kafka://")})
    for one in admin.create_topics(list(topics)).values():
        await asyncio.wrap_future(one)
