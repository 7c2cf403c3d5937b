"""An SDK of OpenTelemetry for one test, whose spans are kept in memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Spans:
    """What was exported so far."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def all(self, name: str = "", **attributes: object) -> list[ReadableSpan]:
        """Those of a name with these attributes, whose dots are written as two underscores, oldest first."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        found = [
            one
            for one in self._exporter.get_finished_spans()
            if name in ("", one.name) and all((one.attributes or {}).get(key) == value for key, value in wanted.items())
        ]
        return sorted(found, key=lambda one: one.start_time or 0)

    def one(self, name: str = "", **attributes: object) -> ReadableSpan:
        found = self.all(name, **attributes)
        assert len(found) == 1, [shown(one) for one in found or self.all()]
        return found[0]


def shown(span: ReadableSpan) -> str:
    return f"{span.name} {dict(span.attributes or {})}"


def parent_of(span: ReadableSpan) -> int:
    return 0 if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def traces_of(spans: Sequence[ReadableSpan]) -> set[int]:
    return {one.context.trace_id for one in spans if one.context is not None}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """The SDK is global to a process: this takes it away again."""
    made = Spans()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", made.provider)
    return made
