"""What an examination of a broker finds, as data."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

Level: TypeAlias = Literal["down", "wrong", "warning", "fine"]
"""It cannot be used; it is set up wrongly; it is a danger; all is well."""

LEVELS: Final[tuple[Level, ...]] = ("down", "wrong", "warning", "fine")
"""The worst first."""


class Finding(msgspec.Struct, frozen=True):
    """One of them, for a person, with what to do."""

    level: Level
    what: str
    remedy: str = ""
