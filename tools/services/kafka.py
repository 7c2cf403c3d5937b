"""Apache Kafka, one KRaft node that is broker and controller, from the jars that Maven gathers once."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from tools.services.ports import free_port
from tools.services.program import CannotBeHad, Program, find

POM: Final = Path(__file__).with_name("kafka.xml")
GATHERS_WITHIN: Final = 280.0
PLUGIN: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"

JVM: Final = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
"""Small and quick to start: it serves one test run."""
LOGGING: Final = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true")

SETTINGS: Final = {
    "auto.create.topics.enable": "true",  # so that tests see that nothing is created by accident
    "broker.heartbeat.interval.ms": "200",
    "broker.session.timeout.ms": "1000",  # or who comes back after a kill waits until its former self is forgotten
    "controlled.shutdown.enable": "false",
    "default.replication.factor": "1",
    "delete.topic.enable": "true",
    "group.consumer.heartbeat.interval.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "500",
    "group.consumer.min.session.timeout.ms": "2000",
    "group.consumer.session.timeout.ms": "6000",
    "group.coordinator.append.linger.ms": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "log.cleaner.dedupe.buffer.size": "4194304",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "num.partitions": "1",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
}


def jars(pom: Path = POM) -> Path:
    """The folder with a broker's jars, gathered by Maven when they are not there yet.

    Raises:
        CannotBeHad: Maven is missing, or cannot gather them.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidings"
    folder = cache / f"kafka-{uuid.uuid5(uuid.NAMESPACE_OID, pom.read_text()).hex[:12]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _gather(pom, folder)
    return folder


def _gather(pom: Path, folder: Path) -> None:
    maven = find("mvn", "maven")
    made = folder.with_suffix(".new")
    shutil.rmtree(made, ignore_errors=True)
    command = [str(maven), "-B", "-q", "-f", str(pom), PLUGIN, "-DincludeScope=runtime", f"-DoutputDirectory={made}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GATHERS_WITHIN, check=False)
    except subprocess.TimeoutExpired:
        raise CannotBeHad("Kafka: Maven did not gather its jars in time") from None
    if done.returncode:
        raise CannotBeHad(f"Kafka: Maven could not gather its jars: {(done.stdout or done.stderr)[-800:]}")
    made.rename(folder)


class Kafka(Program):
    """One node. `settings` are of its `server.properties`.

    It has a second listener, `far_port`, whose clients are told to come to `far_advertised`: that of a proxy.
    """

    name = "Kafka"
    program = "java"
    package = "openjdk-17-jre-headless"
    pom: ClassVar = POM
    """What Maven is asked for."""

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder)
        self.controller_port = free_port()
        self.far_port = free_port()
        self.far_advertised = f"127.0.0.1:{self.far_port}"
        self.cluster_id = uuid.uuid4().hex[:22]
        self.settings = {name.replace("_", "."): value for name, value in settings.items()}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"kafka://{self.address}"

    def properties(self) -> dict[str, str]:
        """What stands in its `server.properties`."""
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self.controller_port}",
            "listeners": f"NEAR://{self.address},FAR://127.0.0.1:{self.far_port},"
            f"CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": f"NEAR://{self.address},FAR://{self.far_advertised}",
            "listener.security.protocol.map": "NEAR:PLAINTEXT,FAR:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "NEAR",
            "log.dirs": str(self.folder / "data"),
            **SETTINGS,
            **self.settings,
        }

    def prepare(self) -> None:
        self.configure()
        self.run(*self._java("kafka.tools.StorageTool", "format", "-t", self.cluster_id, "-c", str(self._file)))

    def configure(self) -> None:
        """Write down what it is to be like from the next start on."""
        self._file.write_text("".join(f"{name}={value}\n" for name, value in self.properties().items()))

    def command(self) -> Sequence[str]:
        return self._java("kafka.Kafka", str(self._file))

    def ready(self) -> bool:
        """It answers a client's first question: which requests it understands."""
        return self._answers(self.port)

    @staticmethod
    def _answers(port: int) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), 1.0) as one:
                one.settimeout(2.0)
                request = struct.pack(">hhih", 18, 0, 7, -1)  # ApiVersions
                one.sendall(struct.pack(">i", len(request)) + request)
                return one.recv(8)[4:8] == struct.pack(">i", 7)
        except OSError:
            return False

    @property
    def _file(self) -> Path:
        return self.folder / "server.properties"

    def _java(self, main: str, *arguments: str) -> list[str]:
        folder = f"-Djava.io.tmpdir={self.folder}"  # libraries that it unpacks there stay when it is killed
        return [str(self._binary), *JVM, folder, *LOGGING, "-cp", f"{jars(self.pom)}/*", main, *arguments]
