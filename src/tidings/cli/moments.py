"""Times as people write them on a command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from tidings.cli.failures import CommandError, Status
from tidings.cli.output import Out

_SPAN: Final = re.compile(r"(\d+)(s|m|h|d)")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment_of(option: str, text: str | None, out: Out) -> datetime | None:
    """A time with its zone: 2026-01-31T12:00:00Z, or how long ago. One without zone is taken as local, and said so.

    Raises:
        CommandError: it is none.
    """
    if text is None:
        return None
    if span := _SPAN.fullmatch(text):
        try:
            return datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: int(span[1])})
        except OverflowError:
            raise CommandError(f"{option} {text}: so long ago there was nothing", Status.USAGE) from None
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return found
        local = found.astimezone()
    except (ValueError, OverflowError):
        raise CommandError(
            f"{option} {text}: a time with its zone (2026-01-31T12:00:00Z), a local one (2026-01-31T12:00), or how long"
            " ago (10m, 2h, 3d)",
            Status.USAGE,
        ) from None
    out.aside(f"{option} {text} has no zone and is taken as the time here: {local.isoformat()}")
    return local
