"""What a dashboard is made of: rows of panels, each with its queries and a sentence that says what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["short", "s", "reqps", "percentunit", "bytes", "bool"]
Kind = Literal["lines", "stacked", "figure"]


@dataclass(frozen=True)
class Panel:
    title: str
    says: str
    queries: tuple[tuple[str, str], ...]
    """Expression and legend."""
    unit: Unit = "short"
    kind: Kind = "lines"
    width: int = 8


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    uid: str
    title: str
    says: str
    variables: tuple[str, ...]
    rows: tuple[Row, ...]


def rate(metric: str, by: str, more: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{more}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str, more: str = "") -> str:
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', f'{by}, le', more)})"


ALL = 'service=~"$service"'
ONE = 'service="$service"'
OF = 'service="$service",handler=~"$handler"'
BY = "service, handler"
