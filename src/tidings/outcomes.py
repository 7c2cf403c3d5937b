"""What became of a batch, as observers are told of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from tidings.delivery import Decision, Delivery, Outcome
from tidings.ports import Settled


class Outcomes(Sequence[Settled]):
    """Of each delivery, in their order; made when somebody looks at them, because most only count what is done."""

    def __init__(self, ended: Sequence[tuple[Delivery, Decision]], outcomes: Sequence[Outcome]) -> None:
        self._ended = ended
        self._made: list[Settled] = []
        self.alone = outcomes
        """Without their deliveries."""

    def _each(self) -> list[Settled]:
        if not self._made:
            self._made = list(map(Settled, [delivery for delivery, _ in self._ended], self.alone))
        return self._made

    @overload
    def __getitem__(self, place: int) -> Settled: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Settled]: ...
    def __getitem__(self, place: int | slice) -> Settled | Sequence[Settled]:
        return self._each()[place]

    def __iter__(self) -> Iterator[Settled]:
        return iter(self._each())

    def __len__(self) -> int:
        return len(self.alone)


def outcomes_of(batch: Sequence[Settled]) -> Sequence[Outcome]:
    """Their outcomes alone."""
    return batch.alone if isinstance(batch, Outcomes) else [one.outcome for one in batch]
