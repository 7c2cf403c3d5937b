"""Which kind of handler a round has, and which way its caused events leave: by turns, so that each meets each point."""

from __future__ import annotations

from tools.proof.stores import Kind
from tools.proof.world import FIRST, MEMORY, RELAY, Manner


def manner(kind: Kind, place: int, turn: int, only: str = "") -> Manner:
    """Of the so-manieth round at the so-manieth point of a store, both counted from 0.

    The ways take turns with the rounds, and the handlers begin with another one at each point. So a handler meets
    each point once in as many rounds as there are handlers, and both ways from one point to the next. With `only`
    there is one way.
    """
    variants = list(kind.variants)
    way = FIRST if kind.effects_elsewhere else RELAY if turn % 2 else MEMORY
    return Manner(variants[(place + turn) % len(variants)], only or way)
