"""What the demo shows: progress while it runs, and the comparison at its end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One handler, compared with what was published."""

    handler: str
    expected: int
    applied: int
    lost: int
    twice: int

    @classmethod
    def compare(cls, handler: str, wanted: set[str], effects: Counter[str]) -> Stage:
        """Compare the keys that were published with the rows of the ledger."""
        return cls(
            handler=handler,
            expected=len(wanted),
            applied=sum(1 for key in wanted if effects[key]),
            lost=sum(1 for key in wanted if not effects[key]),
            twice=sum(count - 1 for count in effects.values() if count > 1),
        )


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The end of the demo."""

    stages: list[Stage]
    published: int
    refused: int
    repeated: int
    retried: int
    redelivered: int
    dead: int
    dead_expected: int
    dead_unmeant: int
    worker_kills: int
    server_kills: int

    @property
    def lost(self) -> int:
        return sum(stage.lost for stage in self.stages)

    @property
    def twice(self) -> int:
        return sum(stage.twice for stage in self.stages)

    @property
    def applied(self) -> int:
        """Orders whose effect is there in every handler."""
        return min(stage.applied for stage in self.stages)

    @property
    def good(self) -> bool:
        return self.lost == self.twice == self.dead_unmeant == 0 and self.dead == self.dead_expected

    def print(self) -> None:
        """The table, and the line that says it all."""
        console = Console(highlight=False)
        table = Table(title="What became of the orders")
        for heading in ("handler", "expected", "applied", "lost", "applied twice"):
            table.add_column(heading, justify="left" if heading == "handler" else "right")
        for one in self.stages:
            table.add_row(one.handler, str(one.expected), str(one.applied), str(one.lost), str(one.twice))
        console.print(table)
        console.print(
            f"{self.worker_kills} workers and {self.server_kills} servers were killed;"
            f" {self.refused} publishes were refused meanwhile and repeated;"
            f" {self.repeated} orders were sent twice on purpose.",
            soft_wrap=not console.is_terminal,
        )
        console.print(
            f"{self.dead} dead letters; {self.dead_expected} were meant"
            + ("." if not self.dead_unmeant else f", {self.dead_unmeant} were NOT.")
        )
        sys.stdout.write(
            f"published={self.published} applied={self.applied} lost={self.lost} applied_twice={self.twice}"
            f" retried={self.retried} redelivered={self.redelivered} dead={self.dead}\n"
        )


class Screen:
    """Live progress on a terminal, a plain line every two seconds elsewhere."""

    def __init__(self, handlers: Sequence[str]) -> None:
        self._handlers = handlers
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=8) if self._console.is_terminal else None
        self._last = 0.0
        self._began = time.monotonic()

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Something happened."""
        self._console.print(f"[dim]{time.monotonic() - self._began:5.1f} s[/dim]  {text}", soft_wrap=True)

    def show(
        self, *, published: int, total: int, applied: Sequence[int], retried: int, redelivered: int, dead: int
    ) -> None:
        """How far everything is."""
        if self._live is not None:
            table = Table()
            for heading in ("published", *self._handlers, "retried", "redelivered", "dead"):
                table.add_column(heading.replace(".", ".\n"), justify="right")  # so that 80 columns are enough
            table.add_row(f"{published}/{total}", *map(str, [*applied, retried, redelivered, dead]))
            self._live.update(table)
        elif time.monotonic() - self._last > 2:
            self._last = time.monotonic()
            stages = " ".join(f"{name}={count}" for name, count in zip(self._handlers, applied, strict=True))
            self.say(f"published={published}/{total} {stages} retried={retried} redelivered={redelivered} dead={dead}")
