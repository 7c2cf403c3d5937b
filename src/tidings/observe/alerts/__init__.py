"""Prometheus rules as data, and with other windows for drills."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final

from tidings.errors import ConfigurationError

RUNBOOKS: Final = "docs/runbooks"
"""Where the pages stand that say what to do, unless somebody has put them elsewhere."""

_DURATION: Final = re.compile(
    r"(?P<before>\[|\bfor: |\boffset )(?P<number>\d+)(?P<unit>[smhd])\b(?P<least>  # at least (?P<seconds>\d+)s)?"
)
_AGE: Final = re.compile(r"\b(?P<minutes>\d+) \* 60\b")
_ALERT: Final = re.compile(
    r"^( +)- alert: (\w+)$(?P<body>.*?)^ +annotations:\n(?P<indent> +)", re.MULTILINE | re.DOTALL
)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def rules(*, windows: float = 1.0, runbooks: str = RUNBOOKS) -> str:
    """The rules as Prometheus reads them.

    `windows`: every window, delay and age is multiplied by it, and is one second at least, or what its rule says: for a
    drill in which nobody wants to wait for a quarter of an hour. Numbers of events stay as they are.
    `runbooks`: what the link to the page of each alert begins with.

    Raises:
        ConfigurationError: `windows` is not above 0.
    """
    if not windows > 0:
        raise ConfigurationError(f"windows {windows:g}: more than 0, such as 0.05 for a drill, or 1")
    text = files(__name__).joinpath("rules.yml").read_text(encoding="utf-8")
    text = _ALERT.sub(
        lambda found: f"{found[0]}runbook_url: {runbooks.rstrip('/')}/{found[2]}.md\n{found['indent']}", text
    )
    if windows == 1.0:
        return text

    def shorter(seconds: float, least: int = 1) -> int:
        return max(least, round(seconds * windows))

    def duration(found: re.Match[str]) -> str:
        seconds = shorter(int(found["number"]) * _SECONDS[found["unit"]], int(found["seconds"] or 1))
        return f"{found['before']}{seconds}s{found['least'] or ''}"

    text = _DURATION.sub(duration, text)
    return _AGE.sub(lambda found: str(shorter(int(found["minutes"]) * 60)), text)


def names() -> tuple[str, ...]:
    """The alerts, in their order."""
    return tuple(found[2] for found in _ALERT.finditer(rules()))
