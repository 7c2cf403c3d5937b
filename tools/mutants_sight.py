"""Bugs to seed into what is seen of a service: metrics, spans, the sum of workers."""

from __future__ import annotations

from tools.mutants_kit import Mutant

METRICS = ("tests/unit/observe/test_metrics.py", "tests/unit/observe/test_where_time_goes.py")
TRACES = ("tests/unit/observe/test_traces.py",)
HELD = ("tests/unit/observe/test_held.py",)
HELD_ON_NATS = ("tests/integration/observe/test_held_letters.py",)
MERGING = ("tests/unit/observe/test_merging.py",)


def bug(what: str, file: str, old: str, new: str, tests: tuple[str, ...]) -> Mutant:
    return Mutant(f"sight: {what}", file, old, new, tests)


SIGHT: tuple[Mutant, ...] = (
    bug(
        "the first dead letter is not seen to be one more",
        "observe/metrics.py",
        "                metrics._outcomes.child(*self._where, kind, outcome)\n",
        "                pass\n",
        METRICS,
    ),
    bug(
        "a retry in its place counts as a repeat of the broker",
        "observe/metrics.py",
        "if delivery.delivered > 1 and type(outcome) is not Retried:",
        "if delivery.delivered > 1:",
        METRICS,
    ),
    bug(
        "a repeat counts into the time on the way",
        "observe/metrics.py",
        "if outcome is done and delivery.delivered == 1 and not delivery.failures:",
        "if outcome is done and delivery.delivered == 1:",
        METRICS,
    ),
    bug("the commit is not timed", "claims.py", '            self._told("commit")\n', "            pass\n", METRICS),
    bug(
        "what the store refuses is not counted",
        "claims.py",
        "            self._watchers.refused(self._position, error)\n            raise\n        if not",
        "            raise\n        if not",
        METRICS,
    ),
    bug(
        "a call that has ended is still past its time",
        "limit.py",
        "            self.over = None\n            self._late.discard(self)\n",
        "            pass\n",
        ("tests/unit/test_limit.py", *METRICS),
    ),
    bug(
        "when a message was stored is not known", "testing/_position.py", "stored=item.entry.at", "stored=0.0", METRICS
    ),
    bug(
        "an attempt is no child of its producer",
        "observe/traces.py",
        "                origin or _ROOT,\n                SpanKind.CONSUMER,",
        "                _ROOT,\n                SpanKind.CONSUMER,",
        TRACES,
    ),
    bug(
        "what a handler causes is not below its span",
        "observe/traces.py",
        "        scope.span = span\n",
        "        pass\n",
        TRACES,
    ),
    bug(
        "the context is not written into the event",
        "observe/traces.py",
        '        if "traceparent" not in carrier:',
        '        if "traceparent" in carrier:',
        TRACES,
    ),
    bug(
        "an outcome that is not done has no span",
        "observe/traces.py",
        "            if type(one.outcome) is not Done:",
        "            if False:",
        TRACES,
    ),
    bug(
        "the span of a publish that failed looks well",
        "observe/traces.py",
        "            if error is not None:\n                _failed(span, error)",
        "            if False:\n                _failed(span, error or ValueError())",
        TRACES,
    ),
    bug(
        "the span of an event that is too large to be sent never ends",
        "running.py",
        "            if self.traces is not None:\n                self.traces.sent(",
        "            if self.traces is not None and not sys.exc_info()[1]:\n                self.traces.sent(",
        TRACES,
    ),
    bug(
        "the sum falls when a worker ends",
        "observe/merging.py",
        "                _add(self._gone, self._last.pop(worker))",
        "                self._last.pop(worker)",
        MERGING,
    ),
    bug(
        "a worker counts twice that has ended while somebody else asked",
        "observe/merging.py",
        "                if worker in living or worker in self._last:  # else",
        "                if text:  # else",
        MERGING,
    ),
    bug(
        "what a worker has counted falls back to what it had said before",
        "observe/merging.py",
        "max(value, known.get(series, 0.0))",
        "value",
        MERGING,
    ),
    bug(
        "a backlog that all see alike is summed",
        "observe/merging.py",
        '    "tidings_backlog_",\n',
        "",
        MERGING,
    ),
    bug(
        "one worker that is not ready hides behind the others",
        "observe/merging.py",
        '"tidings_ready", ',
        "",
        MERGING,
    ),
    bug(
        "letters that all see alike are summed",
        "observe/merging.py",
        '    "tidings_dead_letters_held",\n',
        "",
        HELD,
    ),
    bug(
        "a letter that was dealt with is still held",
        "observe/_held.py",
        "        if headers.get(Header.MARKER):",
        '        if headers.get(Header.MARKER) == "discarded":',
        HELD,
    ),
    bug(
        "a part of a large letter is one of its own",
        "observe/_held.py",
        "            if len(parts) < _number(count):",
        "            if len(parts) > _number(count):",
        HELD,
    ),
    bug(
        "what was read so far is told as all that is held",
        "observe/_held.py",
        "        if lines.whole:",
        "        if True:",
        HELD,
    ),
    bug(
        "letters of a log that was made anew are added to those of the old one",
        "observe/_held.py",
        "        if lines.anew:",
        "        if False:",
        HELD,
    ),
    bug(
        "an old figure stays while nobody can tell a new one",
        "observe/_looking.py",
        "                letters.held = None\n",
        "",
        HELD,
    ),
    bug(
        "a handler that somebody paused is taken for one that is stuck",
        "observe/_looking.py",
        "if one.paused]",
        "if False]",
        ("tests/unit/observe/test_health.py",),
    ),
    bug(
        "a subject that is only nice to have makes the service not ready",
        "brokers/nats/link.py",
        "                    return refused()\n",
        "                    refused()\n",
        HELD_ON_NATS,
    ),
    bug(
        "two processes share the lines that each has to read",
        "brokers/nats/letters.py",
        "secrets.token_hex(8)",
        '"one"',
        HELD_ON_NATS,
    ),
    bug(
        "lines that were read are read once more",
        "brokers/nats/letters.py",
        '"opt_start_seq": self._at + 1,',
        '"opt_start_seq": 1,',
        HELD_ON_NATS,
    ),
    bug(
        "a stream that was made anew looks like the old one",
        "brokers/nats/letters.py",
        "        if made != self._made or count < self._read:",
        "        if count < self._read:",
        HELD_ON_NATS,
    ),
    bug(
        "a drill shortens what a process remembers",
        "observe/alerts/__init__.py",
        'int(found["seconds"] or 1)',
        "1",
        ("tests/integration/observe/test_alerts.py",),
    ),
    bug(
        "of several types only one is counted",
        "observe/metrics.py",
        "next(iter(types)) if len(types) == 1",
        "next(iter(types)) if types",
        METRICS,
    ),
)
