"""What a position takes that it did not take so far, or no more, and what that means while other code still runs."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

from tidings.ports import Drift, Plan, Subscription
from tidings.rolling import BELIEVED


def gained(plan: Plan, existing: Mapping[str, Sequence[str]]) -> list[Drift]:
    """The types that positions of a plan take from now on, and did not; `existing` are those that the broker knows.

    All processes of a service share a position. What of it comes to those of older code waits for one of the newer.
    That is asked before the position is given its new types.
    """
    return [
        _drift(
            one,
            had,
            f"What of {new} comes to a process of the older code waits there until that has stopped, and in order so"
            " does what follows it in its key: replace them all soon",
        )
        for one in plan.subscriptions
        if one.hosted and (had := existing.get(one.position)) is not None and (new := _named(set(one.types) - set(had)))
    ]


def dropped(plan: Plan, existing: Mapping[str, Sequence[str]]) -> list[Drift]:
    """The types that positions of a plan take, and that it does not ask for."""
    return [
        _drift(
            one,
            had,
            f"What of {old} comes to this process waits for one that asks for it. Where none lives for a minute, it is"
            " nobody's business from then on",
        )
        for one in plan.subscriptions
        if one.hosted and (had := existing.get(one.position)) is not None and (old := _named(set(had) - set(one.types)))
    ]


def _drift(one: Subscription, had: Sequence[str], remedy: str) -> Drift:
    what, declared, found = f"types of {one.position}", _named(set(one.types)), _named(set(had)) or "none"
    return Drift(what=what, declared=declared, found=found, remedy=remedy)


def _named(types: set[str]) -> str:
    return ", ".join(sorted(types))


def all_of(one: Subscription, had: Collection[str]) -> tuple[str, ...]:
    """What a position takes once it is declared, of what it `had` too: others may ask for that (see `dropping`)."""
    if had and not one.hosted:
        return tuple(sorted(had))
    return tuple(sorted({*one.types, *(each for each in had if each.split(".", 1)[0] == one.stream)}))


async def until_all_know() -> None:
    """Wait until no process goes by what it was told before the types of a position were written down."""
    await asyncio.sleep(BELIEVED + 0.5)
