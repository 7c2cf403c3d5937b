"""RabbitMQ: a node of its own with its own epmd, as durable as it comes (quorum queues sync what they store)."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.services.ports import free_port
from tools.services.program import Program, find

_DEBIANS: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Debian's program of that name on the path insists on its own user; this is the one that it starts."""

SETTINGS: Final = (
    "log.console = true",
    "log.console.level = warning",
    "log.file = false",
    "disk_free_limit.absolute = 50MB",
    "raft.wal_max_size_bytes = 33554432",  # what a node of tests may take of memory and disk
)


class RabbitMQ(Program):
    """`settings` are lines of ``rabbitmq.conf`` beside those that make it a server of tests."""

    name = "RabbitMQ"
    program = "rabbitmq-server"
    package = "rabbitmq-server"
    node = "rabbit@localhost"
    """Its name to others of its kind."""

    def __init__(self, folder: Path, *settings: str) -> None:
        super().__init__(folder)
        if _DEBIANS.exists():
            self._binary = _DEBIANS
        self._epmd = find("epmd", "erlang-base")
        self._epmd_port, self._distribution = free_port(), free_port()
        self.settings = settings

    @property
    def url(self) -> str:
        return f"amqp://tidings:tidings@127.0.0.1:{self.port}"

    def prepare(self) -> None:
        lines = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            "default_user = tidings",
            "default_pass = tidings",  # a throw-away server's, on loopback
            *SETTINGS,
            *self.settings,
        ]
        (self.folder / "rabbitmq.conf").write_text("\n".join([*lines, ""]))
        (self.folder / "enabled_plugins").write_text("[].\n")

    def environment(self) -> dict[str, str]:
        """Everything of this node stands in its folder, its cookie too, and listens on loopback."""
        return {
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 -kernel inet_dist_use_interface {127,0,0,1}",
            "RUNNING_UNDER_SYSTEMD": "true",  # the node itself, in the place of a shell that would watch it
        }

    def command(self) -> Sequence[str]:
        """With an epmd in its own process group, so that it goes with the node and with no other."""
        both = f"'{self._epmd}' -address 127.0.0.1 -port {self._epmd_port} & exec '{self._binary}'"
        return ["env", *(f"{name}={value}" for name, value in self.environment().items()), "sh", "-c", both]

    def control(self, *words: str) -> str:
        """What rabbitmqctl says to that."""
        program = self._binary.with_name("rabbitmqctl")
        environment = {**os.environ, **self.environment()}
        done = subprocess.run(
            [program, *words], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def ready(self) -> bool:
        """It greets: a node that only begins to listen closes what comes."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as one:
                one.settimeout(2.0)
                one.sendall(b"AMQP\x00\x00\x09\x01")
                return one.recv(1) == b"\x01"
        except OSError:
            return False
