"""A measured figure beside its target, and what became of all targets of a run."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Literal


class Verdicts:
    """Prints `met` or `NOT MET` for each target, and remembers whether one was missed."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def add(
        self,
        what: str,
        found: float,
        target: float,
        *,
        wanted: Literal["at least", "at most"] = "at least",
        unit: str = "",
    ) -> None:
        """Print one."""
        holds: Callable[[float, float], bool] = operator.ge if wanted == "at least" else operator.le
        met = holds(found, target)
        if not met:
            self.missed.append(what)
        space = f" {unit}" if unit else ""
        print(f"{'met    ' if met else 'NOT MET'}  {what}: {found:.3g}{space}   (target: {wanted} {target:g}{space})")

    @property
    def status(self) -> int:
        """What a program exits with: 1 where a target was missed."""
        return 1 if self.missed else 0
