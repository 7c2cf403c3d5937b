"""How far a command has come: a bar on a terminal, a line now and then elsewhere, nothing for programs."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from tidings.cli.output import Out

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

EVERY: Final = 5.0
"""Seconds between two lines where there is no terminal."""


class Progress:
    """Counts what is done. It goes to stderr, so that a pipe gets the output alone."""

    def __init__(self, out: Out, what: str, total: int | None, done: int = 0) -> None:
        self._out = out
        self._what = what
        self._total = total
        self.done = done
        self._began, self._before = time.monotonic(), done
        self._told = self._began
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        if not self._out.json and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._what, total=self._total, completed=self.done)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def drawn(self) -> bool:
        """There is a bar, beside which nothing may be printed but by `say`."""
        return self._bar is not None

    def step(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        elif time.monotonic() - self._told >= EVERY:
            self._told = time.monotonic()
            rate = (self.done - self._before) / (self._told - self._began)
            of = f" of {self._total:,}" if self._total is not None else ""
            self._out.aside(f"{self._what}: {self.done:,}{of}, {rate:,.0f} a second")

    def say(self, text: str) -> None:
        """A line beside the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            self._out.aside(text)
