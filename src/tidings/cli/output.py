"""Where a command prints: for people on a terminal, plainly elsewhere, as JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from tidings.cli.failures import Status, one_line
from tidings.observe._text import shown

LONGEST_LINE: Final = 10_000
BETWEEN: Final = "  "
LEAST_TEXT: Final = 24
"""Cells of a terminal that are left for the last column of a table, which is a text; with fewer it is no table."""


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
        """For people only: on a terminal a table, or one thing under the other where that is too narrow for it;
        tab-separated columns elsewhere. Only the last column is folded, and none is cut: ids are copied from here.
        """
        if self.json:
            return
        cells = [[shown(cell) for cell in row] for row in rows]
        if not self.terminal:
            for row in [list(columns), *cells]:
                self.write("\t".join(row))
            return
        from rich.cells import cell_len
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(highlight=False)
        *wide, last = (max(map(cell_len, column)) for column in zip(columns, *cells, strict=True))
        if sum(wide) + len(BETWEEN) * len(wide) + min(last, LEAST_TEXT) > console.width:
            self._under_one_another(columns, cells)
            return
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, len(BETWEEN), 0, 0))
        for name in columns:
            table.add_column(name, no_wrap=name != columns[-1], overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))
        console.print(table)

    def _under_one_another(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Each row as lines of a name and a value; the terminal itself breaks them, so that they are copied whole."""
        longest = max(map(len, columns))
        for number, row in enumerate(rows):
            if number:
                self.write("")
            for name, cell in zip(columns, row, strict=True):
                self.write(f"{name:<{longest}}{BETWEEN}{cell}")

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
