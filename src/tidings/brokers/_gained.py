"""What a position takes that it did not take so far, and what that means while older code still runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidings.ports import Drift, Plan


def gained(plan: Plan, existing: Mapping[str, Sequence[str]]) -> list[Drift]:
    """The types that positions of a plan take from now on, and did not; `existing` are those that the broker knows.

    All processes of a service share a position. Those of older code pass over what they do not ask for, so what of it
    comes to them is handled by nobody. That is asked before the position is given its new types.
    """
    drifts = []
    for one in plan.subscriptions:
        had = existing.get(one.position)
        if had is None or not (new := ", ".join(sorted(set(one.types) - set(had)))):
            continue
        drifts.append(
            Drift(
                what=f"types of {one.position}",
                declared=", ".join(sorted(set(one.types))),
                found=", ".join(sorted(set(had))) or "none",
                remedy=f"Processes of the older code that still run pass over {new}, and what of it comes to them is"
                " not handled: stop them all before the first is published. Or take it by a handler of its own",
            )
        )
    return drifts
