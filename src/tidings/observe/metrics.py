"""Prometheus metrics of one service, in a registry of its own.

What events cost is counted per batch: a dict count for each event, one increment for each kind of outcome. Figures that
only the loop can tell (backlog, lanes, the outbox) are read there every few seconds and kept as one `Figures`; a scrape
comes on another thread and sees the last one.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from tidings.delivery import DeadLettered, Done, Duplicate, Outcome, Retried
from tidings.observe._watched import WatchedHandler
from tidings.ports import Backlog, Settled

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
OTHER: Final = "other"
"""The type label of what is none of a handler's types, or could not be read: what strangers send makes no series."""

SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Lanes(msgspec.Struct, frozen=True):
    """What a handler's lanes in this process are doing."""

    waiting: int
    busy: int
    backlog: Backlog | None
    paused: str = ""
    """``operator`` or ``failures``; empty while it works."""
    left_behind: tuple[int, int] = (0, 0)
    """Calls that did not end: how many there are now, and how many there were."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What the loop found when it last looked; kept whole, so that a scrape never sees half of it."""

    connected: bool = False
    lanes: Mapping[str, Lanes] = {}
    outbox: tuple[int, float] | None = None
    """How many events wait in the outbox, and the age of the oldest in seconds."""


class Metrics:
    """An observer that counts. `text()` may be called on any thread.

    `lag` tells how far the loop is behind just now, in seconds; it is asked on the thread of the scrape.
    """

    def __init__(
        self,
        service: str,
        handlers: Callable[[], Sequence[WatchedHandler]],
        *,
        version: str = "",
        tidings_version: str = "",
        lag: Callable[[], float] = lambda: 0.0,
    ) -> None:
        registry = CollectorRegistry()
        self.registry: CollectorRegistry = registry
        self.figures: Figures = Figures()
        self._service, self._handlers = service, handlers
        where, of = ("service", "handler"), ("service", "handler", "type")
        self._received = _counter("received", "Deliveries a lane took up, those put back and taken again too", where)
        self._outcomes = _counter("outcomes", "What became of deliveries", (*of, "outcome"))
        self._retries = _counter("retries", "To be handled again; counted=no is no failure", (*of, "counted"))
        self._dead = _counter("dead_letters", "Deliveries that became dead letters, by why", (*of, "code"))
        self._duplicates = _counter("duplicates", "Deliveries whose effect had been applied before", (*of, "of"))
        self._size = _histogram("batch_events", "Events that were settled together", where, SIZES)
        self._seconds = _histogram("batch_seconds", "From taking a batch up until it was settled", where, SECONDS)
        for metric in (*self._counters(), self._size, self._seconds):
            registry.register(metric)
        registry.register(_Gauges(self, {"version": tidings_version, "service_version": version}, lag))
        ProcessCollector(registry=registry)
        self._tallies: dict[str, _Tally] = {}

    def received(self, position: str, count: int) -> None:
        self._tally(position).received(count)

    def settled(self, position: str, batch: Sequence[Settled], seconds: float) -> None:
        self._tally(position).settled(batch, seconds)

    def text(self) -> bytes:
        """Everything in the Prometheus text format."""
        return generate_latest(self.registry)

    def taken(self, position: str) -> int:
        """How many deliveries of a position were taken up so far."""
        tally = self._tallies.get(position)
        return 0 if tally is None else tally.taken

    def _counters(self) -> tuple[Counter, ...]:
        return self._received, self._outcomes, self._retries, self._dead, self._duplicates

    def _tally(self, position: str) -> _Tally:
        tally = self._tallies.get(position)
        if tally is None:
            types = next((one.reader.types for one in self._handlers() if one.position == position), ())
            tally = self._tallies[position] = _Tally(self, self._service, position, frozenset(types))
        return tally


