"""PgBouncer before a PostgreSQL, pooling by transaction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.services.postgres import Postgres
from tools.services.program import Program


class PgBouncer(Program):
    name = "PgBouncer"
    program = "pgbouncer"
    package = "pgbouncer"
    user = "postgres"

    def __init__(self, folder: Path, behind: Postgres, *settings: str) -> None:
        super().__init__(folder)
        self._behind = behind
        self.settings = settings

    @property
    def url(self) -> str:
        return self.database("postgres")

    def database(self, name: str) -> str:
        return f"postgresql://tidings:tidings@127.0.0.1:{self.port}/{name}"

    def command(self) -> Sequence[str]:
        return [str(self._binary), str(self.folder / "pgbouncer.ini")]

    def prepare(self) -> None:
        (self.folder / "users.txt").write_text('"tidings" "tidings"\n')
        (self.folder / "pgbouncer.ini").write_text(
            "\n".join(
                [
                    "[databases]",
                    f"* = host=127.0.0.1 port={self._behind.port}",
                    "[pgbouncer]",
                    "listen_addr = 127.0.0.1",
                    f"listen_port = {self.port}",
                    "unix_socket_dir =",
                    "auth_type = plain",
                    f"auth_file = {self.folder / 'users.txt'}",
                    "pool_mode = transaction",
                    "default_pool_size = 10",
                    *self.settings,
                    "",
                ]
            )
        )
