"""One structured log line for each outcome but done, and a way to render lines for machines and for people.

Nothing is configured on import: applications that embed a service keep their own logging, and get plain stdlib records
whose fields stand in `record.__dict__`. `configure_logging` is for programs that are nothing but a service.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Final, TextIO

from tidings.context import current
from tidings.delivery import (
    DONE,
    SKIPPED,
    UNTIL_IT_ENDS,
    DeadLettered,
    Delivery,
    Done,
    Duplicate,
    Outcome,
    Retried,
    Unsettled,
)
from tidings.observe._text import shown
from tidings.outcomes import outcomes_of
from tidings.ports import Settled

log = logging.getLogger("tidings.outcomes")

LONGEST_REASON: Final = 1000
FIELDS: Final = ("service", "handler", "type", "event_id", "key", "correlation_id", "causation_id", "attempt")
"""What every line about a delivery has as fields, also the lines that a handler writes."""

EventDict = MutableMapping[str, Any]


class OutcomeLog:
    """Writes a line for each outcome but done, which is told for a whole batch, at debug level."""

    def received(self, position: str, count: int) -> None:
        """Nothing has become of them yet."""

    def settled(self, position: str, batch: Sequence[Settled], seconds: float) -> None:
        outcomes = outcomes_of(batch)
        done, skipped = outcomes.count(DONE), outcomes.count(SKIPPED)
        if done + skipped < len(outcomes):
            for one in batch:
                if type(one.outcome) is not Done:
                    _write(position, one.delivery, one.outcome, seconds)
        if done + skipped and log.isEnabledFor(logging.DEBUG):
            service, _, handler = position.partition(".")
            told = ((done, "done"), (skipped, "skipped"))
            counts = ", ".join(f"{count} {kind}" for count, kind in told if count)
            extra = {"service": service, "handler": handler, "outcome": "done", "duration": round(seconds, 6)}
            log.debug("%s: %s in %.1f ms", position, counts, seconds * 1000, extra=extra)


def _write(position: str, delivery: Delivery, outcome: Outcome, seconds: float) -> None:
    level, text, more = _told(outcome)
    if not log.isEnabledFor(level):
        return
    fields = fields_of(position, delivery)
    what = f"{fields['type'] or 'message'} {fields['event_id']}"
    text = shown(text, LONGEST_REASON)
    extra = {**fields, "outcome": outcome.kind, "duration": round(seconds, 6), **more}
    log.log(level, "%s: %s: %s", position, what, text, extra=extra)


def _told(outcome: Outcome) -> tuple[int, str, dict[str, object]]:
    """The level, the sentence and the fields of an outcome."""
    if isinstance(outcome, Duplicate):
        if not outcome.of:
            return logging.INFO, "duplicate: it was applied before", {"reason": "applied before"}
        of = shown(outcome.of)
        reason = f"its key was applied for event {of}"
        return logging.WARNING, f"duplicate of another event: {reason}", {"reason": reason, "duplicate_of": of}
    if isinstance(outcome, Retried):
        reason = shown(outcome.reason, LONGEST_REASON)
        level, why = (logging.WARNING, "failed") if outcome.counted else (logging.INFO, "put off, which is no failure")
        more = {"reason": reason, "counted": outcome.counted, **_where(outcome.error)}
        if outcome.after == UNTIL_IT_ENDS:
            return level, f"{why}, and waits until its call has ended: {reason}", more
        more["after"] = round(outcome.after, 3)
        return level, f"{why}, again in {outcome.after:.2f} s: {reason}", more
    if isinstance(outcome, DeadLettered):
        reason = shown(outcome.reason, LONGEST_REASON)
        more = {"reason": reason, "code": outcome.code, **_where(outcome.error)}
        return logging.ERROR, f"dead letter ({outcome.code}): {reason}", more
    if isinstance(outcome, Unsettled):
        reason = shown(outcome.reason, LONGEST_REASON)
        text = f"unsettled: the broker could not be told ({outcome.wanted.kind}) and will deliver it again: {reason}"
        return logging.WARNING, text, {"reason": reason, "wanted": outcome.wanted.kind}
    return logging.DEBUG, outcome.kind, {}


def _where(error: BaseException | None) -> dict[str, object]:
    """The innermost line of the program that raised; the whole traceback stands in the dead letter."""
    found = error.__traceback__ if error is not None else None
    if found is None:
        return {}
    while found.tb_next is not None:
        found = found.tb_next
    code = found.tb_frame.f_code
    return {"where": shown(f"{code.co_filename}:{found.tb_lineno} in {code.co_name}")}


def fields_of(position: str, delivery: Delivery) -> dict[str, object]:
    """The fields of a line about a delivery, each escaped and cut to a bounded length."""
    service, _, handler = position.partition(".")
    envelope = delivery.envelope
    return {
        "service": service,
        "handler": handler,
        "type": shown(envelope.type) if envelope else "",
        "event_id": shown(delivery.event_id),
        "key": shown(delivery.key or ""),
        "correlation_id": shown(delivery.correlation_id),
        "causation_id": shown(delivery.causation_id),
        "attempt": delivery.attempt,
    }


# ── rendering, for programs that are nothing but a service ──────────────────────────────────────────────────────────


def configure_logging(
    json: bool | None = None, *, level: int | str = logging.INFO, stream: TextIO | None = None
) -> None:
    """Render all log lines of this process to `stream` (stderr), replacing what the root logger had.

    `json`: one JSON object a line (True), lines for a terminal (False), or by whether `stream` is one (None). Lines
    that a handler writes get the ids of its event. This is global to the process, so only a program calls it, never a
    library; ``tidings run`` does.
    """
    import structlog

    target = stream if stream is not None else sys.stderr
    machine = not target.isatty() if json is None else json
    shared: list[Callable[[Any, str, EventDict], EventDict]] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _add_delivery,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _keep_stack,
                structlog.processors.format_exc_info,
                *_renderers(machine, target),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    if not structlog.is_configured():  # for handlers that log by structlog itself
        structlog.configure(
            processors=[*shared[:2], *shared[3:], structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
            logger_factory=structlog.stdlib.LoggerFactory(),
            cache_logger_on_first_use=True,
        )


def _renderers(machine: bool, target: TextIO) -> list[Any]:
    import structlog

    if machine:
        return [structlog.processors.EventRenamer("message"), structlog.processors.JSONRenderer(default=str)]
    console = structlog.dev.ConsoleRenderer(colors=target.isatty(), pad_event_to=0)
    return [_escape, _shorten, console]


def _add_delivery(logger: object, method: str, line: EventDict) -> EventDict:
    """The ids of the delivery that runs in this task, or in the thread it was handed to."""
    scope = current.get()
    if scope is not None:
        of_one = FIELDS[:2] if scope.together else FIELDS  # a line of a batch handler is about no single event
        for name, value in fields_of(scope.position, scope.delivery).items():
            if name in of_one:
                line.setdefault(name, value)
    return line


def _keep_stack(logger: object, method: str, line: EventDict) -> EventDict:
    """A stack that a record brought along stays as it is: it may be another thread's."""
    stack = line.pop("stack_info", None)
    if isinstance(stack, str):
        line["stack"] = stack
    return line


def _escape(logger: object, method: str, line: EventDict) -> EventDict:
    """A terminal obeys control characters, and a line end begins a line that nobody wrote."""
    for name, value in line.items():
        if not isinstance(value, str):
            continue
        if name in ("exception", "stack"):
            line[name] = "\n".join(f"  | {shown(one, 4 * LONGEST_REASON)}" for one in value.splitlines())
        else:
            line[name] = shown(value, 4 * LONGEST_REASON)
    return line


def _shorten(logger: object, method: str, line: EventDict) -> EventDict:
    """A person reads the sentence; what it says already, or what is empty, is not told again."""
    said = str(line.get("event", ""))
    for name in [*FIELDS, "reason", "outcome", "code", "duplicate_of", "counted", "after"]:
        value = line.get(name)
        if value in (None, "", 1) or (isinstance(value, str) and value in said):
            line.pop(name, None)
    return line
