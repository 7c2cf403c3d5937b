"""Prometheus metrics of one service, in a registry of its own.

What events cost is counted per batch: a dict count for each event, one increment for each kind of outcome. Figures that
only the loop can tell (backlog, lanes, the outbox) are read there every few seconds and kept as one `Figures`; a scrape
comes on another thread and sees the last one.

Where the time of an event goes is told of the first of each batch that is done: at rest of every event, under load of
some.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tidings.delivery import DeadLettered, Delivery, Done, Duplicate, Outcome, Retried, Route
from tidings.errors import BrokerUnavailable, Contention, StoreUnavailable
from tidings.observe._cheap import Counts, Times
from tidings.observe._figures import Figures, Gauges, Now
from tidings.observe._watched import WatchedHandler
from tidings.ports import Settled
from tidings.sight import Stage, Way

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
OTHER: Final = "other"
"""The type label of what is none of a handler's types, or could not be read: what strangers send makes no series."""

SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
AGES: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    60.0,
    300.0,
    3600.0,
    86400.0,
)
OUTCOMES: Final = ("done", "duplicate", "retry", "dead", "unsettled")
"""What has a series from the start: an alert on the first dead letter has to see that there was none before."""
STORE_ERRORS: Final = {StoreUnavailable: "unavailable", Contention: "contention"}
MOST_ATTEMPTS: Final = 5
_ATTEMPTS: Final = (*map(str, range(1, MOST_ATTEMPTS + 1)), "more")
_HANDLED: Final = frozenset({"failed", "rejected", "killed", "behind", "conflict", "copy-too-large"})
"""The codes of dead letters whose bytes could be read."""


