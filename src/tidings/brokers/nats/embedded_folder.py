"""The data folder of an embedded server: its locks, its secret, its settings and the note of who runs in it.

Two servers on one folder would destroy each other's streams. What prevents it is not a file that says "in use", which
outlives a SIGKILL, but a lock of the kernel: the server process itself inherits a locked file (`server.lock`), and the
kernel lets go of it at the very moment that process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from tidings.errors import BrokerUnavailable, ConfigurationError, TidingsError

USER: Final = "tidings"
MAX_PAYLOAD: Final = "2MB"
"""Twice what an event may have, so that a dead letter has room for its reason and traceback in the headers."""
LEAST_FREE: Final = 8 * 1024 * 1024
"""Bytes that must be free on the disk for a start: with less the server starts, and then refuses every event."""

_PASSWORD: Final = re.compile(r"[0-9a-f]{48}")
_IGNORED: Final = {"lost+found"}

_SETTINGS: Final = """\
# Written by Tidings at every start; changes here are lost. It holds the password: keep it private.
server_name: {instance}
host: "127.0.0.1"
port: {port}
http: "127.0.0.1:{monitor_port}"
pid_file: {pid_file}
log_file: {log_file}
logfile_size_limit: 10MB
logfile_max_num: 3
max_payload: {max_payload}
authorization {{ user: {user}, password: {password} }}
# sync_interval: an event is acknowledged once it is on the disk, not up to two minutes before.
jetstream {{ store_dir: {store_dir}, sync_interval: always, max_file_store: {max_bytes} }}
"""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Who runs, or last ran, in the folder. Never believed without asking: the lock says whether it lives."""

    instance: str
    """A name made for this one start; the server tells it to whoever connects."""
    port: int
    monitor_port: int
    version: str
    url: str
    """Without the password."""
    pid: int | None = None

    @property
    def monitor_url(self) -> str:
        return f"http://127.0.0.1:{self.monitor_port}"


