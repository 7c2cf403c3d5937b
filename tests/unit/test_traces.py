"""Tracebacks as text, also for what fails at the same place again and again."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest

from tidings import traces
from tidings.traces import trace_of, without_ours


def fails(text: str) -> None:
    raise ValueError(text)


def chained(text: str) -> None:
    try:
        fails(text)
    except ValueError as error:
        raise KeyError(text) from error


def noted(text: str) -> None:
    try:
        fails(text)
    except ValueError as error:
        error.add_note(f"seen with {text}")
        raise


def deep(text: str, depth: int = 200) -> None:
    if depth == 0:
        fails(text)
    deep(text, depth - 1)


def grouped(text: str) -> None:
    raise ExceptionGroup(text, [ValueError(text), OSError(text)])


@pytest.mark.parametrize("way", [fails, chained, noted, deep, grouped])
def test_a_trace_is_what_python_says_the_second_time_too(way: Callable[[str], None]) -> None:
    for text in ("one", "two", "three\nlines\nof it"):
        with pytest.raises(Exception) as found:  # whatever it is
            way(text)
        assert trace_of(found.value) == "".join(traceback.format_exception(found.value)).strip()


def test_an_error_that_was_never_raised_has_a_text_as_well() -> None:
    assert trace_of(ValueError("x")) == "ValueError: x"


def test_P11_only_so_many_places_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "MOST_STACKS", 2)
    for number in range(10):
        with pytest.raises(ValueError) as found:  # it has no text
            exec(compile("raise ValueError", f"place-{number}", "exec"))
        trace_of(found.value)
    assert len(traces._known) <= 2


def called(handler: Callable[[], None] | None) -> Exception:
    """What code that stands in the package caught: it calls a handler, or fails by itself."""
    code = """
def called(handler):
    try:
        return handler() if handler else 1 / 0
    except Exception as error:
        return error
"""
    names: dict[str, Callable[[object], Exception]] = {}
    exec(compile(code, f"{traces._OURS}ours.py", "exec"), names)
    return names["called"](handler)


def test_a_traceback_of_a_handler_begins_where_the_handler_does() -> None:
    error = called(lambda: fails("no"))
    assert "ours.py" in trace_of(error)
    text = trace_of(without_ours(error))
    assert "in fails" in text
    assert "ours.py" not in text


def test_what_failed_in_our_own_code_keeps_its_traceback() -> None:
    assert "ours.py" in trace_of(without_ours(called(None)))
