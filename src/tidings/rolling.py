"""What is needed of a broker while processes of older and newer code run side by side, and share their positions."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Protocol, runtime_checkable

BELIEVED: Final = 2.0
"""For so many seconds, from when it asked, a process may go by what it was told of the types of a position."""


@runtime_checkable
class Remembers(Protocol):
    """What a broker has beside the rest if it remembers which types a position takes.

    A plan adds to them and takes none away: whoever started last may be of older code. They are written down before
    what is new among them can come to the position by this declaration, and for longer than `BELIEVED` before `open`
    returns: whoever was told otherwise has asked again by then.
    """

    async def taken(self, position: str) -> Collection[str]:
        """The types that a position of this process takes; none where there is no such one.

        It is asked every few seconds while a deployment rolls, so it is to be cheap. Raises BrokerUnavailable.
        """

    async def remember(self, position: str, types: Collection[str]) -> None:
        """From now on a position of this process takes these types, and no others. Raises BrokerUnavailable."""


@runtime_checkable
class Sifts(Protocol):
    """A `Feed` that has to see of which type an event is, because the server does not: it can pass over others."""

    def sift(self, theirs: Collection[str], until: float) -> None:
        """Of the types that were not asked for, pass over all but `theirs`, until a moment of `time.monotonic`.

        After that all of them come, until the next call. What is given back for a while and is one of `theirs` may be
        left where it is, in no order, until it is with another process, or passed over because they are theirs no more.
        """
