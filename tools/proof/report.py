"""What the proof says: lines as it goes, the table at its end, and the page that keeps it."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tools import servers
from tools.proof.judge import Verdict
from tools.proof.rounds import MOMENTS, ORDERS

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "proof.md"
BEGIN, END = "<!-- from make proof -->", "<!-- end -->"
HEAD = ("store", "killed at", "rounds", "kills", "deliveries", "redeliveries", "lost", "applied twice", "documented")


@dataclass
class Line:
    """One point on one store."""

    store: str
    point: str
    rounds: int = 0
    verdicts: list[Verdict] = field(default_factory=list)

    def add(self, found: Verdict) -> None:
        self.rounds += 1
        self.verdicts.append(found)

    def sum(self, name: str) -> int:
        return sum(getattr(one, name) for one in self.verdicts)

    @property
    def passed(self) -> bool:
        return all(one.passed for one in self.verdicts)

    @property
    def cells(self) -> list[str]:
        names = ("kills", "deliveries", "redeliveries", "lost", "twice", "repeated")
        return [self.store, self.point, str(self.rounds), *(str(self.sum(name)) for name in names)]

    def __str__(self) -> str:
        said = "ok    " if self.passed else "FAILED"
        what = f"rounds={self.rounds} kills={self.sum('kills')} deliveries={self.sum('deliveries')}"
        what += f" redeliveries={self.sum('redeliveries')} republished={self.sum('republished')}"
        what += f" lost={self.sum('lost')} applied_twice={self.sum('twice')}"
        if repeated := self.sum("repeated"):
            what += f" repeated_as_documented={repeated}"
        return f"{said} {self.store:<24} {self.point:<17} {what}"


class Total:
    """The last line."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines

    @property
    def passed(self) -> bool:
        return bool(self._lines) and all(line.passed for line in self._lines)

    def __str__(self) -> str:
        names = {"kills": "kills", "deliveries": "deliveries", "redeliveries": "redeliveries"}
        names |= {"lost": "lost", "applied_twice": "twice"}
        counts = " ".join(f"{name}={sum(line.sum(of) for line in self._lines)}" for name, of in names.items())
        return f"rounds={sum(line.rounds for line in self._lines)} {counts}"


def table(lines: Iterable[Line]) -> str:
    rows = [" | ".join(line.cells) for line in lines]
    rule = " | ".join("---" if number < 2 else "--:" for number in range(len(HEAD)))
    return "\n".join(f"| {row} |" for row in (" | ".join(HEAD), rule, *rows))


def account(store: str, point: str, number: int, found: Verdict, folder: Path) -> str:
    """A failed round, so that somebody can begin to look."""
    reasons = "\n".join(f"       {reason}" for reason in found.wrong[:12])
    return f"FAILED {store}, {point}, round {number}: {folder}\n{reasons}"


def write(lines: Sequence[Line], seconds: float) -> None:
    """Put the table, the date, the versions and the sizes into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    versions = ", ".join(
        f"{name} {_short(version())}" for name, version in servers.SERVERS.items() if name != "PgBouncer"
    )
    head = (
        f"{datetime.now(UTC):%Y-%m-%d}, in {seconds / 60:.0f} minutes; Python {platform.python_version()}, {versions};"
        f" {ORDERS} orders, and some of them again, in each round.\n\n"
    )
    moments = "".join(f"* `{name}`: {what}\n" for name, what in MOMENTS.items())
    PAGE.write_text(
        f"{before}{BEGIN}\n\n{head}{table(lines)}\n\n`{Total(lines)}`\n\n{moments}\n{END}{after}", encoding="utf-8"
    )


def _short(version: str) -> str:
    """The number in what a program says of itself."""
    words = [word.strip("v,=") for word in version.replace("=", " ").split()]
    return next((word for word in words if word[:1].isdigit() and "." in word), version)
