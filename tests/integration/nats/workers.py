"""Processes of one ordered position, as a test starts and ends them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.integration.nats.conftest import until
from tests.integration.nats.pace import Span, longest

ROOT: Final = Path(__file__).parents[3]

Row = tuple[str, int, int, int]
"""Key, number, process and delivery count of an event that was handled."""


class Workers:
    """Processes of one ordered position, and the ledger that they write."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self.ledger = folder / "ledger"
        self._log = (folder / "workers.log").open("ab")
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.ended: list[int] = []
        self.stood: list[Span] = []
        """When the test itself, or the server, stood still; the processes say it of themselves."""

    def start(self, pause: float = 0.002) -> None:
        command = [sys.executable, "-m", "tests.integration.nats.ordered_worker", self._url, str(self.ledger)]
        process = subprocess.Popen([*command, str(pause)], stderr=self._log, cwd=ROOT)
        self.processes[process.pid] = process

    async def ready(self, count: int) -> None:
        """Wait until so many say that they take events."""
        await until(lambda: len(self._lines("ready")) >= count, 60)

    def _lines(self, kind: str) -> list[list[str]]:
        if not self.ledger.exists():
            return []
        whole = self.ledger.read_text().rpartition("\n")[0]  # the last line may be on its way
        lines = [line.split() for line in whole.splitlines()]
        if kind == "row":
            return [line for line in lines if line[0] not in ("ready", "stood")]
        ended = {str(pid) for pid in self.ended}
        return [line for line in lines if line[0] == kind and not (kind == "ready" and line[1] in ended)]

    @property
    def rows(self) -> list[Row]:
        return [(key, int(number), int(pid), int(count)) for key, number, pid, count, _ in self._lines("row")]

    def applied(self, count: int) -> bool:
        """Whether so many events were handled, each counted once."""
        return len({row[:2] for row in self.rows}) >= count

    def longest_gap(self) -> float:
        """The longest time without an event of a key, in seconds in which the machine let everybody work."""
        times: dict[str, list[float]] = {}
        for key, _, _, _, at in self._lines("row"):
            times.setdefault(key, []).append(float(at))
        stood = [*self.stood, *((float(since), float(to)) for _, since, to in self._lines("stood"))]
        return max(longest(at, stood) for at in times.values())

    def end(self, pid: int, how: signal.Signals) -> None:
        process = self.processes[pid]
        process.send_signal(how)
        process.wait(60)
        del self.processes[pid]
        self.ended.append(pid)

    def end_all(self) -> None:
        self._log.close()
        for pid in list(self.processes):
            self.end(pid, signal.SIGKILL)
