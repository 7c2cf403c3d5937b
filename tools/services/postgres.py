"""PostgreSQL, durable as it comes: fsync and synchronous_commit stay on."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence

import psycopg
from psycopg import sql

from tools.services.freezing import freeze_all, tell
from tools.services.program import Program, find


class Postgres(Program):
    name = "PostgreSQL"
    program = "postgres"
    package = "postgresql"
    user = "postgres"
    settings: Sequence[str] = ()

    @property
    def url(self) -> str:
        return self.database("postgres")

    def database(self, name: str) -> str:
        return f"postgresql://tidings:tidings@127.0.0.1:{self.port}/{name}"

    def prepare(self) -> None:
        secret = self.folder / "password"
        secret.write_text("tidings\n")
        secret.chmod(0o644)  # a throw-away server's, on loopback
        initdb = find("initdb", self.package)
        self.run(str(initdb), "-D", str(self.folder / "data"), "-U", "tidings", f"--pwfile={secret}", "-A",
                 "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync")  # fmt: skip

    def command(self) -> Sequence[str]:
        settings = ["listen_addresses=127.0.0.1", f"port={self.port}", f"unix_socket_directories={self.folder}",
                    "max_connections=200", *self.settings]  # fmt: skip
        return [str(self._binary), "-D", str(self.folder / "data"), *(word for one in settings for word in ("-c", one))]

    def ready(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def create(self, name: str) -> str:
        """Make an empty database; its URL."""
        with psycopg.connect(self.url, autocommit=True, connect_timeout=10) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.database(name)

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """SIGKILL ends every server process at once, as a power cut would; SIGINT is PostgreSQL's fast shutdown."""
        if self._process is not None and how is signal.SIGKILL:
            self._tell_all(signal.SIGKILL)
        super().stop(how)

    def pause(self) -> None:
        """It keeps its sockets and answers nothing, over no connection."""
        freeze_all(self._all)

    def resume(self) -> None:
        self._tell_all(signal.SIGCONT)

    def _tell_all(self, what: signal.Signals) -> None:
        for one in self._all():
            tell(one, what)

    def _all(self) -> list[int]:
        """The server and its sessions, which the group does not hold: each begins one of its own."""
        pid = self.pid
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, timeout=10)
        return [pid, *map(int, listed.stdout.split())]
