"""The tutorial is true: its files are written, its commands are typed on a terminal, and their output is compared.

Ids, times, ports and process ids differ from run to run: each stands for whatever is found in its place.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from tests.unit.test_docs import blocks
from tools.drill_kit import end_all_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial" / "first-service.md"
LIMIT = 60.0
ONLY_LOOK = ("tidings tail", "tidings dead list", "python -c")
VARYING = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # an event's id
    r"|\d{4}-\d{2}-\d{2}T[\d:.]+(?:\+00:00|Z)"
    r"|\b[0-9a-f]{24}\b|\b(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{10}\b"  # a letter's, whole or its beginning
    r"|(?<=127\.0\.0\.1:)\d+|(?<=\(pid )\d+"
)

pytestmark = pytest.mark.server


class Terminal:
    """A process with a terminal of its own, wide enough for every line."""

    def __init__(self, command: str, folder: Path) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 250, 0, 0))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS_")}
        environment |= {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "TERM": "dumb"}
        environment |= {"COLUMNS": "250", "LINES": "50"}
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self._printed = b""
        self._thread = threading.Thread(target=self._read, args=(ours,))
        self._thread.start()

    @property
    def printed(self) -> str:
        return self._printed.decode().replace("\r\n", "\n")

    def _read(self, ours: int) -> None:
        try:
            while data := os.read(ours, 65536):
                self._printed += data
        except OSError:
            pass  # so it ends on Linux
        os.close(ours)

    def wait_for(self, text: str) -> None:
        self.wait_for_a(re.escape(text))

    def wait_for_a(self, pattern: str) -> None:
        end = time.monotonic() + LIMIT
        while not re.search(pattern, self.printed):
            assert self.process.poll() is None, self.printed
            assert time.monotonic() < end, self.printed
            time.sleep(0.05)

    def end(self, number: signal.Signals | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(LIMIT)
        self._thread.join(LIMIT)
        return status


class Reader:
    """Somebody who follows the page to the letter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services: dict[str, Terminal] = {}
        self.ids: dict[str, str] = {}
        """What stands on the page, and what this run has in its place."""

    def type(self, command: str, shown: str) -> None:
        for on_page, here in self.ids.items():
            command = command.replace(on_page, here)
        if command.startswith("tidings run"):
            terminal = self.services[command] = Terminal(command, self.folder)
            terminal.wait_for_a("\\(pid \\d+\\)")
            self._compare(shown, terminal.printed)
            return
        end = time.monotonic() + LIMIT
        printed = self._output(command)
        while command.startswith(ONLY_LOOK) and not _pattern(shown).fullmatch(_plain(printed)):
            if time.monotonic() > end:
                break
            time.sleep(0.3)  # what was published a moment ago takes a moment to arrive
            printed = self._output(command)
        self._compare(shown, printed)

    def interrupt(self) -> None:
        """Ctrl-C in the terminal of the service that was started last."""
        assert self.services.popitem()[1].end(signal.SIGINT) == 0

    def _output(self, command: str) -> str:
        terminal = Terminal(command, self.folder)
        status = terminal.end()
        # What only looks may come before there is anything to see: then what it printed is not what is shown.
        assert status == 0 or command.startswith(ONLY_LOOK), terminal.printed
        return terminal.printed

    def _compare(self, shown: str, printed: str) -> None:
        if not _pattern(shown).fullmatch(_plain(printed)):
            assert _plain(printed) == _plain(shown)
        for on_page, here in zip(VARYING.findall(shown), VARYING.findall(printed), strict=False):
            self.ids.setdefault(on_page, here)


def _plain(text: str) -> str:
    lines = (" ".join(line.split()) for line in VARYING.sub("~", text).splitlines())
    return "\n".join(line for line in lines if line)


def _pattern(shown: str) -> re.Pattern[str]:
    """``…`` on a line of its own stands for any lines."""
    return re.compile(re.escape(_plain(shown)).replace("…", ".*"), re.DOTALL)


def test_the_tutorial_is_true(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    try:
        for block in blocks(PAGE):
            name = re.match(r"# (\w+\.py)\n", block.text)
            if block.language == "python" and name:
                (tmp_path / name[1]).write_text(block.text)
            elif block.language == "python":
                file = tmp_path / "payments.py"
                file.write_text(re.sub(r"^PRICES = .*$", block.text.strip(), file.read_text(), flags=re.MULTILINE))
            elif block.language == "console":
                for typed in re.split(r"^(?=\$ |\^C)", block.text, flags=re.MULTILINE):
                    command, _, shown = typed.partition("\n")
                    if command == "^C":
                        reader.interrupt()
                    elif command:
                        reader.type(command.removeprefix("$ "), shown)
        reader.services["tidings run payments --port 9465"].wait_for("duplicate: it was applied before")
        for service in reader.services.values():
            service.end(signal.SIGINT)
    finally:
        end_all_of(tmp_path)
