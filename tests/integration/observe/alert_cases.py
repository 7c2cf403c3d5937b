"""For each alert what makes it fire, and what is like it and does not: as `promtool test rules` reads series.

A series is written ``start+step x times``; scrapes are a minute apart, and ``at`` is the minute at which is looked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SHOP = 'service="shop",instance="a:1",job="shop"'
HANDLER = f'{SHOP},handler="handle"'

Series = Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """`series` at minute `at`: whether the alert fires, and which labels it has beside those of its rule."""

    alert: str
    why: str
    series: Series
    fires: Mapping[str, str] | None
    at: int = 30
    labels: Mapping[str, str] = field(default_factory=dict)


OF_HANDLER = {"service": "shop", "handler": "handle"}
OF_PROCESS = {"service": "shop", "instance": "a:1"}
OF_SERVICE = {"service": "shop"}

UP = {f"tidings_broker_connected{{{SHOP}}}": "1x60"}
AWAY = {f"tidings_broker_connected{{{SHOP}}}": "1x20 0x40"}


def of(name: str, values: str, more: str = "", labels: str = HANDLER) -> Series:
    return {f"{name}{{{labels}{',' if more else ''}{more}}}": values}


def outcomes(outcome: str, values: str) -> Series:
    return of("tidings_outcomes_total", values, f'type="order.placed",outcome="{outcome}"')


LIVE = of("tidings_live", "1x60", labels=SHOP)
BEHIND = of("tidings_backlog_pending", "200+50x60")
OLD = of("tidings_backlog_oldest_seconds", "0+60x60")
STUCK = of("tidings_call_overdue_seconds", "0x5 0+60x55")
OUTBOX = {
    **of("tidings_outbox_waiting", "7x60", labels=SHOP),
    **of("tidings_outbox_parked", "0x60", labels=SHOP),
    **of("tidings_outbox_oldest_seconds", "0+60x60", labels=SHOP),
}
LETTERS = of("tidings_dead_letters_oldest_seconds", "86000+60x60")
REPEATS = {**of("tidings_redeliveries_total", "0+30x60"), **outcomes("done", "0+60x60")}

CASES: tuple[Case, ...] = (
    Case(
        "TidingsScrapeMissing",
        "a process that answered is down, and another one of its service is not",
        {
            **of("tidings_live", "1x20 _x40", labels=SHOP),
            **of("tidings_live", "1x60", labels=SHOP.replace("a:1", "b:1")),
            **of("up", "1x20 0x40", labels='instance="a:1",job="shop"'),
            **of("up", "1x60", labels='instance="b:1",job="shop"'),
        },
        {**OF_PROCESS, "job": "shop"},
    ),
    Case(
        "TidingsScrapeMissing",
        "a service is gone, and nothing is left that could be scraped",
        of("tidings_live", "1x20 _x40", labels=SHOP),
        OF_SERVICE,
    ),
    Case(
        "TidingsScrapeMissing",
        "something else is down, which never was a service of Tidings",
        {**LIVE, **of("up", "0x60", labels='instance="other:1",job="db"'), **of("up", "1x60", labels=SHOP)},
        None,
    ),
    Case("TidingsNotLive", "a process is not live", of("tidings_live", "1x20 0x40", labels=SHOP), OF_PROCESS),
    Case("TidingsNotLive", "a process is live", LIVE, None),
    Case("TidingsBrokerDown", "no broker", AWAY, OF_PROCESS),
    Case(
        "TidingsBrokerDown",
        "the broker was away for a moment",
        of("tidings_broker_connected", "1x29 0 1x30", labels=SHOP),
        None,
    ),
    Case(
        "TidingsReconnectStorm",
        "a connection a minute",
        of("tidings_reconnects_total", "0+1x60", labels=SHOP),
        OF_PROCESS,
    ),
    Case(
        "TidingsReconnectStorm",
        "two connections after an outage",
        of("tidings_reconnects_total", "0x24 2x36", labels=SHOP),
        None,
    ),
    Case(
        "TidingsLoopBlocked",
        "a loop that is blocked",
        of("tidings_loop_lag_seconds", "0x20 4x40", labels=SHOP),
        OF_PROCESS,
    ),
    Case("TidingsLoopBlocked", "a loop that is busy", of("tidings_loop_lag_seconds", "0.3x60", labels=SHOP), None),
    Case(
        "TidingsStoreFails",
        "a store that is gone",
        of("tidings_store_errors_total", "0+3x60", 'error="unavailable"'),
        OF_HANDLER,
    ),
    Case(
        "TidingsStoreFails", "locks, which pass", of("tidings_store_errors_total", "0+3x60", 'error="contention"'), None
    ),
    Case(
        "TidingsPublishFails",
        "a broker that refuses events",
        {**UP, **of("tidings_publish_failures_total", "0+2x60", 'way="direct",error="refused"', SHOP)},
        OF_SERVICE,
    ),
    Case(
        "TidingsPublishFails",
        "no broker, which is told already",
        {**AWAY, **of("tidings_publish_failures_total", "0+2x60", 'way="direct",error="unavailable"', SHOP)},
        None,
    ),
    Case("TidingsHandlerStuck", "a call past its time", STUCK, OF_HANDLER),
    Case(
        "TidingsHandlerStuck", "a call that was left behind", of("tidings_calls_left_behind", "0x20 1x40"), OF_HANDLER
    ),
    Case("TidingsHandlerStuck", "a call that gave in soon", of("tidings_call_overdue_seconds", "0x29 20 0x30"), None),
    Case(
        "TidingsHandlerStalled",
        "events that nobody gets",
        {**UP, **of("tidings_handler_stalled", "0x20 1x40")},
        OF_HANDLER,
    ),
    Case(
        "TidingsHandlerStalled",
        "no broker, which is told already",
        {**AWAY, **of("tidings_handler_stalled", "0x20 1x40")},
        None,
    ),
    Case(
        "TidingsHandlerPausedItself",
        "too much fails",
        of("tidings_handler_paused", "0x20 1x40", 'by="failures"'),
        OF_HANDLER,
    ),
    Case(
        "TidingsHandlerPausedItself",
        "a person paused it",
        of("tidings_handler_paused", "0x20 1x40", 'by="operator"'),
        None,
    ),
    Case(
        "TidingsHandlerPausedLong",
        "paused yesterday",
        of("tidings_handler_paused", "1x200", 'by="operator"'),
        OF_HANDLER,
        190,
    ),
    Case(
        "TidingsHandlerPausedLong",
        "paused an hour ago",
        of("tidings_handler_paused", "0x130 1x70", 'by="operator"'),
        None,
        190,
    ),
    Case("TidingsDeadLetters", "the first dead letter", outcomes("dead", "0x25 1x35"), OF_HANDLER),
    Case("TidingsDeadLetters", "dead letters of long ago", outcomes("dead", "0x5 7x55"), None),
    Case("TidingsDeadLetters", "retries", outcomes("retry", "0+5x60"), None),
    Case("TidingsDeadLettersHeld", "a letter of yesterday", LETTERS, OF_HANDLER),
    Case(
        "TidingsDeadLettersHeld",
        "a letter of yesterday that two processes tell of is one",
        {**LETTERS, **of("tidings_dead_letters_oldest_seconds", "86000+60x60", labels=HANDLER.replace("a:1", "b:1"))},
        OF_HANDLER,
    ),
    Case(
        "TidingsDeadLettersHeld", "letters of this morning", of("tidings_dead_letters_oldest_seconds", "0+60x60"), None
    ),
    Case(
        "TidingsDeadLettersHeld",
        "letters that were redriven or discarded",
        of("tidings_dead_letters_oldest_seconds", "86000+60x22 0x40"),
        None,
    ),
    Case("TidingsBacklogGrows", "a backlog that grows", {**UP, **BEHIND}, OF_HANDLER),
    Case(
        "TidingsBacklogGrows",
        "a backlog that is worked off",
        {**UP, **of("tidings_backlog_pending", "9000-50x60")},
        None,
    ),
    Case("TidingsBacklogGrows", "a peak", {**UP, **of("tidings_backlog_pending", "0x25 500x2 0x33")}, None),
    Case("TidingsBacklogGrows", "a handler that is stuck, which is told already", {**UP, **BEHIND, **STUCK}, None),
    Case("TidingsEventsTooOld", "events that wait", {**UP, **OLD}, OF_HANDLER),
    Case(
        "TidingsEventsTooOld",
        "events that wait a little",
        {**UP, **of("tidings_backlog_oldest_seconds", "500x60")},
        None,
    ),
    Case(
        "TidingsEventsTooOld",
        "a handler that is paused",
        {**UP, **OLD, **of("tidings_handler_paused", "1x60", 'by="operator"')},
        None,
    ),
    Case("TidingsEventsTooOld", "no broker, which is told already", {**AWAY, **OLD}, None),
    Case("TidingsRedeliveries", "every second event comes twice", {**UP, **REPEATS}, OF_HANDLER),
    Case(
        "TidingsRedeliveries",
        "a worker was killed once",
        {**UP, **of("tidings_redeliveries_total", "0x20 30x40"), **outcomes("done", "0+60x60")},
        None,
    ),
    Case("TidingsRedeliveries", "no broker, which is told already", {**AWAY, **REPEATS}, None),
    Case(
        "TidingsUnsettled",
        "outcomes that the broker does not take",
        {**UP, **outcomes("unsettled", "0+2x60")},
        OF_HANDLER,
    ),
    Case("TidingsUnsettled", "some after an outage", {**AWAY, **outcomes("unsettled", "0+2x60")}, None),
    Case("TidingsUnsettled", "a single one", {**UP, **outcomes("unsettled", "0x25 1x35")}, None),
    Case("TidingsOutboxStuck", "an outbox from which nothing leaves", {**UP, **OUTBOX}, OF_SERVICE),
    Case(
        "TidingsOutboxStuck",
        "an outbox that is behind, and drains",
        {**UP, **OUTBOX, **of("tidings_published_total", "0+90x60", 'way="outbox"', SHOP)},
        None,
    ),
    Case("TidingsOutboxStuck", "no broker, which is told already", {**AWAY, **OUTBOX}, None),
    Case(
        "TidingsOutboxStuck",
        "a call that keeps the only transaction, which is told already",
        {**UP, **OUTBOX, **STUCK},
        None,
    ),
    Case(
        "TidingsOutboxStuck",
        "only events that are parked",
        {**UP, **OUTBOX, **of("tidings_outbox_parked", "7x60", labels=SHOP)},
        None,
    ),
    Case(
        "TidingsOutboxParked",
        "an event that is parked",
        of("tidings_outbox_parked", "0x20 1x40", labels=SHOP),
        OF_SERVICE,
    ),
    Case("TidingsOutboxParked", "none is parked", of("tidings_outbox_parked", "0x60", labels=SHOP), None),
    Case(
        "TidingsStreamNearAge",
        "half of the time is over",
        {**of("tidings_backlog_oldest_seconds", "1900x60"), **of("tidings_stream_keep_seconds", "3600x60")},
        OF_HANDLER,
    ),
    Case(
        "TidingsStreamNearAge",
        "there is time",
        {**of("tidings_backlog_oldest_seconds", "1900x60"), **of("tidings_stream_keep_seconds", "604800x60")},
        None,
    ),
    Case(
        "TidingsStreamNearFull",
        "nearly full",
        of("tidings_stream_full_ratio", "0.9x60", 'stream="order"', SHOP),
        {"stream": "order"},
    ),
    Case("TidingsStreamNearFull", "half full", of("tidings_stream_full_ratio", "0.5x60", 'stream="order"', SHOP), None),
)
