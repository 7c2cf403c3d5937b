"""A consumer in a process of its own, which may be killed; see `tidings.testing._child` for what it does."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from tidings.testing._child import Job

GRACE = 40.0
"""Seconds in which a process that was told to stop has to end."""


class Process:
    """Starts it, listens to it, and ends it; `log` is where it says what is wrong."""

    def __init__(self, job: Job, log: Path, patience: float) -> None:
        self._job = job
        self._log = log
        self._patience = patience
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> Process:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tidings.testing._child", msgspec.json.encode(self._job).decode()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        return self

    @property
    def _it(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "it was not started"
        return self._process

    @property
    def lives(self) -> bool:
        return self._it.returncode is None

    async def ready(self) -> None:
        """Wait until it takes events."""
        await self._says("ready")

    async def ended(self) -> int:
        """Wait for its end; the number of the signal that ended it is below zero."""
        try:
            async with asyncio.timeout(self._patience):
                return await self._it.wait()
        except TimeoutError:
            raise AssertionError(f"after {self._patience:g} s it still runs. It said:\n{self._tail()}") from None

    async def stop(self) -> int:
        """Stop it with grace; the most memory that it ever had, in bytes."""
        self._it.terminate()
        return int((await self._says("peak")).split()[1])

    async def kill(self) -> None:
        """End it at once, if it lives. Safe to call twice."""
        if self._process is not None and self.lives:
            self._process.kill()
            await self._process.wait()

    async def _says(self, word: str) -> str:
        assert self._it.stdout is not None
        try:
            async with asyncio.timeout(max(self._patience, GRACE)):
                while line := (await self._it.stdout.readline()).decode():
                    if line.startswith(word):
                        return line
                await self._it.wait()
        except TimeoutError:
            raise AssertionError(f"it never said {word!r}. It said:\n{self._tail()}") from None
        raise AssertionError(f"it ended with status {self._it.returncode}. It said:\n{self._tail()}")

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]