class _Tally:
    """The counters of one handler, with the children that were needed so far."""

    def __init__(self, metrics: Metrics, service: str, position: str, types: frozenset[str]) -> None:
        self._where = (service, position.partition(".")[2])
        self._types = types
        self._metrics = metrics
        self._children: dict[tuple[str, str, str], Sequence[Counter]] = {}
        self.taken = 0
        self._received = metrics._received.labels(*self._where).inc
        self._size = metrics._size.labels(*self._where).observe
        self._seconds = metrics._seconds.labels(*self._where).observe

    def received(self, count: int) -> None:
        self.taken += count
        self._received(count)

    def settled(self, batch: Sequence[Settled], seconds: float) -> None:
        counts: dict[tuple[str, str, str], int] = {}
        plain: dict[str, int] = {}
        for one in batch:
            envelope, outcome = one.delivery.envelope, one.outcome
            if type(outcome) is Done and not outcome.skipped and envelope is not None:  # nearly always
                plain[envelope.type] = plain.get(envelope.type, 0) + 1
                continue
            key = (envelope.type if envelope is not None else OTHER, *_kind(outcome))
            counts[key] = counts.get(key, 0) + 1
        for kind, count in plain.items():
            counts[kind, "done", ""] = count
        for key, count in counts.items():
            for child in self._children.get(key) or self._made(key):
                child.inc(count)
        self._size(len(batch))
        self._seconds(seconds)

    def _made(self, key: tuple[str, str, str]) -> Sequence[Counter]:
        """The children for a type, an outcome and its detail. Only a handler's own types get series, and room."""
        kind, outcome, detail = key
        metrics = self._metrics
        of = (*self._where, kind if kind in self._types else OTHER)
        children = [metrics._outcomes.labels(*of, outcome)]
        by_detail = {"retry": metrics._retries, "dead": metrics._dead, "duplicate": metrics._duplicates}.get(outcome)
        if by_detail is not None:
            children.append(by_detail.labels(*of, detail))
        if kind in self._types or kind == OTHER:
            self._children[key] = children
        return children


def _kind(outcome: Outcome) -> tuple[str, str]:
    """The outcome as labels: its kind, and what is told apart within it. Both come from closed sets."""
    if isinstance(outcome, Done):
        return ("skipped" if outcome.skipped else "done"), ""
    if isinstance(outcome, Retried):
        return "retry", "yes" if outcome.counted else "no"
    if isinstance(outcome, DeadLettered):
        return "dead", outcome.code
    if isinstance(outcome, Duplicate):
        return "duplicate", "key" if outcome.of else "event"
    return outcome.kind, ""


def _counter(name: str, text: str, labels: Sequence[str]) -> Counter:
    return Counter(f"tidings_{name}", text, labels, registry=None)


def _histogram(name: str, text: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
    return Histogram(f"tidings_{name}", text, labels, buckets=buckets, registry=None)


class _Gauges(Collector):
    """The last figures, as families that are made anew for each scrape: what is gone leaves no stale series."""

    def __init__(self, metrics: Metrics, build: Mapping[str, str], lag: Callable[[], float]) -> None:
        self._metrics, self._lag = metrics, lag
        self._build = {**build, "python": platform.python_version()}

    def collect(self) -> Iterator[Metric]:
        figures, service = self._metrics.figures, self._metrics._service
        yield InfoMetricFamily("tidings_build", "What runs here", {"service": service, **self._build})
        yield _gauge("tidings_broker_connected", "1 while the broker works", figures.connected, service)
        yield _gauge("tidings_loop_lag_seconds", "How far the event loop is behind", self._lag(), service)
        if figures.outbox is not None:
            count, age = figures.outbox
            yield _gauge("tidings_outbox_waiting", "Committed events that are not published yet", count, service)
            yield _gauge("tidings_outbox_oldest_seconds", "Age of the oldest of them", age, service)
        yield from _lanes(figures.lanes)


def _lanes(lanes: Mapping[str, Lanes]) -> Iterator[Metric]:
    texts = {
        "tidings_backlog_pending": "Messages that were not delivered to any process yet",
        "tidings_backlog_in_flight": "Messages delivered to any process and not settled",
        "tidings_backlog_scheduled": "Copies that wait on the retry route for their time",
        "tidings_lanes_busy": "Lanes of this process that are at work",
        "tidings_deliveries_waiting": "Deliveries queued or held in this process",
        "tidings_calls_left_behind": "Calls that did not end and were left behind, in this process now",
    }
    abandoned = CounterMetricFamily(
        "tidings_calls_abandoned", "Calls that did not end and were left behind", labels=("service", "handler")
    )
    paused = GaugeMetricFamily(
        "tidings_handler_paused", "1 while a handler is paused, by what", labels=("service", "handler", "by")
    )
    families = {name: GaugeMetricFamily(name, text, labels=("service", "handler")) for name, text in texts.items()}
    for position, found in lanes.items():
        where = position.split(".", 1)
        for by in ("operator", "failures"):
            paused.add_metric((*where, by), found.paused == by)
        now, ever = found.left_behind
        abandoned.add_metric(where, ever)
        values = {
            "tidings_lanes_busy": found.busy,
            "tidings_deliveries_waiting": found.waiting,
            "tidings_calls_left_behind": now,
        }
        if (backlog := found.backlog) is not None:
            values["tidings_backlog_pending"] = backlog.pending
            values["tidings_backlog_in_flight"] = backlog.in_flight
            values["tidings_backlog_scheduled"] = backlog.scheduled
        for name, value in values.items():
            families[name].add_metric(where, value)
    yield from (paused, abandoned, *families.values())


def _gauge(name: str, text: str, value: float, service: str) -> Metric:
    family = GaugeMetricFamily(name, text, labels=("service",))
    family.add_metric((service,), value)
    return family
