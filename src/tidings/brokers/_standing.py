"""What stands written in a log of notes, where the log keeps each text that was ever written under a name."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tidings.delivery import Delivery, Header, Route


def of_log(route: Route, found: AsyncIterator[Delivery | None]) -> AsyncIterator[Delivery]:
    """A log as `ports.Broker.read` gives it; None in it says that all has come that stood when the reading began."""
    return only_last(found) if route is Route.NOTE else (one async for one in found if one is not None)


async def only_last(notes: AsyncIterator[Delivery | None]) -> AsyncIterator[Delivery]:
    """Of each name the last that stood when the reading began, in the order of the log; then whatever comes.

    Whoever follows would else live through the past once more: be paused, and resumed, as often as it was.

    Args:
        notes: the log from its beginning, and None once, where all that stood has come.
    """
    standing: dict[str, Delivery] | None = {}
    async for note in notes:
        if standing is None:
            if note is not None:
                yield note
        elif note is not None:
            name = note.headers.get(Header.NOTE, "")
            standing.pop(name, None)
            standing[name] = note
        else:
            for one in standing.values():
                yield one
            standing = None
    for one in (standing or {}).values():
        yield one
