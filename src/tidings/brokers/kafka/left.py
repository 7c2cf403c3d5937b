"""Events for newer code of a position, left where they are: open and with nobody, until their partition goes away.

A group gives an event to no other member than the one that has its partition. To keep it here, or to look at it again
and again, would take the room of what this process can handle.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from tidings.brokers.kafka.tracks import Track, offset_of, track_of
from tidings.delivery import Delivery

MOST: Final = 10_000
"""How many may be left at a time; those beyond keep their room, so that no more is taken when that is used up."""


class Left:
    """Of one position that keeps no order: there what follows in the same key has to wait as well."""

    def __init__(self) -> None:
        self._theirs: Collection[str] = ()
        self._places: dict[str, list[tuple[Track, int]]] = {}
        self._count = 0

    def take(self, delivery: Delivery) -> bool:
        """Leave it, if it is for newer code and there is room."""
        kind = "" if delivery.envelope is None else delivery.envelope.type
        if kind not in self._theirs or self._count >= MOST:
            return False
        self._places.setdefault(kind, []).append((track_of(delivery), offset_of(delivery)))
        self._count += 1
        return True

    def sift(self, theirs: Collection[str]) -> None:
        """These are for newer code. What was left for one that asks for it no more has come to its end."""
        self._theirs = theirs
        for kind in self._places.keys() - theirs:
            for track, offset in self._places.pop(kind):
                track.progress.done(offset)
                self._count -= 1

    def drop(self, tracks: Collection[Track]) -> None:
        """These partitions go to another process, and what was left of them with it."""
        for kind, places in self._places.items():
            self._places[kind] = [place for place in places if place[0] not in tracks]
        self._count = sum(map(len, self._places.values()))
