"""What the proof says: lines as it goes, the tables at its end, and the page that keeps them."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tools import servers
from tools.proof.losses import SERVERS
from tools.proof.rounds import MOMENTS, ORDERS
from tools.proof.verdict import Verdict
from tools.proof.world import Manner

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "proof.md"
BEGIN, END = "<!-- from make proof -->", "<!-- end -->"
COUNTS = ("kills", "deliveries", "redeliveries", "lost", "applied twice", "documented")
HEAD = ("store", "killed at", "rounds", *COUNTS)
BY_HANDLER = ("store", "handlers", "caused events leave", "points", "rounds", *COUNTS)
ENOUGH = 4
"""Rounds after which chance is no excuse: something must have been open in one of them."""


@dataclass
class Line:
    """One point on one store."""

    store: str
    point: str
    variants: tuple[str, ...] = ()
    """The kinds of handlers that this store has."""
    must_redeliver: bool = False
    rounds: list[tuple[Manner, Verdict]] = field(default_factory=list)
    caught: bool = False
    """A planted bug showed."""

    def add(self, manner: Manner, found: Verdict) -> None:
        self.rounds.append((manner, found))

    def sum(self, name: str) -> int:
        return _sum((found for _, found in self.rounds), name)

    @property
    def wrong(self) -> list[str]:
        """What is wrong with all of its rounds together."""
        if not self.must_redeliver or len(self.rounds) < ENOUGH or self.sum("redeliveries"):
            return []
        return [f"{self.store}, {self.point}: nothing was delivered again in {len(self.rounds)} rounds, so no kill hit"]

    @property
    def passed(self) -> bool:
        return all(found.passed for _, found in self.rounds) and not self.wrong

    @property
    def cells(self) -> list[str]:
        return [self.store, self.point, str(len(self.rounds)), *_counts(found for _, found in self.rounds)]

    def __str__(self) -> str:
        said = "ok    " if self.passed else "FAILED"
        what = f"rounds={len(self.rounds)} kills={self.sum('kills')} deliveries={self.sum('deliveries')}"
        what += f" redeliveries={self.sum('redeliveries')} republished={self.sum('republished')}"
        what += f" lost={self.sum('lost')} applied_twice={self.sum('twice')}"
        if repeated := self.sum("repeated"):
            what += f" repeated_as_documented={repeated}"
        return f"{said} {self.store:<24} {self.point:<17} {what}"


def _sum(verdicts: Iterable[Verdict], name: str) -> int:
    return sum(getattr(one, name) for one in verdicts)


def _counts(verdicts: Iterable[Verdict]) -> list[str]:
    found = list(verdicts)
    return [str(_sum(found, name)) for name in ("kills", "deliveries", "redeliveries", "lost", "twice", "repeated")]


class Total:
    """The last line; of a whole run it also knows that every kind of handler met every point."""

    def __init__(self, lines: Sequence[Line], *, whole: bool = False) -> None:
        self._lines, self._whole = lines, whole

    @property
    def passed(self) -> bool:
        return bool(self._lines) and all(line.passed for line in self._lines) and not self.wrong

    @property
    def wrong(self) -> list[str]:
        """What is wrong beside the rounds themselves."""
        wrong = [reason for line in self._lines for reason in line.wrong]
        for line in self._lines if self._whole else ():
            met = {manner.variant for manner, _ in line.rounds}
            wrong += [f"{line.store}: {one} never met {line.point}" for one in line.variants if one not in met]
        return wrong

    def __str__(self) -> str:
        names = {"kills": "kills", "deliveries": "deliveries", "redeliveries": "redeliveries"}
        names |= {"lost": "lost", "applied_twice": "twice"}
        counts = " ".join(f"{name}={sum(line.sum(of) for line in self._lines)}" for name, of in names.items())
        return f"rounds={sum(len(line.rounds) for line in self._lines)} {counts}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int) -> str:
    rule = ["---" if number < words else "--:" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def by_point(lines: Iterable[Line]) -> str:
    return _table(HEAD, [line.cells for line in lines], 2)


def by_handler(lines: Sequence[Line]) -> str:
    """The same rounds, by the kind of handler and the way of what it causes."""
    found: dict[tuple[str, str, str], list[tuple[str, Verdict]]] = {}
    for line in lines:
        for manner, verdict in line.rounds:
            found.setdefault((line.store, manner.variant, manner.way), []).append((line.point, verdict))
    stores = list(dict.fromkeys(line.store for line in lines))
    rows = []
    for key in sorted(found, key=lambda one: (stores.index(one[0]), one[1:])):
        points = len({point for point, _ in found[key]})
        of = f"{points} of {len(_points(lines, key[0]))}"
        rows.append([*key, of, str(len(found[key])), *_counts(verdict for _, verdict in found[key])])
    return _table(BY_HANDLER, rows, 4)


def _points(lines: Iterable[Line], store: str) -> set[str]:
    return {line.point for line in lines if line.store == store}


def costs(lines: Sequence[Line]) -> str:
    """What a store that forgets costs, beside what its page says."""
    told = []
    for server in SERVERS:
        for line in lines:
            if line.store == server.title:
                effects = 2 * ORDERS * len(line.rounds)
                what = f"{line.sum('repeated')} of {effects} effects were applied again, {line.sum('lost')} lost"
                told.append(f"* {line.store} (`{line.point}`): {what}. Documented: {server.cost}.\n")
    return "".join(told)


def said(lines: Sequence[Line]) -> str:
    """All that the lines come to."""
    return "\n\n".join(part for part in (by_point(lines), by_handler(lines), costs(lines).rstrip()) if part)


def account(store: str, point: str, number: int, manner: Manner, found: Verdict, folder: Path) -> str:
    """A failed round, so that somebody can begin to look."""
    reasons = "\n".join(f"       {reason}" for reason in found.wrong[:12])
    how = f"{manner.variant}, {manner.way}"
    return f"FAILED {store}, {point} ({how}), round {number}: {folder}\n{reasons}"


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
        f"{before}{BEGIN}\n\n{head}{by_point(lines)}\n\n`{Total(lines)}`\n\n{moments}\nThe same rounds, by the kind of"
        f" their handlers and the way in which what they cause leaves:\n\n{by_handler(lines)}\n\nWhere Redis"
        f" forgets:\n\n{costs(lines)}\n{END}{after}",
        encoding="utf-8",
    )


def _short(version: str) -> str:
    """The number in what a program says of itself."""
    words = [word.strip("v,=") for word in version.replace("=", " ").split()]
    return next((word for word in words if word[:1].isdigit() and "." in word), version)
