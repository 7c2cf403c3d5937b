"""One service in depth."""

from __future__ import annotations

from tools.dashboards.panels import OF, ONE, Board, Panel, Row, quantile, rate

SERVICE = Board(
    "tidings-service",
    "Tidings: one service",
    "One service in depth: the way of its events from publish to effect, what becomes of them, and its processes.",
    ("service", "handler"),
    (
        Row(
            "From publish to effect",
            (
                Panel(
                    "Where the time goes",
                    "The mean time of each stage, on top of one another: outbox (made, until the broker had stored it),"
                    " transit (until it was here), queue (until a lane took it up), claim, handler, commit, settle.",
                    (
                        (
                            f"{rate('tidings_stage_seconds_sum', 'stage', OF)}"
                            f" / {rate('tidings_stage_seconds_count', 'stage', OF)}",
                            "{{stage}}",
                        ),
                    ),
                    "s",
                    "stacked",
                    12,
                ),
                Panel(
                    "The slowest of each stage",
                    "The time that 99 of 100 did not exceed, by stage.",
                    ((quantile(0.99, "tidings_stage_seconds", "stage", OF), "{{stage}}"),),
                    "s",
                    width=12,
                ),
                Panel(
                    "Published, taken up, done",
                    "Events a second: what this service publishes, what its lanes take up, and what took effect.",
                    (
                        (rate("tidings_published_total", "way", ONE), "published {{way}}"),
                        (rate("tidings_received_total", "service", OF), "taken up"),
                        (rate("tidings_outcomes_total", "service", f'outcome="done",{OF}'), "done"),
                    ),
                    "reqps",
                ),
                Panel(
                    "From event to effect",
                    "The time from the making of an event until it took effect: half, nine of ten, and 99 of 100.",
                    (
                        (quantile(0.5, "tidings_event_seconds", "handler", OF), "{{handler}} p50"),
                        (quantile(0.9, "tidings_event_seconds", "handler", OF), "{{handler}} p90"),
                        (quantile(0.99, "tidings_event_seconds", "handler", OF), "{{handler}} p99"),
                    ),
                    "s",
                ),
                Panel(
                    "Outbox",
                    "Committed events that are not published yet, and those of them that the broker refuses for good.",
                    (
                        (f"max (tidings_outbox_waiting{{{ONE}}})", "waiting"),
                        (f"max (tidings_outbox_parked{{{ONE}}})", "parked"),
                    ),
                ),
            ),
        ),
        Row(
            "What becomes of them",
            (
                Panel(
                    "Outcomes",
                    "All outcomes a second, by handler.",
                    ((rate("tidings_outcomes_total", "handler, outcome", OF), "{{handler}} {{outcome}}"),),
                    "reqps",
                ),
                Panel(
                    "Dead letters by why",
                    "Dead letters a second, by their code.",
                    ((rate("tidings_dead_letters_total", "handler, code", OF), "{{handler}} {{code}}"),),
                    "reqps",
                ),
                Panel(
                    "Dead letters held",
                    "Dead letters that wait to be redriven or discarded, where the broker tells it.",
                    ((f"max by (handler) (tidings_dead_letters_held{{{OF}}})", "{{handler}}"),),
                ),
                Panel(
                    "Age of the oldest dead letter",
                    "For how long the oldest dead letter is held; 0 where there is none.",
                    ((f"max by (handler) (tidings_dead_letters_oldest_seconds{{{OF}}})", "{{handler}}"),),
                    "s",
                ),
                Panel(
                    "Attempts",
                    "Outcomes a second by which attempt they are of: 1 is the first.",
                    ((rate("tidings_attempts_total", "attempt", OF), "{{attempt}}"),),
                    "reqps",
                    "stacked",
                ),
                Panel(
                    "Repeats",
                    "A second: what the broker delivered once more, and what was known as applied already.",
                    (
                        (rate("tidings_redeliveries_total", "handler", OF), "{{handler}} delivered again"),
                        (rate("tidings_duplicates_total", "handler, of", OF), "{{handler}} duplicate of {{of}}"),
                    ),
                    "reqps",
                ),
                Panel(
                    "Cannot be read",
                    "Messages a second whose bytes are no event that the handler knows, by why.",
                    ((rate("tidings_decode_failures_total", "code", OF), "{{code}}"),),
                    "reqps",
                ),
                Panel(
                    "Store",
                    "Claims a second that the store did not open or close; contention passes by itself.",
                    ((rate("tidings_store_errors_total", "handler, error", OF), "{{handler}} {{error}}"),),
                    "reqps",
                ),
            ),
        ),
        Row(
            "Handlers",
            (
                Panel(
                    "Backlog",
                    "Events that wait, are at work, or wait on the retry route for their time; all processes together.",
                    (
                        (f"max by (handler) (tidings_backlog_pending{{{OF}}})", "{{handler}} waiting"),
                        (f"max by (handler) (tidings_backlog_in_flight{{{OF}}})", "{{handler}} at work"),
                        (f"max by (handler) (tidings_backlog_scheduled{{{OF}}})", "{{handler}} to be retried"),
                    ),
                ),
                Panel(
                    "Age of the oldest event",
                    "How long the oldest event that is not settled has waited, at least.",
                    ((f"max by (handler) (tidings_backlog_oldest_seconds{{{OF}}})", "{{handler}}"),),
                    "s",
                ),
                Panel(
                    "Stuck",
                    "For how long a call runs on although its time is over, and how many were left behind.",
                    (
                        (f"max by (handler) (tidings_call_overdue_seconds{{{OF}}})", "{{handler}} past its time, s"),
                        (f"sum by (handler) (tidings_calls_left_behind{{{OF}}})", "{{handler}} left behind"),
                    ),
                ),
                Panel(
                    "Lanes at work",
                    "How many lanes are at work, in all processes together.",
                    ((f"sum by (handler) (tidings_lanes_busy{{{OF}}})", "{{handler}}"),),
                ),
                Panel(
                    "Size of batches",
                    "How many events are settled together, on the average: 1 at rest, more under load.",
                    (
                        (
                            f"{rate('tidings_batch_events_sum', 'handler', OF)}"
                            f" / {rate('tidings_batch_events_count', 'handler', OF)}",
                            "{{handler}}",
                        ),
                    ),
                ),
                Panel(
                    "Paused or without progress",
                    "1 while a handler is paused, by a person or by its failures, or gets none of what waits for it.",
                    (
                        (f"max by (handler, by) (tidings_handler_paused{{{OF}}})", "{{handler}} paused by {{by}}"),
                        (f"max by (handler) (tidings_handler_stalled{{{OF}}})", "{{handler}} gets nothing"),
                    ),
                    "bool",
                ),
            ),
        ),
        Row(
            "Processes",
            (
                Panel(
                    "Publishing",
                    "How long the broker takes to answer a call: half of them, and 99 of 100, were faster.",
                    (
                        (quantile(0.5, "tidings_publish_seconds", "way", ONE), "{{way}} p50"),
                        (quantile(0.99, "tidings_publish_seconds", "way", ONE), "{{way}} p99"),
                    ),
                    "s",
                ),
                Panel(
                    "Not stored",
                    "Events a second that the broker refused, or did not answer for.",
                    ((rate("tidings_publish_failures_total", "way, error", ONE), "{{way}} {{error}}"),),
                    "reqps",
                ),
                Panel(
                    "Event loop",
                    "How far the event loop is behind, by process.",
                    ((f"max by (instance) (tidings_loop_lag_seconds{{{ONE}}})", "{{instance}}"),),
                    "s",
                ),
                Panel(
                    "Connections made anew",
                    "How often a process connected to the broker again, within the last hour.",
                    ((f"max by (instance) (increase(tidings_reconnects_total{{{ONE}}}[1h]))", "{{instance}}"),),
                ),
                Panel(
                    "Memory",
                    "What a process holds in memory.",
                    (
                        (
                            "process_resident_memory_bytes and on (job, instance)"
                            f" max by (job, instance) (tidings_live{{{ONE}}})",
                            "{{instance}}",
                        ),
                    ),
                    "bytes",
                ),
                Panel(
                    "Processor",
                    "How many processors a process uses; an event loop can use one.",
                    (
                        (
                            "rate(process_cpu_seconds_total[$__rate_interval]) and on (job, instance)"
                            f" max by (job, instance) (tidings_live{{{ONE}}})",
                            "{{instance}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
