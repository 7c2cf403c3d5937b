"""Where a command prints: for people on a terminal, plainly elsewhere, as JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from tidings.cli.failures import Status, one_line
from tidings.observe._text import shown

LONGEST_LINE: Final = 10_000


class Out:
    """One line of output is one thing that happened, whichever form it takes."""

    def __init__(self, json: bool = False) -> None:
        self.json = json
        self.terminal: bool = not json and sys.stdout.isatty()

    def tell(self, text: str, **record: Any) -> None:
        """One line: the text for people, the record for programs."""
        self.write(_dumped(record) if self.json else shown(text, LONGEST_LINE))

    def record(self, **record: Any) -> None:
        """For programs only."""
        if self.json:
            self.write(_dumped(record))

    def text(self, text: str) -> None:
        """For people only; several lines, each of them without control characters."""
        if not self.json:
            self.write("\n".join(shown(line, LONGEST_LINE) for line in text.splitlines()))

    def aside(self, text: str) -> None:
        """For people only, beside the output: it does not go into a pipe."""
        if not self.json:
            sys.stderr.write(shown(text, LONGEST_LINE) + "\n")
            sys.stderr.flush()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """For people only: a drawn table on a terminal, tab-separated columns elsewhere."""
        if self.json:
            return
        cells = [[shown(cell) for cell in row] for row in rows]
        if not self.terminal:
            for row in [list(columns), *cells]:
                self.write("\t".join(row))
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, box=None, header_style="bold", pad_edge=False)
        for row in cells:
            table.add_row(*map(Text, row))
        Console(highlight=False).print(table)

    def write(self, line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def fail(message: str, status: Status, *, json: bool) -> None:
    """The one line of a failure, on stderr."""
    message = shown(one_line(message), LONGEST_LINE)
    line = _dumped({"error": message, "status": int(status)}) if json else f"tidings: {message}"
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _dumped(record: dict[str, Any]) -> str:
    return json.dumps(record, default=str)
