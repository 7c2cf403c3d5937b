"""What the loop found when it last looked, as gauges. They are made anew for each scrape: what is gone leaves none."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping

import msgspec
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from tidings.observe._held import Held
from tidings.ports import Backlog

WHERE = ("service", "handler")


class Lanes(msgspec.Struct, frozen=True):
    """What a handler's lanes in this process are doing."""

    waiting: int
    busy: int
    backlog: Backlog | None
    paused: str = ""
    """``operator`` or ``failures``; empty while it works."""
    left_behind: tuple[int, int] = (0, 0)
    """Calls that did not end: how many there are now, and how many there were."""
    oldest: float = 0.0
    """Age of the oldest event that waits or is at work, in seconds."""
    overdue: float = 0.0
    """For how long a call runs on although its time is over, in seconds."""
    stalled: bool = False
    """Events wait, and none is delivered to any process."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What the loop found when it last looked; kept whole, so that a scrape never sees half of it."""

    connected: bool | None = None
    """None while the service does not run."""
    lanes: Mapping[str, Lanes] = {}
    outbox: tuple[int, float, int] | None = None
    """How many events wait in the outbox, the age of the oldest in seconds, and how many are parked."""
    reconnects: int | None = None
    full: Mapping[str, float] = {}
    """By stream, how much of what it may hold it holds."""
    keeps: Mapping[str, float] = {}
    """By position, for how many seconds its stream keeps events."""
    held: Mapping[str, Held] = {}
    """By position, the dead letters that wait for somebody, where that is known."""


class Now(msgspec.Struct, frozen=True):
    """What is asked on the thread of the scrape."""

    lag: Callable[[], float] = lambda: 0.0
    live: Callable[[], bool] = lambda: True
    ready: Callable[[], bool] = lambda: True


class Gauges(Collector):
    """The last figures of one service."""

    def __init__(self, service: str, figures: Callable[[], Figures], build: Mapping[str, str], now: Now) -> None:
        self._service, self._figures, self._now = service, figures, now
        self._build = {**build, "python": platform.python_version()}

    def collect(self) -> Iterator[Metric]:
        figures, service = self._figures(), self._service
        yield InfoMetricFamily("tidings_build", "What runs here", {"service": service, **self._build})
        yield _gauge("tidings_live", "1 while the process should go on", self._now.live(), service)
        yield _gauge("tidings_ready", "1 while it does its work", self._now.ready(), service)
        if figures.connected is not None:
            yield _gauge("tidings_broker_connected", "1 while the broker works", figures.connected, service)
        yield _gauge("tidings_loop_lag_seconds", "How far the event loop is behind", self._now.lag(), service)
        if figures.reconnects is not None:
            made = CounterMetricFamily("tidings_reconnects", "Connections made anew after a loss", labels=("service",))
            made.add_metric((service,), figures.reconnects)
            yield made
        if figures.outbox is not None:
            count, age, parked = figures.outbox
            yield _gauge("tidings_outbox_waiting", "Committed events that are not published yet", count, service)
            yield _gauge("tidings_outbox_oldest_seconds", "Age of the oldest of them", age, service)
            yield _gauge("tidings_outbox_parked", "Those that the broker refuses for good", parked, service)
        yield from _streams(figures, service)
        yield from _letters(figures.held)
        yield from _lanes(figures.lanes)


def _streams(figures: Figures, service: str) -> Iterator[Metric]:
    full = GaugeMetricFamily(
        "tidings_stream_full_ratio", "Of what a stream may hold, how much it holds", labels=("service", "stream")
    )
    for stream, share in figures.full.items():
        full.add_metric((service, stream), share)
    keeps = GaugeMetricFamily(
        "tidings_stream_keep_seconds", "How long the stream of a handler keeps its events", labels=WHERE
    )
    for position, seconds in figures.keeps.items():
        keeps.add_metric(position.split(".", 1), seconds)
    yield from (full, keeps)


def _letters(held: Mapping[str, Held]) -> Iterator[Metric]:
    count = GaugeMetricFamily(
        "tidings_dead_letters_held", "Dead letters that were neither redriven nor discarded", labels=WHERE
    )
    age = GaugeMetricFamily(
        "tidings_dead_letters_oldest_seconds",
        "How long the oldest of them is held; 0 where there is none",
        labels=WHERE,
    )
    for position, one in held.items():
        where = position.split(".", 1)
        count.add_metric(where, one.letters)
        age.add_metric(where, 0.0 if one.since is None else max(0.0, time.time() - one.since))
    yield from (count, age)


_TEXTS = {
    "tidings_backlog_pending": "Messages that were not delivered to any process yet",
    "tidings_backlog_in_flight": "Messages delivered to any process and not settled",
    "tidings_backlog_scheduled": "Copies that wait on the retry route for their time",
    "tidings_backlog_oldest_seconds": "Age of the oldest event that waits or is at work, at least",
    "tidings_handler_stalled": "1 while events wait and none was delivered to any process for a minute",
    "tidings_lanes_busy": "Lanes of this process that are at work",
    "tidings_deliveries_waiting": "Deliveries queued or held in this process",
    "tidings_call_overdue_seconds": "For how long a call runs on although its time is over",
    "tidings_calls_left_behind": "Calls that did not end and were left behind, in this process now",
}


def _lanes(lanes: Mapping[str, Lanes]) -> Iterator[Metric]:
    abandoned = CounterMetricFamily(
        "tidings_calls_abandoned", "Calls that did not end and were left behind", labels=WHERE
    )
    paused = GaugeMetricFamily(
        "tidings_handler_paused", "1 while a handler is paused, by what", labels=("service", "handler", "by")
    )
    families = {name: GaugeMetricFamily(name, text, labels=WHERE) for name, text in _TEXTS.items()}
    for position, found in lanes.items():
        where = position.split(".", 1)
        for by in ("operator", "failures"):
            paused.add_metric((*where, by), found.paused == by)
        now, ever = found.left_behind
        abandoned.add_metric(where, ever)
        values = {
            "tidings_backlog_oldest_seconds": found.oldest,
            "tidings_handler_stalled": found.stalled,
            "tidings_lanes_busy": found.busy,
            "tidings_deliveries_waiting": found.waiting,
            "tidings_call_overdue_seconds": found.overdue,
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
