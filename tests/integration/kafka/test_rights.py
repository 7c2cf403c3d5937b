"""A user with the rights that the guide names, and what is said to one who lacks one of them, on a real Kafka."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Final

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # as in tidings.brokers.kafka.admin
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tests.integration.kafka.conftest import Rig, plan, position, until
from tidings.brokers import examine
from tidings.brokers.kafka.broker import KafkaBroker
from tidings.brokers.kafka.names import DEAD_TOPIC, NOTE_TOPIC, POSITION_TOPIC, retry_topic
from tidings.errors import BrokerUnavailable, ConfigurationError
from tidings.ports import Subscription
from tools.services.kafka import Kafka

pytestmark = [pytest.mark.server, pytest.mark.proves(broker="kafka")]

USERS: Final = ("full", "robbed", "groupless", "blind")
ALL_OF: Final = (AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE)


class GuardedKafka(Kafka):
    """Whoever comes to it signs in, and may do what is granted; at the far port nobody does, and may do all."""

    def properties(self) -> dict[str, str]:
        near = "listener.name.near."
        users = " ".join(f'user_{one}="{one}"' for one in USERS)
        return super().properties() | {
            "inter.broker.listener.name": "FAR",
            "listener.security.protocol.map": "NEAR:SASL_PLAINTEXT,FAR:PLAINTEXT,CONTROLLER:PLAINTEXT",
            near + "sasl.enabled.mechanisms": "PLAIN",
            near
            + "plain.sasl.jaas.config": f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }

    def ready(self) -> bool:
        return self._answers(self.far_port)

    @property
    def far(self) -> str:
        return f"kafka://127.0.0.1:{self.far_port}?join=10s"

    def of(self, user: str) -> str:
        return f"kafka://{user}:{user}@{self.address}?join=10s"

    def grant(self, user: str, kind: Any, name: str, *operations: Any) -> None:
        given = [
            AclBinding(kind, name, ResourcePatternType.LITERAL, f"User:{user}", "*", one, AclPermissionType.ALLOW)
            for one in operations
        ]
        self._until(lambda admin: admin.create_acls(given, request_timeout=5), user, kind, name, set(operations))

    def revoke(self, user: str, kind: Any, name: str) -> None:
        """All that was granted of it."""
        gone = _all_of(user, kind, name)
        self._until(lambda admin: admin.delete_acls([gone], request_timeout=5), user, kind, name, set())

    def _until(self, ask: Callable[[AdminClient], Any], user: str, kind: Any, name: str, wanted: set[Any]) -> None:
        """Ask for it until the broker goes by it: it hears a moment later of what the controller has written down."""
        admin, ends = AdminClient({"bootstrap.servers": f"127.0.0.1:{self.far_port}"}), time.monotonic() + 60
        while True:
            try:
                for done in ask(admin).values():
                    done.result(10)
                found = admin.describe_acls(_all_of(user, kind, name), request_timeout=5).result(10)
                if {one.operation for one in found} >= wanted and bool(found) == bool(wanted):
                    return
            except (KafkaException, TimeoutError):
                pass  # one question in fifty gets no answer, as in test_doctor
            assert time.monotonic() < ends
            time.sleep(0.05)

    def grant_topics(self, user: str, one: Subscription) -> None:
        """What the guide names, but for the groups."""
        self.grant(user, ResourceType.TOPIC, one.stream, *ALL_OF)
        for topic in (retry_topic(one.position), DEAD_TOPIC, NOTE_TOPIC, POSITION_TOPIC):
            self.grant(user, ResourceType.TOPIC, topic, *ALL_OF)


def _all_of(user: str, kind: Any, name: str) -> AclBindingFilter:
    """Whatever is granted of it."""
    anywhere: Any = None
    return AclBindingFilter(
        kind, name, ResourcePatternType.LITERAL, f"User:{user}", anywhere, AclOperation.ANY, AclPermissionType.ANY
    )


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedKafka]:
    with GuardedKafka(tmp_path_factory.mktemp("guarded")) as server:
        yield server


async def made(guarded: GuardedKafka, subscription: Subscription) -> None:
    """Somebody who may has made the topics."""
    broker = KafkaBroker(guarded.far)
    try:
        await broker.open(plan(subscription))
    finally:
        await broker.close()


async def refused(url: str, subscription: Subscription) -> str:
    broker = KafkaBroker(url)
    began = time.monotonic()
    try:
        with pytest.raises(ConfigurationError) as raised:
            await broker.open(plan(subscription))
    finally:
        await broker.close()
    assert time.monotonic() - began < 8.0
    return str(raised.value)


async def test_a_user_with_the_rights_of_the_guide_publishes_and_handles(
    guarded: GuardedKafka, caplog: pytest.LogCaptureFixture
) -> None:
    subscription = position()
    await made(guarded, subscription)
    guarded.grant_topics("full", subscription)
    for group in (subscription.position, "tidings-reader"):
        guarded.grant("full", ResourceType.GROUP, group, AclOperation.READ)
    rig = Rig(KafkaBroker(guarded.of("full")), subscription)
    try:
        await rig.broker.open(plan(subscription))
        await rig.subscribe()
        await rig.publish(rig.message(b"1"))
        await until(lambda: rig.got)
        assert rig.broker.trouble == ""
        with pytest.raises(BrokerUnavailable, match="DescribeConfigs"):
            await rig.feed.keeps()
        before = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
        guarded.grant("full", ResourceType.TOPIC, subscription.stream, AclOperation.DESCRIBE_CONFIGS)
        assert await rig.feed.keeps() == timedelta(days=14)
    finally:
        await rig.broker.close()
    assert [f"--operation DescribeConfigs --topic {subscription.stream}" in one for one in before] == [True], before


async def test_a_group_that_the_user_may_not_read_is_named_and_not_called_silence(guarded: GuardedKafka) -> None:
    subscription = position()
    await made(guarded, subscription)
    guarded.grant_topics("groupless", subscription)
    said = await refused(guarded.of("groupless"), subscription)
    assert f"may not read the group {subscription.position}" in said
    assert f"--operation Read --group {subscription.position}" in said
    found = [one.what for one in await examine(guarded.of("groupless"))]
    assert any("may not read the group" in what for what in found), found


async def test_topics_that_the_user_may_not_see_are_not_told_to_be_missing(guarded: GuardedKafka) -> None:
    subscription = position()
    await made(guarded, subscription)
    said = await refused(guarded.of("blind"), subscription)
    assert "may neither see nor make" in said
    assert subscription.stream in said
    assert ".." not in said


@pytest.mark.parametrize(
    ("what", "more"), [("the stream", 1), ("the group", 1), ("the stream", 0)], ids=["stream", "group", "idle"]
)
async def test_P10_a_right_that_is_taken_away_is_trouble_until_it_is_back(
    guarded: GuardedKafka, what: str, more: int
) -> None:
    subscription = position(ordered=False)
    await made(guarded, subscription)
    guarded.grant_topics("robbed", subscription)
    kind, name = ResourceType.TOPIC, subscription.stream
    for group in (subscription.position, "tidings-reader"):
        guarded.grant("robbed", ResourceType.GROUP, group, AclOperation.READ)
    rig, other = Rig(KafkaBroker(guarded.of("robbed")), subscription), Rig(KafkaBroker(guarded.far), subscription)
    try:
        await rig.broker.open(plan(subscription))
        await other.broker.open(plan(subscription))
        await rig.subscribe()
        await other.publish(other.message(b"1"))
        await until(lambda: rig.got)
        await rig.ack(*rig.got)
        await asyncio.sleep(1)
        if what == "the group":
            kind, name = ResourceType.GROUP, subscription.position
        guarded.revoke("robbed", kind, name)
        if more:
            await other.publish(other.message(b"2"))
        await until(lambda: "may not" in rig.broker.trouble)
        assert name in rig.broker.trouble
        guarded.grant("robbed", kind, name, *(ALL_OF if what == "the stream" else [AclOperation.READ]))
        await until(lambda: len(set(rig.bodies)) == 1 + more, 30)
        await until(lambda: rig.broker.trouble == "")
    finally:
        await rig.broker.close()
        await other.broker.close()
