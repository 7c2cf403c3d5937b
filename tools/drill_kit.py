"""What the drill works with: command lines as a user types them, servers, and a folder that is left clean."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tidings
from tidings.brokers.nats.embedded_binary import verified_binary
from tools.services.ports import free_port

ROOT = Path(__file__).parents[1]
PACKAGES = Path(tidings.__path__[0]).parent
"""Where the package stands that is tried, which may be a copy."""
TIDINGS = (sys.executable, "-m", "tidings.cli")
SECRET = "hush-Pa55w0rd"
"""The password in every URL of the drill: no message may show it."""
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class NotToBeHad(Exception):
    """What a case needs is not permitted here."""


@dataclass(frozen=True)
class Seen:
    """What a user saw in one case."""

    message: str
    status: int | None
    lost: int | None = None
    """None where no events are involved."""
    twice: int | None = None
    wrong: str = ""
    """What else was not as it should be."""


@dataclass(frozen=True)
class Case:
    """Something that somebody does, and what is to come of it."""

    action: str
    run: Callable[[Kit], Seen]
    status: int
    says: tuple[str, ...]
    """What the message must hold: what happened, and the remedy."""


class Process:
    """A command that runs meanwhile; all that it prints goes to one file."""

    def __init__(self, command: Sequence[str], log: Path, cwd: Path, env: Mapping[str, str]) -> None:
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, env=env
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines that are JSON objects."""
        found = []
        for line in self.text.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                found.append(record)
        return found

    @property
    def complaints(self) -> list[str]:
        """What it logged at warning and above, and the failure it ended with."""
        levels = ("warning", "error", "critical")
        return [
            str(one.get("error") or one.get("message"))
            for one in self.records
            if one.get("level") in levels or "error" in one
        ]

    def ready(self, seconds: float = 60.0) -> dict[str, Any]:
        """Wait until it says that it is ready."""
        until(lambda: self.popen.poll() is not None or any("ready" in one for one in self.records), seconds)
        for one in self.records:
            if "ready" in one:
                return one
        raise AssertionError(f"it ended with status {self.popen.returncode}:\n{self.text}")

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM, seconds: float = 40.0) -> int:
        """Send a signal, unless it has ended, and wait for its exit status."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.wait(seconds)

    def wait(self, seconds: float = 40.0) -> int:
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise


class Kit:
    """One case: a folder of its own, what was said in it, and an end that leaves nothing behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secrets = [SECRET]
        self.said: list[str] = []
        self._processes: list[Process] = []
        self._stack = ExitStack()
        folder.mkdir(parents=True)

    def __enter__(self) -> Kit:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGCONT)
                process.popen.kill()
                process.popen.wait()
        self._stack.close()
        end_all_of(self.folder)

    def write(self, **files: str) -> None:
        """Python modules of the case, by their names."""
        for name, text in files.items():
            (self.folder / f"{name}.py").write_text(text)

    def env(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment, without anything of Tidings that happens to be set."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TIDINGS_", "SHOP_"))}
        return {**kept, "PYTHONPATH": f"{ROOT}:{PACKAGES}", **(more or {})}

    def tidings(
        self,
        *arguments: str,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        inside: Sequence[str] = (),
        seconds: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command line to its end, away from any terminal. `inside` is a command that runs it."""
        done = subprocess.run(
            [*inside, *TIDINGS, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            cwd=self.folder,
            env=self.env(env),
            check=False,
        )
        self.said += [done.stdout, done.stderr]
        return done

    def start(
        self,
        *arguments: str,
        name: str = "",
        command: Sequence[str] = TIDINGS,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        inside: Sequence[str] = (),
    ) -> Process:
        """Start a command that runs meanwhile."""
        log = self.folder / f"{name or arguments[0]}-{len(self._processes)}.log"
        process = Process([*inside, *command, *arguments], log, cwd or self.folder, self.env(env))
        self._processes.append(process)
        return process

    def server(self, settings: str) -> int:
        """A plain nats-server with these settings; returns its port once it listens."""
        port = free_port()
        conf = self.folder / f"server-{port}.conf"
        conf.write_text(f'listen: "127.0.0.1:{port}"\n{settings}\n')
        process = self.start("-c", str(conf), name="server", command=[str(verified_binary())])
        until(lambda: listens(port) or process.popen.poll() is not None, 15)
        return port

    def occupied(self) -> int:
        """A port that another program holds."""
        taken = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        return int(taken.getsockname()[1])

    def disk(self, options: str) -> tuple[Path, tuple[str, ...]]:
        """A small disk of its own, seen only by what runs inside the command that is returned.

        Raises:
            NotToBeHad: this machine permits no mount.
        """
        folder = self.folder / "disk"
        folder.mkdir()
        script = f'mount -t tmpfs -o {options} none "$0" && exec "$@"'
        inside = ("unshare", "-rm", "sh", "-c", script, str(folder))
        try:
            tried = subprocess.run([*inside, "true"], capture_output=True, text=True, timeout=10, check=False)
        except OSError as error:
            raise NotToBeHad(f"a disk of its own: unshare: {error.strerror}") from None
        if tried.returncode:
            raise NotToBeHad(f"a disk of its own: {tried.stderr.strip()}")
        return folder, inside

    def url(self, up: Process, folder: Path) -> str:
        """The URL of the server that a `tidings up` keeps, for those that are not embedded; a secret is in it."""
        address = up.ready()["ready"]
        password = Path(f"/proc/{up.pid}/root{folder}/password").read_text().strip()
        self.secrets.append(password)
        return f"nats://tidings:{password}@{address}"

    def left_behind(self) -> list[int]:
        """Processes that still run and whose command line names the folder of this case, but for those we started."""
        mine, ours = str(self.folder).encode(), {os.getpid(), *(process.pid for process in self._processes)}
        return [pid for pid, command in commands() if mine in command and pid not in ours]

    def everything(self) -> str:
        """All that was said in this case, in any file or stream that a user reads."""
        return "\n".join([*self.said, *(process.text for process in self._processes)])


def until(condition: Callable[[], object], seconds: float, pause: float = 0.05) -> bool:
    """Wait for a condition, so long at most; whether it came true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
    except OSError:
        return False
    return True


def commands() -> list[tuple[int, bytes]]:
    """All processes that can be seen, with their command lines; zombies have none."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((int(entry.name), (entry / "cmdline").read_bytes()))
            except OSError:
                pass  # it ended meanwhile
    return found


def end_all_of(folder: Path) -> None:
    """Kill what still runs in this folder, or names it: a worker whose parent was killed, a server whose users were."""
    mine = re.compile(re.escape(str(folder).encode()) + rb"(?![\w.-])")
    for _ in range(20):  # what is killed may just have started another
        found = [pid for pid, command in commands() if mine.search(command) or mine.match(_place_of(pid))]
        if not (found := [pid for pid in found if pid != os.getpid()]):
            return
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _place_of(pid: int) -> bytes:
    try:
        return os.readlink(f"/proc/{pid}/cwd").encode()
    except OSError:
        return b""  # it has ended, or is none of ours


def distinct(lines: list[str]) -> list[str]:
    """Each line once, in order; those that differ in the event's id only are told together."""
    counts = Counter(_ID.sub("<id>", line) for line in lines)
    return [line if count == 1 else f"{line} ({count} times)" for line, count in counts.items()]


def plain(text: str) -> str:
    """What a command said, without the frame of its log lines."""
    lines = []
    for line in text.splitlines():
        try:
            lines.append(str(json.loads(line)["message"]))
        except (ValueError, KeyError, TypeError):
            lines.append(line)
    return "\n".join(distinct(lines))
