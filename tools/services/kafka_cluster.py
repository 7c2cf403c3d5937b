"""Three nodes of Kafka that work as one: each may be killed and started again by itself."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tools.services.kafka import Kafka

NODES: Final = 3
COPIES: Final = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
    # Three of them on a busy machine: who is slow is not dead.
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "4000",
}
LEADS_WITHIN: Final = 60.0


class Node(Kafka):
    """One of them. It waits for the others where too few run to agree on anything."""

    def __init__(self, folder: Path, number: int, cluster: KafkaCluster) -> None:
        super().__init__(folder)
        self.number = number
        self._cluster = cluster
        self.settings |= COPIES

    def properties(self) -> dict[str, str]:
        voters = ",".join(f"{one.number}@127.0.0.1:{one.controller_port}" for one in self._cluster.nodes)
        return super().properties() | {"node.id": str(self.number), "controller.quorum.voters": voters}

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ready(self) -> bool:
        return not self._cluster.majority or super().ready()


class KafkaCluster:
    """`with KafkaCluster(folder) as cluster: cluster.url`."""

    def __init__(self, folder: Path) -> None:
        self.nodes: list[Node] = []
        for number in range(1, NODES + 1):
            self.nodes.append(Node(folder / f"node-{number}", number, self))
        for node in self.nodes[1:]:
            node.cluster_id = self.nodes[0].cluster_id

    @property
    def majority(self) -> bool:
        """Enough of them run to agree."""
        return sum(node.runs for node in self.nodes) > NODES // 2

    @property
    def url(self) -> str:
        return "kafka://" + ",".join(node.address for node in self.nodes)

    def start(self) -> Self:
        try:
            with ThreadPoolExecutor(NODES) as pool:
                list(pool.map(lambda node: node.start(), self.nodes))
            self.until_led()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def until_led(self) -> None:
        """Wait until all that run know of each other."""
        ends = time.monotonic() + LEADS_WITHIN
        admin = AdminClient({"bootstrap.servers": self.url.removeprefix("kafka://"), "log_level": 2})
        while time.monotonic() < ends:
            try:
                if len(admin.list_topics(timeout=2).brokers) >= sum(node.runs for node in self.nodes):
                    return
            except KafkaException:
                pass  # nobody leads yet
            time.sleep(0.2)
        raise AssertionError(f"the cluster has not come together: {self.nodes[0].log}")

    def leader(self, topic: str) -> int:
        """The place of the node that leads most partitions of a topic."""
        admin = AdminClient({"bootstrap.servers": self.url.removeprefix("kafka://"), "log_level": 2})
        ends = time.monotonic() + LEADS_WITHIN
        while time.monotonic() < ends:
            try:
                found = admin.list_topics(topic, timeout=2).topics[topic].partitions.values()
                led = Counter(one.leader for one in found if one.leader > 0)
                if led:
                    return led.most_common(1)[0][0] - 1
            except KafkaException:
                pass  # an election
            time.sleep(0.2)
        raise AssertionError(f"nobody leads {topic}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