class FileLock:
    """An flock on a file of its own. The kernel lets go of it when its holder ends, also by SIGKILL."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        return self._fd is not None

    @property
    def fd(self) -> int:
        """The open, locked file, for a child to inherit."""
        assert self._fd is not None
        return self._fd

    def acquire(self, *, shared: bool = False) -> bool:
        """Take the lock if it is free; never waits."""
        import fcntl  # not on Windows, where this module must still import

        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as reason:
            os.close(fd)
            if reason.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        self._fd = fd
        return True

    def make_exclusive(self) -> bool:
        """Turn our shared hold into the only one, if nobody else has one. If not, ours may be gone too."""
        import fcntl

        if self._fd is None:
            return False
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Let go of it, also for copies that a fork made."""
        import fcntl

        if self._fd is not None:
            fd, self._fd = self._fd, None
            try:
                fcntl.flock(fd, fcntl.LOCK_UN)
            finally:
                os.close(fd)

    def hand_over(self) -> None:
        """Close our end only: the child that inherited it keeps the lock."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)


class Folder:
    """The files of one embedded server."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Without links: the server's command line, by which it is known, must read the same to everybody.
        self.path = Path(os.path.realpath(Path(path).expanduser()))
        self.settings_file = self.path / "nats-server.conf"
        self.log_file = self.path / "nats-server.log"
        self.stderr_file = self.path / "nats-server.stderr"
        self.pid_file = self.path / "nats-server.pid"
        self.state_file = self.path / "state.json"
        self.password_file = self.path / "password"
        self._marker = self.path / "lock"

    def start_lock(self) -> FileLock:
        """Held while a server is started, joined or stopped: by one process at a time."""
        return FileLock(self._marker)

    def users_lock(self) -> FileLock:
        """Held shared by everybody who uses the server: whoever gets it exclusively is the last."""
        return FileLock(self.path / "users.lock")

    def server_lock(self) -> FileLock:
        """Held by the server process for as long as it lives."""
        return FileLock(self.path / "server.lock")

    def has_server(self) -> bool:
        """Whether a server process lives on this folder, whatever the files say."""
        probe = self.server_lock()
        try:
            free = probe.acquire(shared=True)
        except (FileNotFoundError, NotADirectoryError):
            return False
        probe.release()
        return not free

    def prepare(self) -> None:
        """Make the folder if need be, private, and make sure that it is ours to use.

        Raises:
            ConfigurationError: it is no folder, holds other things, cannot be written or cannot be kept private.
            BrokerUnavailable: its disk is full.
        """
        with self.explained():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._marker.exists():
                others = sorted(set(os.listdir(self.path)) - _IGNORED)
                # Another process may be making the same folder just now: its marker comes first.
                if others and not self._marker.exists():
                    raise ConfigurationError(
                        f"the folder {self.path} holds other things ({others[0]}), and the embedded server wants one of"
                        f" its own. Name an empty or a new one: embedded:{self.path}/.tidings"
                    )
            self._make_private()
            os.close(os.open(self._marker, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            ignore = self.path / ".gitignore"
            if not ignore.exists():
                self._write(ignore, "# The data and the password of an embedded server: not for a repository.\n*\n")

    def _make_private(self) -> None:
        if stat.S_IMODE(self.path.stat().st_mode) & 0o077:
            try:
                self.path.chmod(0o700)
            except PermissionError:
                pass  # not ours: said below
        if stat.S_IMODE(self.path.stat().st_mode) & 0o077:
            raise ConfigurationError(
                f"the folder {self.path} can be opened by others, and its mode cannot be changed to 0700: it belongs to"
                f" somebody else, or its file system has no modes. Name a folder of your own: embedded:/path"
            )

    def read_password(self) -> str | None:
        """The password of the folder's server; None if there is none yet or it is no password of ours."""
        try:
            found = self.password_file.read_text("ascii", "replace").strip()
        except OSError:
            return None
        return found if _PASSWORD.fullmatch(found) else None

    def keep_password(self, known: str | None) -> str:
        """The password for a server that starts: the one that its clients know, else the folder's, else a new one."""
        found = self.read_password()
        if found is not None and known in (None, found):
            self.password_file.chmod(0o600)
            return found
        password = known or secrets.token_hex(24)
        self._write(self.password_file, password + "\n")
        return password

    def state(self) -> State | None:
        """The note of the last start; None if there is none or it cannot be read."""
        try:
            return msgspec.json.decode(self.state_file.read_bytes(), type=State)
        except (OSError, msgspec.DecodeError):
            return None

    def pid(self, state: State) -> int | None:
        """The server's process id: from the note, or from the server itself if the starter died before noting it."""
        if state.pid is not None:
            return state.pid
        try:
            return int(self.pid_file.read_text("ascii"))
        except (OSError, ValueError):
            return None

    def write_state(self, state: State) -> None:
        self._write(self.state_file, msgspec.json.encode(state).decode() + "\n")

    def write_settings(self, state: State, password: str) -> None:
        """The server's configuration. The password stands only here and in the password file, both mode 0600."""
        self.pid_file.unlink(missing_ok=True)
        text = _SETTINGS.format(
            instance=quoted(state.instance),
            port=state.port,
            monitor_port=state.monitor_port,
            pid_file=quoted(self.pid_file),
            log_file=quoted(self.log_file),
            max_payload=MAX_PAYLOAD,
            user=quoted(USER),
            password=quoted(password),
            store_dir=quoted(self.path),
            max_bytes=self._most_bytes(),
        )
        self._write(self.settings_file, text)

    def _most_bytes(self) -> int:
        """What the streams may hold: what they hold, and nine tenths of what is free.

        The server's own default counts three quarters of what is free *now* against all that is stored, so that after
        a restart a disk more than half full would take nothing any more.
        """
        used = 0
        for parent, _, files in os.walk(self.path / "jetstream"):
            for name in files:
                with contextlib.suppress(OSError):
                    used += os.stat(os.path.join(parent, name)).st_size
        return used + shutil.disk_usage(self.path).free * 9 // 10

    def check_disk(self) -> None:
        """Raises BrokerUnavailable if the disk has too little room to store anything."""
        with self.explained():
            if shutil.disk_usage(self.path).free < LEAST_FREE:
                raise disk_full(self.path)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn an error of the file system into one that says what to do."""
        try:
            yield
        except OSError as reason:
            raise explain_os_error(reason, self.path) from None

    def _write(self, path: Path, text: str) -> None:
        """Replace a file whole, readable by its owner only, so that a reader never sees half of it."""
        draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.new")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def quoted(value: str | os.PathLike[str]) -> str:
    """A value as the server's configuration language wants it."""
    # The escapes of its strings are JSON's, but for \u, which ensure_ascii=False leaves to control characters.
    return json.dumps(os.fspath(value), ensure_ascii=False)


def disk_full(folder: Path) -> BrokerUnavailable:
    return BrokerUnavailable(
        f"the disk that holds {folder} is full, so no event can be stored. Free some space there (at least"
        f" {LEAST_FREE // 1024 // 1024} MB); nothing that was stored is lost"
    )


def explain_os_error(reason: OSError, folder: Path) -> TidingsError:
    """What an error of the file system means for the folder, and what to do about it."""
    if reason.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(folder)
    if reason.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ConfigurationError(
            f"the embedded server cannot write to its folder {folder} ({reason.strerror}). Make it writable for this"
            f" user, or name another: embedded:/path"
        )
    if reason.errno == errno.ENOENT:
        return BrokerUnavailable(
            f"the folder {folder} of the embedded server was removed while it was in use. Put it back, or stop all"
            f" processes that use it and start them again"
        )
    if reason.errno in (errno.ENOTDIR, errno.EEXIST):
        return ConfigurationError(
            f"{folder} is, or lies below, a file, and the embedded server needs a folder. Name another: embedded:/path"
        )
    if reason.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
        return ConfigurationError(
            f"the file system of {folder} has no file locks ({reason.strerror}), without which two servers could run on"
            f" one folder. Name a folder on a local disk: embedded:/path"
        )
    return BrokerUnavailable(
        f"the folder {folder} of the embedded server cannot be used ({reason.strerror}). Look at its disk, or name"
        f" another: embedded:/path"
    )
