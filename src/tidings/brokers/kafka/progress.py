"""How far a position has come in one partition, and how the next process is told.

Events complete out of order, and Kafka keeps one number for each partition: the first offset that is not done. What
lies behind it and is done already, and how often each was delivered, would be forgotten with the process. So both stand
beside the number, in the text that Kafka keeps with it: ``1;<seen>;<bounds>;<lengths>``, all counted from the number,

* `seen`: up to here it is known what is done; everything behind it is not,
* `bounds`: what lies before the first was delivered by one process at least, before the second by two, and so on,
* `lengths`: so many are open, then so many done, then open again, up to `seen`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import Final

from tidings.delivery import Delivery

MOST_TEXT: Final = 4000
"""Kafka keeps 4,096 bytes beside an offset unless told otherwise."""
MOST_BOUNDS: Final = 8
WINDOW: Final = 4096
"""So many messages behind what is known to have been delivered count as delivered when a process dies."""

_TEXT = re.compile(r"1;(\d{1,18});([\d,]*);([\d,]*)")


class Progress:
    """One partition, while this process has it.

    A thread enters what comes in (`take`, `skip`), the event loop what becomes of it; each is one step of a dict.
    """

    __slots__ = ("_committed_window", "_earlier", "_last_seen", "_was_open", "bound", "handed", "known", "open", "seen")

    def __init__(self, start: int, text: str | None = "") -> None:
        seen, bounds, lengths = _read(text)
        self.known = start + seen
        """Of what lies before this it is known whether it is done."""
        edges = [start]
        for length in lengths:
            edges.append(edges[-1] + length)
        self._was_open = edges
        self._earlier = [start + bound for bound in bounds]
        self.bound = max(self._earlier, default=start)
        """Nothing from here on was handed to anybody before."""
        self.open: dict[int, Delivery | None] = {}
        """Taken and not done, in order, each as it is to be settled; None for what is not with us, or waits."""
        self.seen = start
        """The first that was not taken yet."""
        self.handed = start
        """The first that was not handed to a handler."""
        self._last_seen = start
        self._committed_window = start

    def is_done(self, offset: int) -> bool:
        """A process before this one has brought it to its end."""
        if offset >= self.known:
            return False
        return bisect_right(self._was_open, offset) % 2 == 0

    def delivered(self, offset: int) -> int:
        """How many processes before this one were, or may have been, handed it."""
        return sum(offset < bound for bound in self._earlier)

    def take(self, offset: int, delivery: Delivery | None = None) -> None:
        """It is for this position, and with us from now on. Offsets come in their order."""
        self.open[offset] = delivery
        self.seen = offset + 1

    def skip(self, offset: int) -> None:
        """It is none of this position's business, or was done before."""
        self.seen = offset + 1

    def done(self, offset: int) -> None:
        """It has come to its end."""
        self.open.pop(offset, None)

    @property
    def mark(self) -> int:
        """The first offset that is not done."""
        return next(iter(list(self.open)), self.seen)

    @property
    def hurries(self) -> bool:
        """So much has come that a death now would leave events whose delivery nobody knows of."""
        return self.seen > self._committed_window

    def snapshot(self, *, final: bool = False) -> tuple[int, str]:
        """The offset to commit and the text beside it; `final` where nothing more will be handed over."""
        still = list(self.open)
        seen = self.seen
        mark = still[0] if still else seen
        ahead = self.handed
        if not final:
            window = max(WINDOW, 2 * (seen - self._last_seen))
            self._last_seen = seen
            self._committed_window = seen + window // 2
            ahead = seen + window
        return mark, _write(mark, seen, self._bounds(ahead), still)

    def _bounds(self, ahead: int) -> list[int]:
        """What lies before `ahead` counts once more than it did."""
        before = [*self._earlier, 0]
        more = [max(before[0], ahead)]
        more += [max(bound, min(ahead, above)) for above, bound in pairwise(before)]
        return more[:MOST_BOUNDS]


def open_in(start: int, text: str | None, end: int) -> int:
    """How many messages of a partition are not done, by what was committed and where the partition ends."""
    seen, _, lengths = _read(text)
    behind = max(0, seen - sum(lengths))
    return max(0, end - start - sum(lengths[1::2]) - behind)


def _read(text: str | None) -> tuple[int, list[int], list[int]]:
    found = _TEXT.fullmatch(text or "")
    if found is None:
        return 0, [], []  # nobody's, or nothing: then nothing is known
    return int(found[1]), _numbers(found[2]), _numbers(found[3])


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",") if one]


def _write(mark: int, seen: int, bounds: Sequence[int], still: Sequence[int]) -> str:
    head = [bound - mark for bound in bounds if bound > mark]
    lengths: list[int] = []
    known, room = seen, MOST_TEXT - 20 * (len(head) + 2)
    for begin, end in _runs(still):
        more = [begin - mark - sum(lengths), end - begin] if lengths else [end - begin]
        room -= sum(len(str(one)) + 1 for one in more)
        if room < 0:
            known = begin  # what is done behind this comes again
            break
        lengths += more
    return f"1;{known - mark};{_join(head)};{_join(lengths)}"


def _runs(still: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Neighbours as (first, behind the last)."""
    if not still:
        return
    breaks = [place for place, (one, other) in enumerate(pairwise(still), 1) if other != one + 1]
    for begin, end in pairwise(chain([0], breaks, [len(still)])):
        yield still[begin], still[end - 1] + 1


def _join(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))
