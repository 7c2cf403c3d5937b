"""Worker processes of the demo: started with the command line that everybody uses, killed without mercy, replaced."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Workers:
    """Keeps so many processes of each service alive, and counts the outcomes in their log lines."""

    def __init__(self, broker: str, stores: Mapping[str, str], logs: Path, env: Mapping[str, str]) -> None:
        self._broker, self._stores, self._logs = broker, stores, logs
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self._env = {**os.environ, **env, "PYTHONPATH": path}
        self._slots: list[tuple[str, asyncio.subprocess.Process]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.ready = 0
        self.outcomes: Counter[str] = Counter()
        self.killed = 0

    def start(self, service: str, count: int) -> None:
        """Start `count` processes of a service, each replaced when it ends."""
        for number in range(count):
            task = asyncio.create_task(self._keep(service, number))
            self._tasks.add(task)

    async def wait_ready(self, count: int, seconds: float) -> None:
        """Wait until so many processes have said that they are ready."""
        async with asyncio.timeout(seconds):
            while self.ready < count:
                self._raise_if_failed()
                await asyncio.sleep(0.05)

    def kill_one(self, service: str, rng: random.Random) -> int | None:
        """SIGKILL one process of a service; its number, or None when none is there just now."""
        alive = [process for name, process in self._slots if name == service and process.returncode is None]
        if not alive:
            return None
        process = rng.choice(alive)
        process.send_signal(signal.SIGKILL)
        self.killed += 1
        return process.pid

    async def stop(self) -> list[int]:
        """Stop all of them with SIGTERM and return their exit statuses; one that does not stop in time is killed."""
        self._stopping = True
        processes = [process for _, process in self._slots if process.returncode is None]
        for process in processes:
            process.terminate()
        try:
            async with asyncio.timeout(30):
                await asyncio.gather(*(process.wait() for process in processes))
        except TimeoutError:
            for process in processes:
                if process.returncode is None:
                    process.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return [process.returncode or 0 for process in processes]

    async def _keep(self, service: str, number: int) -> None:
        failures = 0
        while not self._stopping and failures < 5:
            process = await self._spawn(service)
            slot = (service, process)
            self._slots.append(slot)
            await self._read(process, self._logs / f"{service}-{number}.log")
            await process.wait()
            self._slots.remove(slot)
            failures = failures + 1 if process.returncode != -signal.SIGKILL else 0
            await asyncio.sleep(0.1)
        if failures and not self._stopping:
            log = self._logs / f"{service}-{number}.log"
            raise RuntimeError(f"{service} does not stay up; the end of {log}:\n{_tail(log)}")

    def _raise_if_failed(self) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error

    async def _spawn(self, service: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tidings.cli", "run", f"examples.shop.{service}:{service}"),
            *("--broker", self._broker, "--store", self._stores[service], "--port", "0", "--json"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._env,
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C reaches the demo alone, which then stops its workers in order
        )

    async def _read(self, process: asyncio.subprocess.Process, path: Path) -> None:
        assert process.stdout is not None
        with path.open("ab") as log:
            async for line in process.stdout:
                log.write(line)
                self._count(line)

    def _count(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
        except ValueError:
            return
        if not isinstance(entry, dict):
            return
        if outcome := entry.get("outcome"):
            self.outcomes[str(outcome)] += int(entry.get("count", 1))
        elif "ready" in entry:
            self.ready += 1


def _tail(path: Path, lines: int = 5) -> str:
    text = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join(text[-lines:])