class Metrics:
    """An observer that counts. `text()` may be called on any thread.

    `now` are what the thread of a scrape asks for.
    """

    def __init__(
        self,
        service: str,
        handlers: Callable[[], Sequence[WatchedHandler]],
        *,
        version: str = "",
        tidings_version: str = "",
        now: Now = Now(),  # noqa: B008  # frozen
    ) -> None:
        registry = CollectorRegistry()
        self.registry: CollectorRegistry = registry
        self.figures: Figures = Figures()
        self._service, self._handlers = service, handlers
        where, of, way = ("service", "handler"), ("service", "handler", "type"), ("service", "way")
        self._received = _counter("received", "Deliveries a lane took up, those put back and taken again too", where)
        self._outcomes = _counter("outcomes", "What became of deliveries", (*of, "outcome"))
        self._retries = _counter("retries", "To be handled again; counted=no is no failure", (*of, "counted"))
        self._dead = _counter("dead_letters", "Deliveries that became dead letters, by why", (*of, "code"))
        self._duplicates = _counter("duplicates", "Deliveries whose effect had been applied before", (*of, "of"))
        self._redelivered = _counter("redeliveries", "Settled deliveries that the broker had to repeat", where)
        self._attempts = _counter("attempts", "Outcomes by which attempt they are of", (*where, "attempt"))
        self._unread = _counter("decode_failures", "Messages that could not be read, by why", (*where, "code"))
        self._store = _counter("store_errors", "Claims that the store did not open or close", (*where, "error"))
        self._published = _counter("published", "Events that the broker has stored", way)
        self._failed = _counter("publish_failures", "Events that it did not store, or may not have", (*way, "error"))
        self._size = Times("tidings_batch_events", "Events that were settled together", where, SIZES)
        self._seconds = Times("tidings_batch_seconds", "From taking a batch up until it was settled", where, SECONDS)
        self._stages = Times(
            "tidings_stage_seconds",
            "Where the time goes, of the first event of each batch that is done",
            (*where, "stage"),
            AGES,
        )
        self._ages = Times(
            "tidings_event_seconds",
            "From the making of an event until it was done, of the first of each batch",
            where,
            AGES,
        )
        self._publishing = Times("tidings_publish_seconds", "Until the broker had answered, by call", way, SECONDS)
        for metric in self.counters_and_times():
            registry.register(metric)
        build = {"version": tidings_version, "service_version": version}
        registry.register(Gauges(service, lambda: self.figures, build, now))
        ProcessCollector(registry=registry)
        self._tallies: dict[str, _Tally] = {}
        self._ways: dict[Way, tuple[list[int], Callable[[float], None]]] = {}

    def prepare(self) -> None:
        """Have the series of all handlers from the start."""
        for handler in self._handlers():
            self._tally(handler.position)

    def received(self, position: str, count: int) -> None:
        self._tally(position).received(count)

    def settled(self, position: str, batch: Sequence[Settled], seconds: float) -> None:
        self._tally(position).settled(batch, seconds)

    def stage(self, position: str, stage: Stage, seconds: float) -> None:
        self._tally(position).stages[stage](seconds)

    def refused(self, position: str, error: Exception) -> None:
        kind = next((name for known, name in STORE_ERRORS.items() if isinstance(error, known)), OTHER)
        self._store.child(*position.split(".", 1), kind)[0] += 1

    def published(self, way: Way, answers: Sequence[Exception | None], seconds: float) -> None:
        count, times = self._ways.get(way) or self._way(way)
        times(seconds)
        failed = [error for error in answers if error is not None]
        count[0] += len(answers) - len(failed)
        for error in failed:
            kind = "unavailable" if isinstance(error, BrokerUnavailable) else "refused"
            self._failed.child(self._service, way, kind)[0] += 1

    def _way(self, way: Way) -> tuple[list[int], Callable[[float], None]]:
        found = self._published.child(self._service, way), self._publishing.child(self._service, way)
        self._ways[way] = found
        for kind in ("unavailable", "refused"):
            self._failed.child(self._service, way, kind)
        return found

    def text(self) -> bytes:
        """Everything in the Prometheus text format."""
        return generate_latest(self.registry)

    def taken(self, position: str) -> int:
        """How many deliveries of a position were taken up so far."""
        tally = self._tallies.get(position)
        return 0 if tally is None else tally.taken

    def counters_and_times(self) -> tuple[Counts | Times, ...]:
        outcomes = (self._received, self._outcomes, self._retries, self._dead, self._duplicates, self._redelivered)
        others = (self._attempts, self._unread, self._store, self._published, self._failed)
        return (*outcomes, *others, self._size, self._seconds, self._stages, self._ages, self._publishing)

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
        self._only = next(iter(types)) if len(types) == 1 else ""
        """What is done is of this type, and need not be asked for it."""
        self._metrics = metrics
        self._children: dict[tuple[str, str, str], Sequence[list[int]]] = {}
        self.taken = 0
        self._received = metrics._received.child(*self._where)
        self._redelivered = metrics._redelivered.child(*self._where)
        self._attempts = [metrics._attempts.child(*self._where, name) for name in _ATTEMPTS]
        self._size = metrics._size.child(*self._where)
        self._seconds = metrics._seconds.child(*self._where)
        self._age = metrics._ages.child(*self._where)
        names = ("outbox", "transit", "queue", "claim", "handler", "commit", "settle")
        self.stages = {name: metrics._stages.child(*self._where, name) for name in names}
        for kind in (*types, OTHER):
            for outcome in OUTCOMES:
                metrics._outcomes.child(*self._where, kind, outcome)
        for error in STORE_ERRORS.values():
            metrics._store.child(*self._where, error)

    def received(self, count: int) -> None:
        self.taken += count
        self._received[0] += count

    def settled(self, batch: Sequence[Settled], seconds: float) -> None:
        counts: dict[tuple[str, str, str], int] = {}
        plain: dict[str, int] = {}
        tried: dict[int, int] = {}
        alike = again = 0
        only, done = self._only, None
        first: Delivery | None = None
        for one in batch:
            delivery, outcome = one.delivery, one.outcome
            if outcome is not done and type(outcome) is Done and not outcome.skipped:
                done = outcome  # mostly one object for all
            if outcome is done and delivery.delivered == 1 and not delivery.failures:  # nearly always
                if only:
                    alike += 1
                else:
                    kind = OTHER if delivery.envelope is None else delivery.envelope.type
                    plain[kind] = plain.get(kind, 0) + 1
                first = first or delivery
                continue
            envelope, failures = delivery.envelope, delivery.failures
            tried[failures] = tried.get(failures, 0) + 1
            if delivery.delivered > 1 and type(outcome) is not Retried:
                again += 1
            key = (envelope.type if envelope is not None else OTHER, *_kind(outcome))
            counts[key] = counts.get(key, 0) + 1
        if alike:
            plain[only] = alike
        for kind, count in plain.items():
            key = (kind, "done", "")
            counts[key] = counts.get(key, 0) + count
            tried[0] = tried.get(0, 0) + count
        for key, count in counts.items():
            for child in self._children.get(key) or self._made(key):
                child[0] += count
        for failures, count in tried.items():
            self._attempts[min(failures, MOST_ATTEMPTS)][0] += count
        if again:
            self._redelivered[0] += again
        self._size(len(batch))
        self._seconds(seconds)
        if first is not None:
            self._on_the_way(first, seconds)

    def _on_the_way(self, delivery: Delivery, seconds: float) -> None:
        """What went by until an event was done; of first attempts alone, since a repeat has waited on purpose."""
        envelope, now = delivery.envelope, time.time()
        if not delivery.arrived or delivery.route is not Route.EVENT:
            return
        made = None if envelope is None or envelope.time is None else envelope.time.timestamp()
        self.stages["queue"](max(0.0, now - seconds - delivery.arrived))
        if delivery.stored:
            self.stages["transit"](max(0.0, delivery.arrived - delivery.stored))
            if made is not None:
                self.stages["outbox"](max(0.0, delivery.stored - made))
        if made is not None:
            self._age(max(0.0, now - made))

    def _made(self, key: tuple[str, str, str]) -> Sequence[list[int]]:
        """The children for a type, an outcome and its detail. Only a handler's own types get series, and room."""
        kind, outcome, detail = key
        metrics = self._metrics
        of = (*self._where, kind if kind in self._types else OTHER)
        children = [metrics._outcomes.child(*of, outcome)]
        by_detail = {"retry": metrics._retries, "dead": metrics._dead, "duplicate": metrics._duplicates}.get(outcome)
        if by_detail is not None:
            children.append(by_detail.child(*of, detail))
        if outcome == "dead" and detail not in _HANDLED:
            children.append(metrics._unread.child(*self._where, detail))
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


def _counter(name: str, text: str, labels: Sequence[str]) -> Counts:
    return Counts(f"tidings_{name}", text, labels)
