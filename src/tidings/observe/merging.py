"""One page of metrics for several workers: their sum, which does not fall when one of them ends.

A worker that is gone takes its counters with it, and to Prometheus a sum that falls looks like a restart, after which
everything that the others have counted so far would count once more. So what the gone have counted is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

Series = tuple[str, tuple[tuple[str, str], ...]]
"""The name of a sample, and its labels."""

LOWEST: Final = ("tidings_live", "tidings_ready", "tidings_broker_connected", "_created")
"""What is only well when it is well in all of them; and when counting began."""
HIGHEST: Final = (
    "tidings_backlog_",
    "tidings_outbox_",
    "tidings_stream_",
    "tidings_build_info",
    "tidings_call_overdue_seconds",
    "tidings_dead_letters_held",
    "tidings_dead_letters_oldest_seconds",
    "tidings_handler_",
    "tidings_loop_lag_seconds",
    "process_start_time_seconds",
)
"""What all of them see alike, or where the worst counts."""


class Merged:
    """Takes in the pages of the workers that live; may be used on any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[Hashable, dict[Series, float]] = {}
        """By worker, what it had counted when it was last asked."""
        self._gone: dict[Series, float] = {}
        """What those have counted that have ended."""
        self._families: dict[str, tuple[str, str]] = {}

    def page(self, alive: Callable[[], set[Hashable]], texts: Mapping[Hashable, str]) -> bytes:
        """The page of all. `alive` says which workers have not ended, `texts` what those say that answered.

        Whoever asks for the page at the same time may have begun later and be done: a worker may have come or gone, or
        have counted more, since these texts were written. So `alive` is asked only here, and what is known stays.
        """
        with self._lock:
            living = alive()
            gauges: dict[Series, float] = {}
            for worker, text in texts.items():
                if worker in living or worker in self._last:  # else it has gone, and counts already
                    counts = self._read(text, gauges if worker in living else {})
                    known = self._last.setdefault(worker, {})
                    known.update({series: max(value, known.get(series, 0.0)) for series, value in counts.items()})
            for worker in [one for one in self._last if one not in living]:
                _add(self._gone, self._last.pop(worker))
            counted = dict(self._gone)
            for counts in self._last.values():
                _add(counted, counts)
            registry = CollectorRegistry()
            registry.register(_Page(self._families, {**counted, **gauges}))
            return generate_latest(registry)

    def _read(self, text: str, gauges: dict[Series, float]) -> dict[Series, float]:
        """Put the gauges of a page among the others, and return what it has counted."""
        counts: dict[Series, float] = {}
        for family in text_string_to_metric_families(text):
            self._families[family.name] = (family.documentation, family.type)
            for one in family.samples:
                series = (one.name, tuple(one.labels.items()))
                if family.type in ("counter", "histogram"):
                    counts[series] = one.value
                elif series in gauges:
                    gauges[series] = _how(one.name)(gauges[series], one.value)
                else:
                    gauges[series] = one.value
        return counts


def _how(name: str) -> Callable[[float, float], float]:
    if name.startswith(LOWEST) or name.endswith(LOWEST):
        return min
    return max if name.startswith(HIGHEST) else lambda one, other: one + other


def _add(into: dict[Series, float], counts: Mapping[Series, float]) -> None:
    for series, value in counts.items():
        into[series] = into.get(series, 0.0) + value


class _Page(Collector):
    def __init__(self, families: Mapping[str, tuple[str, str]], values: Mapping[Series, float]) -> None:
        self._families, self._values = families, values

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        made: dict[str, Metric] = {}
        for (name, labels), value in self._values.items():
            family = self._family(name)
            if family not in made:
                text, kind = self._families[family]
                made[family] = Metric(family, text, kind)
            made[family].add_sample(name, dict(labels), value)
        yield from made.values()

    def _family(self, name: str) -> str:
        if name in self._families:
            return name
        return next(
            one for end in ("_total", "_bucket", "_sum", "_count") if (one := name.removesuffix(end)) in self._families
        )
