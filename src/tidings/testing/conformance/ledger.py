"""The oracle: what was accepted, what was delivered, and what took effect. It never removes a duplicate.

A row of `published` is written only after the publish returned, a row of `effects` by the handler itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable

from tidings.testing._effects import Effect


class Ledger:
    """Rows of one test. Positions are told apart; ids are those of the test's own events."""

    def __init__(self) -> None:
        self.published: dict[str, float] = {}
        self.refused: dict[str, Exception] = {}
        """Published without success: stored or not, nobody knows."""
        self.effects: list[Effect] = []
        self.deliveries: Counter[tuple[str, str]] = Counter()
        self.again: Counter[tuple[str, str]] = Counter()
        """Delivered although an acknowledgement had been confirmed."""
        self.unsettled: list[Exception] = []
        self._confirmed: set[tuple[str, str]] = set()
        self._applied: dict[str, set[str]] = {}
        self._changed = asyncio.Event()

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def accepted(self, id: str) -> None:
        self.published[id] = time.time()
        self.refused.pop(id, None)
        self._changed.set()

    def delivered(self, position: str, id: str) -> None:
        self.deliveries[position, id] += 1
        if (position, id) in self._confirmed:
            self.again[position, id] += 1
        self._changed.set()

    def effect(self, row: Effect) -> None:
        self.effects.append(row)
        self._applied.setdefault(row.position, set()).add(row.id)
        self._changed.set()

    def confirmed(self, position: str, id: str) -> None:
        self._confirmed.add((position, id))
        self._changed.set()

    def applied(self, position: str) -> set[str]:
        """The ids with an effect here: what `once` would remember."""
        return self._applied.get(position, set())

    # ── questions ───────────────────────────────────────────────────────────────────────────────────────────────────

    def ids(self, position: str) -> list[str]:
        """Of its effects, in the order in which they happened."""
        return [row.id for row in self.effects if row.position == position]

    def keys(self, position: str) -> dict[str, list[str]]:
        """Of its effects by key, in the order in which they happened."""
        found: dict[str, list[str]] = {}
        for row in self.effects:
            if row.position == position and row.key is not None:
                found.setdefault(row.key, []).append(row.id)
        return found

    def is_settled(self, position: str, ids: Iterable[str]) -> bool:
        """Each of them took effect here and was confirmed."""
        return all((position, id) in self._confirmed for id in ids)

    def lost(self, position: str, wanted: Collection[str] | None = None) -> list[str]:
        """Accepted, and without effect here."""
        found = self.applied(position)
        return [id for id in (self.published if wanted is None else wanted) if id not in found]

    def twice(self, position: str) -> list[str]:
        """With more than one effect here."""
        return [id for id, count in Counter(self.ids(position)).items() if count > 1]

    def strangers(self, position: str, wanted: Collection[str] | None = None) -> list[str]:
        """With an effect here that nobody asked for."""
        known = set(self.published) | set(self.refused) if wanted is None else set(wanted)
        return [id for id in self.ids(position) if id not in known]

    def redelivered(self, position: str | None = None) -> int:
        """Deliveries minus effects."""
        delivered = sum(count for (one, _), count in self.deliveries.items() if position in (None, one))
        return delivered - sum(position in (None, row.position) for row in self.effects)

    def check(self, position: str, wanted: Collection[str] | None = None, *, faults: bool = False) -> None:
        """Judge a position; `wanted` is what it should have seen if that is not all that was accepted.

        With `faults`, when a server was killed, a confirmed acknowledgement may be forgotten (it is delivered again,
        and `once` makes that harmless). Without, it may not.

        Raises:
            AssertionError: with the numbers.
        """
        lost, twice, strangers = self.lost(position, wanted), self.twice(position), self.strangers(position, wanted)
        again = 0 if faults else sum(count for (one, _), count in self.again.items() if one == position)
        if lost or twice or strangers or again:
            shown = ", ".join((lost + twice + strangers)[:5])
            raise AssertionError(
                f"{position}: lost={len(lost)} applied_twice={len(twice)} not_asked_for={len(strangers)}"
                f" delivered_after_a_confirmed_ack={again} ({shown}); {self}"
            )

    def __str__(self) -> str:
        text = f"published={len(self.published)} effects={len(self.effects)} redelivered={self.redelivered()}"
        more = {"refused": len(self.refused), "unsettled": len(self.unsettled), "after_ack": sum(self.again.values())}
        return text + "".join(f" {name}={count}" for name, count in more.items() if count)

    async def changed(self, seconds: float) -> None:
        """Wait for the next row, or for so long."""
        self._changed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass
