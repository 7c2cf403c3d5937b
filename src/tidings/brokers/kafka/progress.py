"""How far a position has come in one partition, and how the next process is told.

Events complete out of order, and Kafka keeps one number for each partition: the first offset that is not done. What
lies behind it and is done already, and how often each was delivered, would be forgotten with the process. So both stand
beside the number, in the text that Kafka keeps with it: ``2;<seen>;<bounds>;<lengths>``, all counted from the number,

* `seen`: up to here it is known what is done; everything behind it is not,
* `bounds`: of each process that had the partition its name, and before which offset it was handed what there is,
* `lengths`: so many are open, then so many done, then open again, up to `seen`.

A process that is given a partition again finds its own name there: it lives, and counts once, however often that is.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import Final

from tidings.delivery import Delivery

MOST_TEXT: Final = 4000
"""Kafka keeps 4,096 bytes beside an offset unless told otherwise."""
MOST_BOUNDS: Final = 8
WINDOW: Final = 4096
"""So many messages behind what is known to have been delivered count as delivered when a process dies."""

_TEXT = re.compile(r"2;(\d{1,18});((?:\w+:\d{1,18},)*);([\d,]*)")


class Progress:
    """One partition, while this process has it. `who` is the process: a word that no other has.

    A thread enters what comes in (`take`, `skip`), the event loop what becomes of it; each is one step of a dict.
    """

    __slots__ = (
        "_committed_window",
        "_earlier",
        "_last_seen",
        "_was_open",
        "_who",
        "bound",
        "handed",
        "known",
        "open",
        "seen",
    )

    def __init__(self, start: int, text: str | None, who: str) -> None:
        self._who = who
        seen, bounds, lengths = _read(text)
        self.known = start + seen
        """Of what lies before this it is known whether it is done."""
        edges = [start]
        for length in lengths:
            edges.append(edges[-1] + length)
        self._was_open = edges
        self._earlier = {one: start + bound for one, bound in bounds.items()}
        self.bound = max(self._earlier.values(), default=start)
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
        """How many processes were, or may have been, handed it; this one too, where it had the partition before."""
        return sum(offset < bound for bound in self._earlier.values())

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

    def snapshot(self, *, final: bool = False, room: int = MOST_TEXT) -> tuple[int, str]:
        """The offset to commit and the text beside it; `final` where nothing more will be handed over.

        `room` is how long the text may be, in bytes.
        """
        still = list(self.open)
        seen = self.seen
        mark = still[0] if still else seen
        ahead = self.handed
        if not final:
            window = max(WINDOW, 2 * (seen - self._last_seen))
            self._last_seen = seen
            self._committed_window = seen + window // 2
            ahead = seen + window
        return mark, _write(mark, seen, self._bounds(ahead), still, room)

    def _bounds(self, ahead: int) -> dict[str, int]:
        """Before which offset each process was handed what there is, this one up to `ahead`; few are kept."""
        own = max(self._earlier.get(self._who, ahead), ahead)
        others = [(one, bound) for one, bound in self._earlier.items() if one != self._who]
        return dict([(self._who, own), *sorted(others, key=lambda one: -one[1])][:MOST_BOUNDS])


def open_in(start: int, text: str | None, end: int) -> int:
    """How many messages of a partition are not done, by what was committed and where the partition ends."""
    seen, _, lengths = _read(text)
    behind = max(0, seen - sum(lengths))
    return max(0, end - start - sum(lengths[1::2]) - behind)


def _read(text: str | None) -> tuple[int, dict[str, int], list[int]]:
    found = _TEXT.fullmatch(text or "")
    if found is None:
        return 0, {}, []  # nobody's, or nothing: then nothing is known
    bounds = dict(one.split(":") for one in found[2].split(",") if one)
    return (
        int(found[1]),
        {who: int(bound) for who, bound in bounds.items()},
        [int(one) for one in found[3].split(",") if one],
    )


def _write(mark: int, seen: int, bounds: Mapping[str, int], still: Sequence[int], room: int) -> str:
    names = [f"{who}:{bound - mark}," for who, bound in bounds.items() if bound > mark]
    head = "".join(name for name, end in zip(names, accumulate(map(len, names)), strict=True) if end <= room // 2)
    lengths: list[int] = []
    known, room = seen, room - len(head) - 40
    if room < 0:
        return ""
    for begin, end in _runs(still):
        more = [begin - mark - sum(lengths), end - begin] if lengths else [end - begin]
        room -= sum(len(str(one)) + 1 for one in more)
        if room < 0:
            known = begin  # what is done behind this comes again
            break
        lengths += more
    return f"2;{known - mark};{head};{','.join(map(str, lengths))}"


def _runs(still: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Neighbours as (first, behind the last)."""
    if not still:
        return
    breaks = [place for place, (one, other) in enumerate(pairwise(still), 1) if other != one + 1]
    for begin, end in pairwise(chain([0], breaks, [len(still)])):
        yield still[begin], still[end - 1] + 1
