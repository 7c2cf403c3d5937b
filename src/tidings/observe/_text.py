"""Text from outside, made fit for a line."""

from __future__ import annotations

LONGEST_TEXT = 200
"""Characters of an id, a key or a type that a line shows."""


def shown(text: str, most: int = LONGEST_TEXT) -> str:
    """Text as one line may hold it: control characters escaped, so that nothing can forge a line, and cut."""
    cut = text[:most]
    if not cut.isprintable():
        cut = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in cut)
    return cut if len(text) <= most else cut + "…"
