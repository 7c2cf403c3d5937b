"""Counters and histograms that cost little: one thread writes, another may read at any time, and nothing is locked."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import metrics as client
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Counts(Collector):
    """The counters of one name, by the values of their labels. The client's own take a lock for each step."""

    _type = "counter"

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name, self._documentation, self._labelnames = name, text, tuple(labels)
        self._children: dict[tuple[str, ...], tuple[list[int], float]] = {}

    def child(self, *labels: str) -> list[int]:
        """The one number of one of them, to be raised in place; always on the same thread."""
        return self._children.setdefault(labels, ([0], time.time()))[0]

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labelnames)
        dated = getattr(client, "_use_created", True)  # as its own counters look, which may be told otherwise
        for labels, (count, since) in list(self._children.items()):
            family.add_metric(labels, count[0], created=since if dated else None)
        yield family


class Times(Collector):
    """The histograms of one name, by the values of their labels."""

    _type = "histogram"

    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._documentation, self._labelnames = name, text, tuple(labels)
        self._bounds = tuple(bounds)
        self._children: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}

    def child(self, *labels: str) -> Callable[[float], None]:
        """What takes the values of one of them; always from the same thread."""
        counts, total = self._children.setdefault(labels, ([0] * (len(self._bounds) + 1), [0.0]))
        bounds = self._bounds

        def observe(value: float) -> None:
            counts[bisect_left(bounds, value)] += 1
            total[0] += value

        return observe

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, (counts, total) in list(self._children.items()):
            so_far, buckets = 0, []
            for name, count in zip(names, list(counts), strict=True):
                so_far += count
                buckets.append((name, so_far))
            family.add_metric(labels, buckets, total[0])
        yield family
