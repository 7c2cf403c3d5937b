"""MariaDB, as durable as it comes: innodb_flush_log_at_trx_commit stays 1."""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence

from tools.services.program import Program, find


class MariaDB(Program):
    name = "MariaDB"
    program = "mariadbd"
    package = "mariadb-server-core mariadb-client-core"
    settings: Sequence[str] = ()

    @property
    def url(self) -> str:
        return self.database("test")

    def database(self, name: str) -> str:
        return f"mariadb+aiomysql://tidings:tidings@127.0.0.1:{self.port}/{name}"

    def prepare(self) -> None:
        install = find("mariadb-install-db", self.package)
        self.run(
            str(install),
            "--no-defaults",
            f"--datadir={self.folder / 'data'}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            f"--tmpdir={self.folder}",  # two servers at once are in each other's way in a common one
            f"--user={self._me()}",
        )
        (self.folder / "init.sql").write_text(
            "CREATE USER IF NOT EXISTS 'tidings'@'%' IDENTIFIED BY 'tidings';\n"
            "GRANT ALL ON *.* TO 'tidings'@'%' WITH GRANT OPTION;\n"
            "CREATE DATABASE IF NOT EXISTS test;\n"
        )

    def command(self) -> Sequence[str]:
        return [
            str(self._binary), "--no-defaults", f"--datadir={self.folder / 'data'}", f"--user={self._me()}",
            "--bind-address=127.0.0.1", f"--port={self.port}", f"--socket={self.folder / 's'}",
            f"--pid-file={self.folder / 'pid'}", f"--init-file={self.folder / 'init.sql'}", "--skip-name-resolve",
            f"--tmpdir={self.folder}", "--innodb-buffer-pool-size=64M", *(f"--{one}" for one in self.settings),
        ]  # fmt: skip

    def ready(self) -> bool:
        """A client of its own was greeted: it listens before it has read its users."""
        import pymysql

        try:
            pymysql.connect(
                host="127.0.0.1", port=self.port, user="tidings", password="tidings", database="test", connect_timeout=2
            ).close()
        except pymysql.Error:
            return False
        return True

    def create(self, name: str) -> str:
        """Make an empty database; its URL."""
        import pymysql

        connection = pymysql.connect(host="127.0.0.1", port=self.port, user="tidings", password="tidings")
        with connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE `{name}`")
        return self.database(name)

    @staticmethod
    def _me() -> str:
        return "root" if os.geteuid() == 0 else getpass.getuser()
