"""All services at a glance."""

from __future__ import annotations

from tools.dashboards.panels import ALL, BY, Board, Panel, Row, quantile, rate

OVERVIEW = Board(
    "tidings-overview",
    "Tidings: all services",
    "Every service at a glance: does it work, does it keep up, what does not end well.",
    ("service",),
    (
        Row(
            "Now",
            (
                Panel(
                    "Alerts that fire",
                    "How many of the alerts of `tidings observe alerts` fire; 0 is good.",
                    ((f'count(ALERTS{{alertname=~"Tidings.*",alertstate="firing",{ALL}}}) or vector(0)', "firing"),),
                    kind="figure",
                    width=6,
                ),
                Panel(
                    "Processes that are ready",
                    "By service, in how many processes `/health/ready` is green.",
                    ((f"sum by (service) (tidings_ready{{{ALL}}})", "{{service}}"),),
                    kind="figure",
                    width=6,
                ),
                Panel(
                    "Dead letters of the last hour",
                    "By service, how many events could not be handled within the last hour.",
                    (
                        (
                            f'sum by (service) (increase(tidings_outcomes_total{{outcome="dead",{ALL}}}[1h]))',
                            "{{service}}",
                        ),
                    ),
                    kind="figure",
                    width=6,
                ),
                Panel(
                    "Dead letters held",
                    "By service, how many dead letters wait to be redriven or discarded, where the broker tells it.",
                    (
                        (
                            f"sum by (service) (max by ({BY}) (tidings_dead_letters_held{{{ALL}}}))",
                            "{{service}}",
                        ),
                    ),
                    kind="figure",
                    width=6,
                ),
            ),
        ),
        Row(
            "Flow",
            (
                Panel(
                    "Published",
                    "Events a second that the broker has stored, by a call of `publish` (direct) or from the outbox.",
                    ((rate("tidings_published_total", "service, way", ALL), "{{service}} {{way}}"),),
                    "reqps",
                ),
                Panel(
                    "Done",
                    "Events a second that took effect, by handler.",
                    ((rate("tidings_outcomes_total", BY, f'outcome="done",{ALL}'), "{{service}}.{{handler}}"),),
                    "reqps",
                ),
                Panel(
                    "Not done",
                    "Other outcomes a second: duplicates, retries, dead letters, what the broker could not be told.",
                    (
                        (
                            rate("tidings_outcomes_total", "service, outcome", f'outcome!~"done|skipped",{ALL}'),
                            "{{service}} {{outcome}}",
                        ),
                    ),
                    "reqps",
                ),
                Panel(
                    "Backlog",
                    "Events that wait at the broker or are at work, by handler, all processes together.",
                    (
                        (
                            f"max by ({BY}) (tidings_backlog_pending{{{ALL}}} + tidings_backlog_in_flight{{{ALL}}})",
                            "{{service}}.{{handler}}",
                        ),
                    ),
                ),
                Panel(
                    "Age of the oldest event",
                    "How long the oldest event that is not settled has waited, at least, by handler.",
                    ((f"max by ({BY}) (tidings_backlog_oldest_seconds{{{ALL}}})", "{{service}}.{{handler}}"),),
                    "s",
                ),
                Panel(
                    "From event to effect",
                    "The time from the making of an event until its effect: nine of ten, and 99 of 100, were faster.",
                    (
                        (quantile(0.9, "tidings_event_seconds", BY, ALL), "{{service}}.{{handler}} p90"),
                        (quantile(0.99, "tidings_event_seconds", BY, ALL), "{{service}}.{{handler}} p99"),
                    ),
                    "s",
                ),
            ),
        ),
        Row(
            "What they stand on",
            (
                Panel(
                    "Broker",
                    "By service, 1 while every process has a broker it can work with.",
                    ((f"min by (service) (tidings_broker_connected{{{ALL}}})", "{{service}}"),),
                    "bool",
                ),
                Panel(
                    "Oldest event of the outbox",
                    "How long the oldest committed event has waited to be published, by service.",
                    ((f"max by (service) (tidings_outbox_oldest_seconds{{{ALL}}})", "{{service}}"),),
                    "s",
                ),
                Panel(
                    "Refused",
                    "A second: claims that a store refused, and events that the broker did not store.",
                    (
                        (rate("tidings_store_errors_total", "service, error", ALL), "{{service}} store {{error}}"),
                        (rate("tidings_publish_failures_total", "service, error", ALL), "{{service}} broker {{error}}"),
                    ),
                    "reqps",
                ),
                Panel(
                    "Event loops",
                    "How far the event loop of a process is behind; above two seconds its stack is logged.",
                    ((f"max by (service, instance) (tidings_loop_lag_seconds{{{ALL}}})", "{{service}} {{instance}}"),),
                    "s",
                ),
                Panel(
                    "Age limit of the streams",
                    "Of the time for which its stream keeps events, how much the oldest of a handler has waited.",
                    (
                        (
                            f"max by ({BY}) (tidings_backlog_oldest_seconds{{{ALL}}})"
                            f" / max by ({BY}) (tidings_stream_keep_seconds{{{ALL}}})",
                            "{{service}}.{{handler}}",
                        ),
                    ),
                    "percentunit",
                ),
                Panel(
                    "Size limit of the streams",
                    "Of what a stream may hold, how much it holds; 0 where no stream has a limit.",
                    ((f"max by (stream) (tidings_stream_full_ratio{{{ALL}}}) or vector(0)", "{{stream}}"),),
                    "percentunit",
                ),
            ),
        ),
    ),
)
