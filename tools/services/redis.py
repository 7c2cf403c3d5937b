"""Redis; what it keeps, and how durably, is each test's to say."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from tools.services.program import Program


class Redis(Program):
    name = "Redis"
    program = "redis-server"
    package = "redis-server"

    def __init__(self, folder: Path, *settings: str) -> None:
        super().__init__(folder)
        self.settings = settings or ("appendonly yes", "appendfsync always", "maxmemory-policy noeviction")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str]:
        lines = ["bind 127.0.0.1", f"port {self.port}", f"dir {self.folder}", "daemonize no"]
        lines.append("set-proc-title no")  # it would write over the mark in its environment: see `leftovers`
        (self.folder / "redis.conf").write_text("\n".join([*lines, *self.settings, ""]))
        return [str(self._binary), str(self.folder / "redis.conf")]

    def ready(self) -> bool:
        """It answers, and has read what it kept."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as one:
                one.settimeout(2.0)
                one.sendall(b"PING\r\n")
                return one.recv(64).startswith(b"+PONG")
        except OSError:
            return False
