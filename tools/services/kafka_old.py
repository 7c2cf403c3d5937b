"""An Apache Kafka from before 3.0: one broker, and the ZooKeeper that it needs beside it."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

from tools.services.kafka import JVM, LOGGING, Kafka, jars
from tools.services.program import CannotBeHad, Program

OLD_POM: Final = Path(__file__).with_name("kafka_old.xml")
FORGOTTEN_WITHIN: Final = 30.0
TICK: Final = 500
"""Milliseconds; a session lasts two of them at least."""

_NEWER: Final = ("process.roles", "node.id", "controller.", "broker.heartbeat.", "broker.session.", "share.")
"""Settings of brokers that need no ZooKeeper."""


class ZooKeeper(Program):
    """What the broker keeps its names in. It outlives the broker's kills."""

    name = "ZooKeeper"
    program = "java"
    package = Kafka.package

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def prepare(self) -> None:
        settings = {
            "dataDir": str(self.folder / "data"),
            "clientPort": str(self.port),
            "clientPortAddress": "127.0.0.1",
            "tickTime": str(TICK),
            "admin.enableServer": "false",
            "4lw.commands.whitelist": "ruok,dump",
        }
        self._file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def command(self) -> Sequence[str]:
        main = "org.apache.zookeeper.server.ZooKeeperServerMain"
        return [str(self._binary), *JVM, *LOGGING, "-cp", f"{jars(OLD_POM)}/*", main, str(self._file)]

    def ready(self) -> bool:
        return self.ask("ruok") == "imok"

    def ask(self, word: str) -> str:
        """What it says to one of its four-letter words; nothing where it does not answer."""
        said = b""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as one:
                one.settimeout(2.0)
                one.sendall(word.encode())
                while some := one.recv(4096):
                    said += some
        except OSError:
            return ""
        return said.decode(errors="replace")

    @property
    def _file(self) -> Path:
        return self.folder / "zookeeper.properties"


class OldKafka(Kafka):
    """The last release before 3.0."""

    name = "Kafka 2.8"
    pom: ClassVar = OLD_POM

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder, **settings)
        self._keeper = ZooKeeper(self.folder / "zookeeper")

    def properties(self) -> dict[str, str]:
        newer = super().properties()
        ours = {name: value for name, value in newer.items() if not name.startswith(_NEWER)}
        return ours | {
            "broker.id": "1",
            "zookeeper.connect": self._keeper.url,
            "zookeeper.session.timeout.ms": "2000",
            "listeners": ",".join(one for one in newer["listeners"].split(",") if not one.startswith("CONTROLLER")),
            "listener.security.protocol.map": "NEAR:PLAINTEXT,FAR:PLAINTEXT",
        }

    def prepare(self) -> None:
        self._keeper.start()
        self.configure()

    def start(self) -> Self:
        self._until_forgotten()
        return super().start()

    def _until_forgotten(self) -> None:
        """A broker that comes back before its former self is forgotten ends at once."""
        ends = time.monotonic() + FORGOTTEN_WITHIN
        while "/brokers/ids/1" in self._keeper.ask("dump"):
            if time.monotonic() > ends:
                raise CannotBeHad(f"{self.name}: ZooKeeper does not forget a broker that was killed")
            time.sleep(0.05)

    def __enter__(self) -> Self:
        try:
            return super().__enter__()
        except BaseException:
            self._keeper.stop()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        super().__exit__(kind, error, tb)
        self._keeper.stop()
