"""A server's program: found, started, killed, paused, and gone when its test is."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from tools.services.freezing import freeze_all, members
from tools.services.ports import free_port

STARTS_WITHIN = 100.0
STOPS_WITHIN = 30.0
FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/lib/postgresql/*/bin", "/usr/libexec")
"""Where Debian puts servers' programs that are not on everybody's path."""


class CannotBeHad(Exception):
    """A server that tests need is not here, and the reason says what to install."""


def find(name: str, package: str) -> Path:
    """The program of this name.

    Raises:
        CannotBeHad: it is not installed.
    """
    if found := shutil.which(name):
        return Path(found)  # not resolved: some programs go by the name they are called by
    for folder in FOLDERS:
        for candidate in sorted(Path("/").glob(f"{folder[1:]}/{name}"), reverse=True):
            if os.access(candidate, os.X_OK):
                return candidate
    raise CannotBeHad(f"there is no {name} (Debian: apt-get install --no-install-recommends {package})")


class Program(ABC):
    """One server. `with Postgres(folder) as server: server.url`; `stop` kills it, `start` brings it back as it was."""

    name: ClassVar[str]
    program: ClassVar[str]
    package: ClassVar[str]
    user: ClassVar[str] = ""
    """Whom it runs as where the tests run as root, because it refuses to be root's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._binary = find(self.program, self.package)
        self._process: subprocess.Popen[bytes] | None = None
        self._prepared = False

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients find it."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """How it is started, in the foreground."""

    def prepare(self) -> None:  # noqa: B027  # not every server has data to make
        """Make its data, once."""

    def ready(self) -> bool:
        """Whether it answers; asked until it does."""
        try:
            socket.create_connection(("127.0.0.1", self.port), 0.5).close()
        except OSError:
            return False
        return True

    @property
    def log(self) -> str:
        path = self.folder / "server.log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def run(self, *command: str) -> None:
        """A step of `prepare`.

        Raises:
            CannotBeHad: it failed; the reason holds what it printed.
        """
        user, group = self._as
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=STARTS_WITHIN, user=user, group=group, check=False
        )
        if done.returncode:
            raise CannotBeHad(f"{self.name}: {Path(command[0]).name} failed: {(done.stderr or done.stdout)[-800:]}")

    def start(self) -> Self:
        if not self._prepared:
            if self.user and os.geteuid() == 0:
                _open_the_way(self.folder, self.user)
            self.prepare()
            self._prepared = True
        user, group = self._as
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                list(self.command()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=user,
                group=group,
            )
        ends = time.monotonic() + STARTS_WITHIN
        try:
            while not self.ready():
                if self._process.poll() is not None or time.monotonic() > ends:
                    raise CannotBeHad(f"{self.name} did not start: {self.log}")
                time.sleep(0.05)
        except BaseException:  # also where a test's time is over: nobody else knows of it yet
            self.stop()
            raise
        return self

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it; without another word, unless told otherwise. Nothing that it started stays."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            self._tell(process, signal.SIGCONT)
            process.send_signal(how)
            try:
                process.wait(STOPS_WITHIN)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait(STOPS_WITHIN)
        ends = time.monotonic() + STOPS_WITHIN
        while members(process.pid) and time.monotonic() < ends:  # until then their ports are taken
            time.sleep(0.005)

    def pause(self) -> None:
        """It keeps its sockets and answers nothing, as a host that hangs."""
        freeze_all(lambda: members(self.pid))

    def resume(self) -> None:
        assert self._process is not None
        self._tell(self._process, signal.SIGCONT)

    @staticmethod
    def _tell(process: subprocess.Popen[bytes], what: signal.Signals) -> None:
        try:
            os.killpg(process.pid, what)
        except ProcessLookupError:
            pass

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def _as(self) -> tuple[int, int] | tuple[None, None]:
        """The user and group to run as; None leaves them as they are."""
        if not self.user or os.geteuid() != 0:
            return None, None
        found = pwd.getpwnam(self.user)
        return found.pw_uid, found.pw_gid


def _open_the_way(folder: Path, user: str) -> None:
    """The folder becomes the user's, and those above it can be passed (a test's are closed to others)."""
    found = pwd.getpwnam(user)
    os.chown(folder, found.pw_uid, found.pw_gid)
    for above in folder.parents:
        if above == Path("/"):
            break
        mode = above.stat().st_mode
        if not mode & 0o001:
            above.chmod(mode | 0o011)
